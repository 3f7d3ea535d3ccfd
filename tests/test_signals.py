"""Signals that are held come behind the work, whichever thread the kernel gives them to."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from unigs.signals import ENDING, hold_signals

ARRIVAL_S = 0.05  # another thread may get it, when the kernel lets that run


class Ended(Exception):
    pass


@pytest.fixture
def handlers() -> Iterator[None]:
    """All of them raise."""

    def end(number: int, _: object) -> None:
        raise Ended(signal.Signals(number).name)

    before = {one: signal.signal(one, end) for one in ENDING}
    yield
    for one, known in before.items():
        signal.signal(one, known)


@pytest.fixture(params=[False, True], ids=["alone", "beside a thread"])
def other_thread(request) -> Iterator[None]:
    """A thread, as of a progress bar or a logger, that blocks no signal."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait, daemon=True)
    if request.param:
        thread.start()
    yield
    done.set()


def work(path: list[int], at: int, number: int) -> None:
    for k in range(1000):
        if k == at:
            os.kill(os.getpid(), number)
        path.append(k)


@pytest.mark.usefixtures("handlers", "other_thread")
@pytest.mark.parametrize("one", ENDING, ids=lambda one: one.name)
@pytest.mark.parametrize("at", [0, 500, 999])
def test_held_work_is_whole_and_the_signal_comes_behind_it(one, at):
    known, done = signal.getsignal(one), []

    def work_held() -> None:
        with hold_signals(*ENDING):
            work(done, at, one)
            time.sleep(ARRIVAL_S)

    with pytest.raises(Ended, match=one.name):
        work_held()
    assert len(done) == 1000
    assert signal.getsignal(one) is known
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {*ENDING}
    with pytest.raises(Ended):
        signal.raise_signal(one)


@pytest.mark.usefixtures("handlers", "other_thread")
def test_what_is_ignored_stays_ignored_and_nothing_comes_of_nothing():
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with hold_signals(*ENDING):
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(ARRIVAL_S)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


@pytest.mark.usefixtures("handlers", "other_thread")
def test_all_handlers_are_back_when_the_first_ends_the_run():
    def send_all() -> None:
        with hold_signals(*ENDING):
            for one in ENDING:
                os.kill(os.getpid(), one)
            time.sleep(ARRIVAL_S)

    with pytest.raises(Ended):
        send_all()
    for one in ENDING:
        with pytest.raises(Ended, match=one.name):
            signal.raise_signal(one)
