"""``unigs export``: a training checkpoint -> a folder of stock components, here and on a hub."""

from __future__ import annotations

from pathlib import Path

from unigs.records import UnigsError
from unigs.weights import check_checkpoint, check_target, in_words

PUSHED = ("*.json", "*.txt", "*.safetensors", "README.md", "pipeline.py")
"""What goes to a hub: no pickle, and nothing that a folder holds by chance."""


def export_pipeline(
    checkpoint: str,
    out: str,
    ema: bool = True,
    half: bool = False,
    base: str | None = None,
    evaluation: str | None = None,
    push: str | None = None,
) -> None:
    """Write a pipeline folder from a training checkpoint, with a card, and upload it if asked.

    Args:
        checkpoint: a ``.ckpt`` file of ``unigs fit``.
        out: folder to write; an older pipeline there is replaced at once or not at all.
        ema: export the averaged weights where the checkpoint holds them.
        half: store weights in half precision.
        base: the base it was trained from, if it is not where the checkpoint says; a name inside
            a checkpoint is never downloaded, one that you give may be.
        evaluation: folder of ``unigs evaluate`` or ``unigs test``; what it says of these very
            weights goes into the card. Default: the run's own folder.
        push: id ``owner/name`` of the hub, to which the folder is uploaded; a new repository there
            is private. The token is that of ``HF_TOKEN`` or of ``hf auth login``.

    Raises:
        UnigsError: no whole checkpoint, something else at ``out``, no token, or a hub that refuses;
            the folder is whole even then.

    Example:
        unigs export --checkpoint runs/joint/checkpoints/last.ckpt --out runs/joint/pipeline
        unigs export --checkpoint last.ckpt --out pipeline --half --push me/my-unigs
    """
    source = check_checkpoint(checkpoint)
    check_target(Path(out))
    if push is not None:
        check_push(push)
    from unigs.checkpoints import read_checkpoint  # late: help and errors start no torch
    from unigs.systems.load import load_system
    from unigs.verbs.card import write_card

    system = load_system(checkpoint, ema, base)
    predictor = system.make_predictor()
    predictor.save(out, half)
    run = source.parent.parent if source.parent.name == "checkpoints" else source.parent
    found = Path(evaluation) if evaluation else run
    write_card(Path(out), read_checkpoint(checkpoint), system, predictor, found)
    print(f"wrote the pipeline to {out}; its card is README.md there")
    if push is not None:
        print(f"uploaded it to {push_folder(Path(out), push)}")


def check_push(repo: str) -> None:
    """Refuse an upload that cannot work, before anything is written.

    Raises:
        UnigsError: no id of the hub, or no token for it.
    """
    from huggingface_hub import get_token
    from huggingface_hub.utils import validate_repo_id

    with in_words("an id owner/name of the hub", "--push"):
        validate_repo_id(repo)
    if "/" not in repo:
        raise UnigsError(f"expected an id owner/name of the hub, got {repo!r}, at --push")
    if not get_token():
        raise UnigsError("expected a token of the hub, got none; set HF_TOKEN, at --push")


def push_folder(folder: Path, repo: str) -> str:
    """Upload a model's folder; the address of it.

    Raises:
        UnigsError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import create_repo, upload_folder

    with in_words(f"a hub that takes the files (they are whole, at {folder})", repo):
        create_repo(repo, private=True, exist_ok=True)
        done = upload_folder(repo_id=repo, folder_path=folder, allow_patterns=list(PUSHED))
    return str(done)
