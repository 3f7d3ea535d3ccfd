"""Write shards on a Ray cluster: one task a part, the same bytes as one machine writes.

Every machine sees the inputs and ``--out`` under the same paths and has unigs installed (extra
``cluster``). What follows ``--`` goes to ``unigs shards``. Killed, run it again: finished shards
are kept.

    python tools/shards_on_ray.py --out /shared/shards --parts 64 --workers 8 -- \
        --coco /shared/coco --openimages /shared/openimages
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import ray

from unigs.cli import main as run_unigs


def write_part(words: Sequence[str], part: int, parts: int) -> int:
    """One part in this process; the exit code."""
    return run_unigs([*words, "--part", f"{part}/{parts}"])


def write_parts(out: str, parts: int, workers: int, options: Sequence[str]) -> int:
    """All parts on the cluster that Ray is connected to, then their manifests.

    Args:
        out: folder that every machine sees.
        parts: tasks.
        workers: processes, and so CPUs, of a task.
        options: of ``unigs shards``.

    Returns:
        0, or the exit code of the first part that failed; the others are finished.
    """
    words = ["shards", "--out", os.path.abspath(out), "--workers", str(workers), *options]
    task = ray.remote(num_cpus=workers)(write_part)
    codes = ray.get([task.remote(words, part, parts) for part in range(1, parts + 1)])
    failed = {part: code for part, code in enumerate(codes, 1) if code}
    if failed:
        print(f"parts that failed, of {parts}: {', '.join(map(str, failed))}", file=sys.stderr)
        return next(iter(failed.values()))
    return run_unigs(["shards", "merge", "--out", os.path.abspath(out)])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True)
    parser.add_argument("--parts", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--address", help="of a running cluster; by default RAY_ADDRESS, or here")
    parser.add_argument("options", nargs="*")
    told = parser.parse_args()
    ray.init(address=told.address)
    return write_parts(told.out, told.parts, told.workers, told.options)


if __name__ == "__main__":
    sys.exit(main())
