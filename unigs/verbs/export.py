"""``unigs export``: a training checkpoint -> a folder of stock components (safetensors)."""

from __future__ import annotations


def export_pipeline(
    checkpoint: str, out: str, ema: bool = True, half: bool = False, base: str | None = None
) -> None:
    """Write a pipeline folder from a training checkpoint.

    Args:
        checkpoint: a ``.ckpt`` file of ``unigs fit``.
        out: folder to write; an older pipeline there is replaced at once or not at all.
        ema: export the averaged weights where the checkpoint holds them.
        half: store weights in half precision.
        base: the base it was trained from, if it is not where the checkpoint says; a name inside
            a checkpoint is never downloaded, one that you give may be.
    """
    from unigs.systems.load import load_system  # late: help starts no torch

    load_system(checkpoint, ema, base).make_predictor().save(out, half)
    print(f"wrote the pipeline to {out}")
