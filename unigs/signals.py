"""Signals that wait: for work that must not be cut, and for processes until they know their own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hold_signals(*signals: signal.Signals) -> Iterator[None]:
    """Let signals to this thread wait until the end; what is forked or started inside is born so.

    Args:
        signals: those that wait.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
