"""Words as people type them; help and refusals start no model."""

from __future__ import annotations

import json

import pytest
from test_structure import run_python

from unigs.cli import VERBS, main
from unigs.verbs.parser import read_kind, spell_words

OPTIONS = {
    "--images": "list",
    "--words": "list",
    "--out": "one",
    "--sampling.seed": "one",
    "--sampling.guided_filter": "flag",
    "--half": "flag",
}


@pytest.mark.parametrize(
    ("typed", "spelt"),
    [
        ("a.jpg b.jpg --out o", '--out o --images ["a.jpg","b.jpg"]'),
        ("--out o a.jpg", '--out o --images ["a.jpg"]'),
        ("--words star --words sand moon", '--words ["star"] --words+ ["sand","moon"]'),
        ('--words=["a"] --words=["b"]', '--words=["a"] --words+=["b"]'),
        ("a.jpg --images b.jpg", '--images ["b.jpg"] --images+ ["a.jpg"]'),
        ("--out o --out p", "--out o --out p"),
        ("--words star sand --out o", '--words ["star","sand"] --out o'),
        ("--words [star,sand]", "--words [star,sand]"),
        ("--words []", "--words []"),
        ("--words null", '--words ["null"]'),
        ("--words [star]", "--words [star]"),
        ("--words=[star]", "--words=[star]"),
        ("[0-9]*.png --out o", '--out o --images ["[0-9]*.png"]'),
        ("[a]b[c]", '--images ["[a]b[c]"]'),
        ("--words", "--words []"),
        ("--words=x --half", '--words=["x"] --half true'),
        ("--half false --out -1", "--half false --out -1"),
        ("--half --sampling.guided_filter", "--half true --sampling.guided_filter true"),
        ("--sampling.seed 3 --help", "--sampling.seed 3 --help"),
        ("-h", "-h"),
    ],
)  # fmt: skip
def test_every_option_gets_one_value(typed, spelt):
    assert " ".join(spell_words(typed.split(), OPTIONS)).replace('", "', '","') == spelt


def test_a_file_that_is_named_as_a_list_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert spell_words(["[1, 2]"], OPTIONS) == ["--images", "[1, 2]"]
    (tmp_path / "[1, 2]").touch()
    assert spell_words(["[1, 2]"], OPTIONS) == ["--images", '["[1, 2]"]']


@pytest.mark.parametrize(
    "word", ["two words", 'a "quote"', "[half", "1", "true", "null", "日本", "a: b"]
)
def test_a_word_stays_what_it_is(word):
    assert json.loads(spell_words(["--words", "x", word], OPTIONS)[1]) == ["x", word]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--wrods", "x"], "got --wrods; did you mean --words?"),
        (["--sampling.sed", "3"], "did you mean --sampling.seed?"),
        (["--zzz"], r"got --zzz$"),
        (["--words", "\udcff"], "expected UTF-8"),
    ],
)
def test_what_is_mistyped_is_named_with_the_nearest(typed, said):
    with pytest.raises(ValueError, match=said):
        spell_words(typed, OPTIONS)


def test_a_stray_word_of_a_verb_without_a_list_is_refused():
    with pytest.raises(ValueError, match="got 'x'"):
        spell_words(["x"], {"--out": "one", "--half": "flag"})


@pytest.mark.parametrize(
    ("hint", "kind"),
    [(bool, "flag"), (bool | None, "flag"), (list[str], "list"), (list[str] | None, "list"),
     (tuple[str, ...], "list"), (int, "one"), (dict[str, list[int]], "one"), (None, "one")],
)  # fmt: skip
def test_kinds_follow_from_types(hint, kind):
    assert read_kind(hint) == kind


def test_a_mistyped_verb_is_named_with_the_nearest(capsys):
    assert main(["segmnt", "x.png"]) == 2
    assert "did you mean segment?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["segment", "x.png", "--uot", "y"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("unigs: expected an option of this verb, got --uot")


HEAVY = ["torch", "diffusers", "lightning", "transformers"]
SMALL = [
    ("segment --help", 0),
    ("sample --help", 0),
    ("export --help", 0),
    ("fit --help", 0),
    ("base --out unigs", 1),
    ("evaluate --models nowhere --shards . --out o", 1),
    ("evaluate --models oracle --shards nowhere --out o", 1),
    ("sheet --pipeline tiny --shards nowhere --out o.png", 1),
    ("export --checkpoint nothing.ckpt --out o", 1),
    ("sample --out o --task entity --image nothing.png", 1),
    ("predict", 2),
    ("find nothing.png --words star --out o", 1),
    ("inpaint README.md --mask nothing --words x --out o", 1),
    ("paint --wrods", 2),
    ("segmnt", 2),
]
CALLS = [
    *((words, code, [*HEAVY, "scipy.ndimage"]) for words, code in SMALL),
    *((f"{verb} --help", 0, HEAVY) for verb in VERBS),
]
"""What is typed, the exit code, and what is not imported by then."""

RUN = """
import sys, unigs.cli
for words, _, heavy in {calls!r}:
    try:
        code = unigs.cli.main(words.split())
    except SystemExit as stop:
        code = stop.code
    print("end:", words, code, sorted({{*heavy}} & set(sys.modules)))
"""


def test_help_and_refusals_import_no_model(tmp_path):
    """In one process: what one of them imports is there for all that follow."""
    device = f"segment docs/demo.png --device nosuch --out {tmp_path / 'out'}"
    calls = [*CALLS, (device, 1, HEAVY[1:])]  # torch alone knows the devices
    told = run_python(RUN.format(calls=calls)).splitlines()
    ends = [line for line in told if line.startswith("end: ")]
    assert ends == [f"end: {words} {code} []" for words, code, _ in calls]
