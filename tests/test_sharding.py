"""Sharded training is training: the losses, the files and the ends of DDP, on two ranks."""

from __future__ import annotations

import pytest
from ranks import find_difference, read_end, run_ranks

from unigs.sharding import FSDP2

pytestmark = pytest.mark.filterwarnings("ignore")

OPTIONS = {"world": 2, "max_steps": 3, "gradient_clip_val": 0.05}


def test_a(base, shards, tmp_path):
    ddp, seen, codes = run_ranks(base, shards, tmp_path / "ddp", "x", **OPTIONS)
    print(ddp, codes)
    got, indices, codes = run_ranks(base, shards, tmp_path / "fsdp", "x", **OPTIONS, strategy=FSDP2())
    print(got, codes)
    assert codes == [0, 0]
    a, b = read_end(tmp_path / "ddp"), read_end(tmp_path / "fsdp")
    print(find_difference(a, b))
