"""Signals that wait: for work that must not be cut, and for processes until they know their own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM)
"""Signals whose handlers may end a run by an exception."""


@contextmanager
def hold_signals(*signals: signal.Signals) -> Iterator[None]:
    """Let signals wait until the end; what is forked or started inside is born with them blocked.

    In the main thread their handlers wait as well: a signal to the process may come by another
    thread, which does not block it, and its handler runs in the main one all the same.

    Args:
        signals: those that wait.
    """
    came: dict[int, None] = {}
    note = lambda number, _: came.setdefault(number)
    with ExitStack() as stack:  # left from its end: the mask, the handlers, then what came
        stack.callback(_deliver, came)
        if threading.current_thread() is threading.main_thread():
            for one in signals:
                known: Any = signal.getsignal(one)
                if known not in (None, signal.SIG_IGN):
                    stack.callback(signal.signal, one, known)
                    signal.signal(one, note)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
        yield


def _deliver(came: dict[int, None]) -> None:
    for number in came:
        signal.raise_signal(number)
