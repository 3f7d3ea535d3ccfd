"""Tokenizers in CLIP's own layout, made without a download.

``write_small_tokenizer`` learns a byte-level vocabulary of about a thousand pieces from the words
our prompts use; any other word falls back to bytes. ``write_clip_tokenizer`` unpacks CLIP's real
vocabulary, which the ``open_clip_torch`` package carries. Both give a folder that
``transformers.CLIPTokenizer`` reads.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from unigs.records import UnigsError

START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_VOCABULARY_SIZE = 49408


def write_tokenizer_folder(folder: Path, vocabulary: dict[str, int], merges: list[str]) -> None:
    """Write ``vocab.json``, ``merges.txt`` and the config of a CLIP tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
        "model_max_length": 77,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def write_small_tokenizer(folder: Path, words: Iterable[str], size: int = 1024) -> int:
    """Learn byte-pair merges from ``words`` and write a CLIP tokenizer folder.

    Args:
        folder: where the tokenizer goes.
        words: the text to learn from; every word is learnt whole if the size allows.
        size: most pieces, the two special tokens included.

    Returns:
        The vocabulary's size.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    split = pre_tokenizers.Split(r"\s+", "removed")  # type: ignore[arg-type]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = alphabet + [letter + "</w>" for letter in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(alphabet) - 2,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(set(words)), trainer)
    merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    pieces += [merge.replace(" ", "") for merge in merges] + [START, END]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    write_tokenizer_folder(folder, vocabulary, merges)
    return len(vocabulary)


def write_clip_tokenizer(folder: Path) -> int:
    """Write CLIP's own tokenizer (49,408 pieces) from the file inside ``open_clip_torch``.

    Returns:
        The vocabulary's size.

    Raises:
        UnigsError: the ``eval`` extra is not installed.
    """
    spec = find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise UnigsError(
            "CLIP's vocabulary comes with open_clip_torch, which is not installed; "
            "install the extra: pip install 'unigs[eval]'"
        )
    packed = Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(packed.read_bytes()).decode().split("\n")
    merges = merges[1 : CLIP_VOCABULARY_SIZE - 256 * 2 - 2 + 1]
    letters = _clip_letters()
    pieces = letters + [letter + "</w>" for letter in letters]
    pieces += ["".join(merge.split()) for merge in merges] + [START, END]
    write_tokenizer_folder(folder, {piece: i for i, piece in enumerate(pieces)}, merges)
    return len(pieces)


def _clip_letters() -> list[str]:
    """The 256 byte letters in CLIP's order: printable bytes first, then the rest."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(hidden))]
