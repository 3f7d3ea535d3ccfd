"""The table of classes, and the class of every pixel of a batch."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from test_judge import make_batch

from unigs.records import UnigsError
from unigs.shards import read_manifests
from unigs.tasks import (
    BACKGROUND,
    UNKNOWN,
    ClassTable,
    list_classes,
    number_labels,
    paint_classes,
)

TABLE = ClassTable(("disc", "ring", "sky"), (True, True, False))


@dataclass
class Categories:
    """As much of a manifest as names classes."""

    categories: tuple


def list_rows(*sets):
    rows = [
        [{"id": str(k), "name": name, "is_thing": kind} for k, (name, kind) in enumerate(one)]
        for one in sets
    ]
    return list_classes({str(k): Categories(tuple(one)) for k, one in enumerate(rows)})


def test_names_of_data_sets_that_differ_in_case_are_one_class(shards):
    table = list_classes(read_manifests(shards))
    assert list(table.names) == sorted({name.lower() for name in table.names})
    assert [table.number(name) for name in table.names] == list(range(len(table)))
    assert {"", "unknown", "Disc"}.isdisjoint(table.names)
    assert 0 < sum(table.things) < len(table)


def test_a_class_is_stuff_if_some_data_call_it_so_and_none_a_thing():
    table = list_rows(
        [("Sky-other-merged", False), ("table", True), ("net", None), ("unknown", None)],
        [("sky", None), ("Table", False), ("", True)],
    )
    assert table == ClassTable(("net", "sky", "table"), (True, False, True))


def test_a_table_is_plain_json_and_comes_back_as_it_was():
    stored = json.loads(json.dumps(TABLE.to_json()))
    assert ClassTable.from_json(stored, "a folder") == TABLE
    assert TABLE.number("ring") == 1
    assert [TABLE.number(name) for name in ("", "a", "rim", "z")] == [None] * 4
    assert len(ClassTable((), ())) == 0


@pytest.mark.parametrize(
    "stored",
    [
        None, [], {"names": ["a"]}, {"names": "a", "things": [True]},
        {"names": ["a"], "things": [1]}, {"names": [1], "things": [True]},
        {"names": ["b", "a"], "things": [True, True]}, {"names": ["a", "a"], "things": [True] * 2},
        {"names": ["a"], "things": []},
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused_with_its_place(stored):
    with pytest.raises(UnigsError, match=r"expected class.*at folder/config\.json"):
        ClassTable.from_json(stored, "folder/config.json")


def test_another_table_is_refused_and_the_classes_that_differ_are_named():
    TABLE.refuse_other(ClassTable(*map(tuple, TABLE.to_json().values())), "shards")
    other = ClassTable(("disc", "sky", "star"), (True, True, True))
    with pytest.raises(UnigsError) as told:
        TABLE.refuse_other(other, "shards")
    assert str(told.value) == (
        "expected the model's 3 classes; got 3, without ring, also with star, with another kind "
        "(thing or stuff) of sky; in shards"
    )
    many = ClassTable(tuple(f"n{k:02}" for k in range(20)), (True,) * 20)
    with pytest.raises(UnigsError, match="n07 and 12 more"):
        TABLE.refuse_other(many, "shards")


def test_classes_follow_names_and_say_why_a_pixel_has_none():
    truth = torch.tensor([[1, 2, 3, 0, 0]])
    batch = make_batch("entity", truth, ["ring", "unknown", "disc"], truth >= 0)
    assert paint_classes(batch, TABLE).tolist() == [[[1, UNKNOWN, 0, BACKGROUND, BACKGROUND]]]
    batch.ignored[0, 0, [0, 4]] = True
    assert paint_classes(batch, TABLE).tolist() == [[[UNKNOWN, UNKNOWN, 0, BACKGROUND, UNKNOWN]]]
    assert BACKGROUND < 0 > UNKNOWN != BACKGROUND  # no class of however large a table


def test_labels_are_numbered_by_name_alone():
    assert number_labels(["sky", "cat", "sky"], TABLE).tolist() == [BACKGROUND, 2, UNKNOWN, 2]
    assert number_labels([], TABLE).tolist() == [BACKGROUND]
