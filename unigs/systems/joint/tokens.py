"""Tokenizers in CLIP's own layout: made without a download, loaded with a check.

``write_small_tokenizer`` learns a byte-level vocabulary of about a thousand pieces from the words
our prompts use; any other word falls back to bytes. ``write_clip_tokenizer`` unpacks CLIP's real
vocabulary, which the ``open_clip_torch`` package carries. Both give a folder that
``transformers.CLIPTokenizer`` reads. ``load_tokenizer`` insists on a vocabulary: that class makes
one of two pieces where the files are missing, and every prompt then says the same.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unigs.files import write_json, write_text
from unigs.records import UnigsError
from unigs.weights import check_file, in_words, read_config

START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_VOCABULARY_SIZE = 49408


def write_tokenizer_folder(folder: Path, vocabulary: dict[str, int], merges: list[str]) -> None:
    """Write ``vocab.json``, ``merges.txt`` and the config of a CLIP tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
        "model_max_length": 77,
    }
    write_json(folder / "tokenizer_config.json", config)


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
    merges = gzip.decompress(packed.read_bytes()).decode("utf-8").split("\n")
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


# --- loading -------------------------------------------------------------------------------------


def check_vocabulary(folder: Path) -> None:
    """Look for the files of a vocabulary and at their form.

    Raises:
        UnigsError: none there, or files that are cut or damaged; names them.
    """
    whole, parts = folder / "tokenizer.json", (folder / "vocab.json", folder / "merges.txt")
    if not whole.exists() and not all(part.exists() for part in parts):
        raise UnigsError(
            "expected the vocabulary of the text encoder: tokenizer.json, or vocab.json with "
            f"merges.txt, found neither, at {folder}"
        )
    for config in sorted(folder.glob("*.json")):
        read_config(config)
    if parts[1].exists():
        check_file(parts[1])


def load_tokenizer(folder: Path) -> Any:
    """A ``CLIPTokenizer`` with the vocabulary that its folder holds.

    Raises:
        UnigsError: no vocabulary there, or files that are cut or damaged; names them.
    """
    check_vocabulary(folder)
    from transformers import CLIPTokenizer

    with in_words("a CLIP tokenizer", folder):
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)


def check_tokenizer(tokenizer: Any, text_config: Any, where: Path | str) -> None:
    """Refuse a tokenizer that a text encoder was not trained with, as far as numbers tell.

    Args:
        tokenizer: a ``CLIPTokenizer``.
        text_config: of the text encoder; one embedding per piece, one place per token.
        where: for the message.

    Raises:
        UnigsError: another number of pieces, no start or end token, merges that do not reach the
            pieces, or a maximal length of another model.
    """
    with in_words("a vocabulary", where):
        pieces = tokenizer.get_vocab()
        size, rows = len(pieces), text_config.vocab_size
        if size != rows or set(pieces.values()) != set(range(size)):
            raise UnigsError(
                f"expected a vocabulary of {rows} pieces, one per embedding of the text encoder, "
                f"got {size}: the tokenizer of another model? at {where}"
            )
        empty = tokenizer("").input_ids
        if empty != [pieces.get(START), pieces.get(END)]:
            raise UnigsError(
                f"expected {START} and {END} around a text, got the tokens {empty}, at {where}"
            )
        lost = find_unreachable(tokenizer)
        if lost:
            raise UnigsError(
                f"expected merges for every piece, got none for {len(lost)} of {size}, e.g. "
                f"{lost[0]!r}: is merges.txt cut? at {where}"
            )
        length, places = tokenizer.model_max_length, text_config.max_position_embeddings
        if length != places and length < 1e9:  # a huge number stands for none
            raise UnigsError(
                f"expected a model_max_length of {places}, the text encoder's, got {length}, "
                f"at {where}"
            )


def find_unreachable(tokenizer: Any) -> list[str]:
    """Pieces of several letters that no merge makes: a text never gets them."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = state["model"]["merges"]
    made = {"".join(merge if isinstance(merge, list) else merge.split(" ")) for merge in merges}
    added = {token["content"] for token in state["added_tokens"]}
    return sorted(
        piece
        for piece in state["model"]["vocab"]
        if len(piece.removesuffix("</w>")) > 1 and piece not in made and piece not in added
    )


def as_utf8(text: str) -> str:
    """A text that a tokenizer takes: a lone surrogate becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def find_cut(tokenizer: Any, prompts: Sequence[str], length: int) -> dict[str, str]:
    """What a text encoder never sees of prompts that are too long.

    Args:
        tokenizer: a ``CLIPTokenizer``.
        prompts: any texts.
        length: tokens that the encoder takes, start and end included.

    Returns:
        The words cut from the end, by prompt; only those that lose some.
    """
    cut = {}
    for prompt in dict.fromkeys(prompts):
        tokens = tokenizer(as_utf8(prompt), truncation=False, verbose=False).input_ids
        if len(tokens) > length:
            cut[prompt] = tokenizer.decode(tokens[length - 1 : -1], skip_special_tokens=True)
    return cut
