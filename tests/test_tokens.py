"""Tokenizers made here are CLIP's."""

from __future__ import annotations

import pytest
from transformers import CLIPTokenizer

from unigs.systems.joint.tokens import write_clip_tokenizer, write_small_tokenizer

TEXTS = ("inpainting: generate dog.", "find a zebra, and sky!", "don't stop", "Gebäude 日本 123")


def test_the_small_vocabulary_knows_its_words_whole_and_spells_the_rest(tmp_path):
    write_small_tokenizer(tmp_path, ["star", "heart"])
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer("star heart").input_ids) == 4  # with start and end
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        squeezed = tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "")
        assert squeezed == text.lower().replace(" ", "")


def test_the_clip_vocabulary_gives_open_clips_ids(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    assert write_clip_tokenizer(tmp_path) == 49_408
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    reference = open_clip.get_tokenizer("ViT-B-32")
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        assert ids == reference(text)[0, : len(ids)].tolist()
