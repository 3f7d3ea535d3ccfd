"""``unigs latents``: the frozen half of a run's steps, encoded ahead into shards.

No torch before the options are checked: help and errors come at once.
"""

from __future__ import annotations

from typing import Literal

from unigs.records import UnigsError
from unigs.shards.write import read_part


def write_latents(
    config: list[str],
    out: str,
    samples: int | None = None,
    part: str = "1/1",
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    samples_per_shard: int = 1000,
    options: list[str] | None = None,
    windows: int | None = None,
) -> None:
    """Encode the pictures of a training run ahead, so that its steps need not (docs/latents.md).

    Killed or out of disk, run it again: finished shards are checked and kept. To share the work,
    run parts 1/16 to 16/16 anywhere; the one that ends last finishes the cache.

    Args:
        config: of the run, as for unigs fit; later files override earlier ones.
        out: folder to write to; other options need another one.
        samples: of the stream, from its start; later ones of a run repeat these with new noise.
            By default one epoch.
        part: which part of how many to write, for example 3/16.
        dtype: of the numbers that are stored: bfloat16, or float32 for the losses of a live run.
        samples_per_shard: at 512 px, 1000 make about 90 MB in bfloat16.
        options: of the run beside the config, without dashes: data.shards=[data/shards]
        windows: encode the image alone, of so many windows of every picture; the run then needs
            --data.tasks.windows of this number.

    Raises:
        UnigsError: bad input, a system without a frozen half, or the cache of another run in the
            folder.
        FolderBusy: another process writes the same part there.

    Example:
        unigs latents --config configs/joint.yaml --out data/latents --part 3/16
        unigs fit --config configs/joint.yaml --data.latents data/latents
    """
    mine = read_part(part)
    if samples is not None and samples < 1:
        raise UnigsError(f"expected at least 1 sample, got {samples}, at --samples")
    if samples is not None and windows is not None:
        raise UnigsError(
            f"expected --samples or --windows, got {samples} and {windows}: windows are those of "
            "every picture"
        )
    from unigs.verbs.encoding import Ahead, encode_ahead, open_run  # torch, from here on

    ahead = Ahead(out, samples, mine, dtype, samples_per_shard, windows)
    encode_ahead(*open_run(config, options or []), ahead)
