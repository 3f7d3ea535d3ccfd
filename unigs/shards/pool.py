"""Processes that share one source: each forked from us, each ending with us.

In: a source, a function of a shard's number. Out: its results as they come. An interrupt reaches
the parent only, which tells the workers to stop after the picture they are at.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from unigs.records import UnigsError
from unigs.signals import hold_signals

if TYPE_CHECKING:
    from unigs.annotations.base import Source

Submit = Callable[[Callable[..., Any], Iterable[tuple]], Iterator[Any]]
"""(function, arguments of each call) -> results, in any order."""

_source: Source | None = None  # in a worker process: the source it writes from
_stop: Any = None  # set where the parent wants us to end


def get_source() -> Source:
    """The source that this process works on."""
    assert _source is not None
    return _source


def heed_stop() -> None:
    """End the work at hand if the parent asks for it; called between pictures.

    Raises:
        UnigsError: it does.
    """
    if _stop is not None and _stop.is_set():
        raise UnigsError("expected to write on, got told to stop")


@contextmanager
def open_pool(source: Source, workers: int) -> Iterator[Submit]:
    """Give a function that calls another in processes, once per tuple of arguments.

    Raises:
        UnigsError: a process was killed.
    """
    if workers == 1:
        _set_source(source, None)
        yield lambda work, calls: (work(*call) for call in calls)
        return
    # Forked workers share the source's index; other platforms pickle it once per worker.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    context = multiprocessing.get_context(method)
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, context, _start_worker, (source, stop, os.getpid()))
    try:
        yield partial(_submit, pool)
    except BrokenProcessPool:
        raise UnigsError(
            "expected the writing processes to live, got one killed (out of memory?); finished "
            "shards are kept: run the same command again, perhaps with fewer workers"
        ) from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _submit(pool: Executor, work: Callable[..., Any], calls: Iterable[tuple]) -> Iterator[Any]:
    """Workers start here, deaf to an interrupt, which would end them before their first line."""
    with hold_signals(signal.SIGINT):
        futures = [pool.submit(work, *call) for call in calls]
    return (done.result() for done in as_completed(futures))


def _set_source(source: Source, stop: Any) -> None:
    global _source, _stop
    _source, _stop = source, stop


def _start_worker(source: Source, stop: Any, parent: int) -> None:
    """A worker ends soon after its parent, however that died."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all of the group
    _set_source(source, stop)
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
