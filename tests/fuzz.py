"""Hostile inputs at random: mutations of valid bytes and JSON, and a child with bounds."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import random
import resource
import traceback
from collections.abc import Callable
from typing import Any

MEMORY_BYTES = 1 << 30
HOSTILE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1e308,
    float("nan"),
    float("inf"),
    10**30,
    70_000,
    "",
    "0",
    "1",
    "\ud800",
    "a\0b\x1b[2J",
    "../" * 9 + "etc/passwd",
    "..\\..\\secret",
    "/dev/zero",
    "{names}" * 9,
    "x" * 5000,
    [],
    {},
    [[]],
    [1e9, -1e9] * 4,
    [[1e8, 1, 5, 5e8, 2, 2]],
    {"size": [10**6, 10**6], "counts": [10**12]},
    {"size": [9, 9], "counts": 10**11},
    {"size": None, "counts": None},
)


def fuzz_seconds() -> float:
    """How long a fuzz test goes on: ``UNIGS_FUZZ_S``, by default a minute."""
    return float(os.environ.get("UNIGS_FUZZ_S", "60"))


def mutate_bytes(data: bytes, dice: random.Random) -> bytes:
    """A few bytes changed, cut, doubled, inserted; numbers of four bytes made huge."""
    out = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        at = dice.randrange(len(out) + 1)
        kind = dice.randrange(6)
        if kind == 0 and out:
            out[at % len(out)] = dice.randrange(256)
        elif kind == 1:
            out[at:at] = dice.randbytes(dice.choice((1, 4, 40)))
        elif kind == 2:
            del out[at : at + dice.choice((1, 4, 400))]
        elif kind == 3:
            out[at : at + 4] = dice.choice((b"\xff\xff\xff\xff", b"\x00\x00\xff\xff", bytes(4)))
        elif kind == 4:
            out[at:at] = out[at : at + dice.choice((4, 40, 400))]
        else:
            out = out[:at] if dice.random() < 0.3 else out
    return bytes(out)


def mutate_json(tree: Any, dice: random.Random) -> Any:
    """A copy in which a few values are of another type, huge, deep, missing or doubled."""
    tree = copy.deepcopy(tree)
    for _ in range(dice.choice((1, 1, 2, 4))):
        places = list(_walk(tree))
        parent, key = dice.choice(places)
        kind = dice.randrange(5)
        if kind == 0 and isinstance(parent, dict):
            del parent[key]
        elif kind == 1:
            other_parent, other_key = dice.choice(places)
            parent[key] = copy.deepcopy(
                other_parent.get(other_key)
                if isinstance(other_parent, dict)
                else other_parent[other_key]
            )
        elif kind == 2 and isinstance(parent, list):
            parent.extend([copy.deepcopy(parent[key])] * dice.choice((1, 3, 2000)))
        elif kind == 3:
            for _ in range(dice.choice((1, 30, 300))):
                parent[key] = [parent[key]]
        else:
            parent[key] = copy.deepcopy(dice.choice(HOSTILE))
    return tree


def _walk(tree: Any):
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(pairs):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _walk(value)


def mutate_text(tree: Any, dice: random.Random) -> bytes:
    """The JSON of a mutated tree, or the mutated bytes of the JSON."""
    if dice.random() < 0.7:
        return json.dumps(mutate_json(tree, dice)).encode()
    return mutate_bytes(json.dumps(tree).encode(), dice)


def run_bounded(work: Callable[..., int], *arguments: Any, memory: int = MEMORY_BYTES) -> int:
    """What ``work`` returns, run in a child whose address space grows by ``memory`` at most.

    Raises:
        AssertionError: the child died, or raised; with its traceback.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_work, args=(theirs, work, arguments, memory))
    child.start()
    theirs.close()
    try:
        kind, result = ours.recv()
    except EOFError:
        kind, result = "error", "nothing: it was killed"
    child.join()
    assert kind == "done", result
    return result


def _work(pipe: Any, work: Callable[..., int], arguments: tuple[Any, ...], memory: int) -> None:
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    try:
        pipe.send(("done", work(*arguments)))
    except BaseException:
        pipe.send(("error", traceback.format_exc()[-6000:]))
