"""Shards know what they are made of, have one writer at a time, and end in words."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shard_fixtures import DrawnSource
from test_shards import read_tree, write_all

from unigs.annotations import find_sources
from unigs.cli import main
from unigs.images import encode_image
from unigs.locks import FolderBusy, lock_file, lock_folder
from unigs.records import Skips, TooManySkips, UnigsError
from unigs.shards import ShardError, merge_shards, read_manifests, verify_shards, write_shards
from unigs.shards.write import write_source
from unigs.synthetic import write_datasets

SETS = ("coco", "openimages", "entityseg")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_datasets(root, images=4, val_images=1, size_px=32)
    return root


@pytest.fixture
def data(drawn, tmp_path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "data"))


def write(data: Path, out: Path, sets=("coco",), **options) -> None:
    roots = {name: data / name for name in sets}
    write_shards(out=str(out), samples_per_shard=2, workers=1, **roots, **options)


def read_parts(out: Path) -> dict[str, bytes]:
    """What a reader sees: no receipts, no notes on inputs."""
    names = (".tar", ".npy", "manifest.json", "folders.json")
    return {name: data for name, data in read_tree(out).items() if name.endswith(names)}


# --- changed inputs ------------------------------------------------------------------------------


def edit_annotations(data: Path) -> str:
    path = data / "coco/annotations/panoptic_train2017.json"
    content = json.loads(path.read_text())
    for row in content["annotations"]:
        for segment in row["segments_info"]:
            segment["category_id"] = content["categories"][0]["id"]
    path.write_text(json.dumps(content))
    return path.name


def rename_a_category(data: Path) -> str:
    path = data / "openimages/class-descriptions-boxable.csv"
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([head + "s", *rows]))
    return path.name


def edit_a_picture(data: Path) -> str:
    path = sorted((data / "coco/train2017").iterdir())[1]
    size = path.stat().st_size
    with Image.open(path) as image:
        pixels = np.array(image.convert("RGB"))
    changed = encode_image(255 - pixels)
    path.write_bytes(changed[:size].ljust(size, b"\0"))  # as long as it was
    return path.stem


def edit_a_mask(data: Path) -> str:
    path = sorted((data / "coco/annotations/panoptic_train2017").iterdir())[1]
    with Image.open(path) as image:
        pixels = np.array(image)
    pixels[: len(pixels) // 2] = pixels[-2, -2]
    Image.fromarray(pixels).save(path)
    return path.stem


def remove_a_picture(data: Path) -> str:
    path = sorted((data / "coco/train2017").iterdir())[1]
    path.unlink()
    return path.stem


def edit_an_openimages_mask(data: Path) -> str:
    path = sorted((data / "openimages/masks").rglob("*.png"))[0]
    with Image.open(path) as image:
        mask = np.array(image)
    Image.fromarray(np.full(mask.shape, 255, np.uint8)).save(path)
    return path.stem[:6]


CHANGES = [
    (edit_annotations, ["coco"]),
    (edit_a_picture, ["coco"]),
    (edit_a_mask, ["coco"]),
    (remove_a_picture, ["coco"]),
    (rename_a_category, ["openimages"]),
    (edit_an_openimages_mask, ["openimages"]),
]


@pytest.mark.parametrize(("change", "sets"), CHANGES)
def test_changed_inputs_are_refused_by_name_and_nothing_is_touched(data, tmp_path, change, sets):
    out = tmp_path / "out"
    write(data, out, sets, max_skip_fraction=0.5)
    before = read_parts(out)
    name = change(data)
    for _ in range(2):
        with pytest.raises(ShardError, match=rf"{name}.*remove this folder to write all of it"):
            write(data, out, sets, max_skip_fraction=0.5)
    assert read_parts(out) == before
    verify_shards(str(out))
    write(data, tmp_path / "new", sets, max_skip_fraction=0.5)
    assert read_parts(tmp_path / "new") != before


@pytest.mark.parametrize(("change", "sets"), CHANGES[:5])
def test_parts_of_old_and_new_inputs_never_merge(data, tmp_path, change, sets):
    out = tmp_path / "out"
    write(data, out, sets, part="1/2", max_skip_fraction=0.5)
    name = change(data)
    with pytest.raises(ShardError, match=name):
        write(data, out, sets, part="2/2", max_skip_fraction=0.5)
    with pytest.raises(ShardError, match="run the remaining parts"):
        merge_shards(str(out))


def test_a_change_while_a_run_was_killed_is_refused(data, tmp_path):
    out = tmp_path / "out"
    write(data, out)
    whole = read_parts(out)
    shards = sorted(out.glob("coco-panoptic-train/*.tar"))
    shards[1].unlink()
    (out / "coco-panoptic-train/receipts" / f"{shards[1].name}.json").unlink()
    edit_a_picture(data)  # of a shard that is there
    with pytest.raises(ShardError, match=r"000000\.tar was written from"):
        write(data, out)
    assert {**whole, **read_parts(out)} == whole


@pytest.mark.parametrize("check", ["time", "hash"])
def test_copied_and_touched_inputs_are_the_same(data, tmp_path, check):
    out = tmp_path / "out"
    write(data, out)
    before = read_parts(out)
    copied = Path(shutil.copytree(data, tmp_path / "copied", copy_function=shutil.copyfile))
    for path in copied.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    write(copied, out, check=check)
    assert read_parts(out) == before


def test_a_change_that_keeps_size_and_time_is_found_by_hash(data, tmp_path):
    out = tmp_path / "out"
    write(data, out)
    path = sorted((data / "coco/train2017").iterdir())[1]
    kind = path.stat()
    edit_a_picture(data)
    os.utime(path, ns=(kind.st_atime_ns, kind.st_mtime_ns))
    write(data, out)
    with pytest.raises(ShardError, match=path.stem):
        write(data, out, check="hash")


def test_unchanged_shards_are_not_read_again(data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write(data, out)

    def refuse(*_) -> None:
        raise AssertionError("a picture was read")

    monkeypatch.setattr("unigs.annotations.base.Source.load", refuse)
    write(data, out)


def test_shards_of_an_older_version_are_taken_over(data, tmp_path):
    out = tmp_path / "out"
    write(data, out)
    before = read_parts(out)
    for path in [*out.glob("*/source.json"), *out.glob("*/receipts/*.json")]:
        content = json.loads(path.read_text())
        del content["inputs"]
        path.write_text(json.dumps(content))
    write(data, out)
    assert read_parts(out) == before
    edit_a_picture(data)
    with pytest.raises(ShardError, match="was written from"):
        write(data, out)


def test_manifests_say_nothing_of_when_and_where_inputs_lay(data, tmp_path):
    write(data, tmp_path / "one", SETS)
    for path in data.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    data = data.rename(tmp_path / "moved")
    write(data, tmp_path / "two", SETS)
    assert read_parts(tmp_path / "one") == read_parts(tmp_path / "two")


def test_every_reader_lists_what_it_opens(drawn, monkeypatch):
    """Every file that a load opens is an annotation file or an input, and all of them exist."""
    opened: set[Path] = set()
    watching = False

    def watch(event: str, arguments: tuple) -> None:
        if watching and event == "open" and isinstance(arguments[0], str | os.PathLike):
            opened.add(Path(arguments[0]).resolve())

    sys.addaudithook(watch)
    for source in find_sources(**{name: drawn / name for name in SETS}):
        for i in range(len(source)):
            listed = {path.resolve() for path in [*source.files(), *source.inputs(i)]}
            assert all(path.is_file() for path in listed)
            opened.clear()
            watching = True
            source.load(i, Skips())
            watching = False
            found = {path for path in opened if path.is_file()}
            assert {path for path in found if path.is_relative_to(drawn.resolve())} <= listed


# --- writers at the same time --------------------------------------------------------------------


@contextmanager
def another(work: Callable, *arguments) -> Iterator[multiprocessing.Process]:
    """A process beside us, killed at the end."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


class SlowSource(DrawnSource):
    def load(self, i, skips):
        time.sleep(0.02)
        return super().load(i, skips)


def wait_for(found: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def write_slowly(out: Path, part: tuple[int, int] = (1, 1)) -> None:
    write_source(SlowSource("coco", 60), out, 20, 1, part, 1.0)


def test_a_second_writer_gets_words_and_the_first_goes_on(tmp_path):
    out = tmp_path / "out"
    with another(write_slowly, out) as first:
        wait_for(lambda: list(out.glob("*/*.tar.*.tmp")))
        with pytest.raises(FolderBusy, match=f"--part 1/1 .process {first.pid} on"):
            write_slowly(out)
        with pytest.raises(FolderBusy, match=f"writer of coco-train-0000.*process {first.pid} on"):
            write_slowly(out, (1, 3))  # other words for a shard that is being written
        first.join(20)
        assert first.exitcode == 0
    merge_shards(str(out))
    write_all(tmp_path / "alone", [DrawnSource("coco", 60)], 20)
    assert read_tree(out).keys() == read_tree(tmp_path / "alone").keys()
    assert read_parts(out) == read_parts(tmp_path / "alone")


def test_parts_share_a_folder_at_the_same_time(tmp_path):
    out = tmp_path / "out"
    with another(write_slowly, out, (1, 2)) as one, another(write_slowly, out, (2, 2)) as two:
        one.join(20)
        two.join(20)
        assert (one.exitcode, two.exitcode) == (0, 0)
    merge_shards(str(out))
    verify_shards(str(out))


def test_sweeping_spares_what_a_living_writer_has(tmp_path):
    out = tmp_path / "out"
    write_all(out, [DrawnSource("coco", 8)])
    name = "coco-train-000001.tar"
    temps = [
        out / "coco-train" / f"{shard}.{'0' * 32}.tmp" for shard in (name, name[:-5] + "0.tar")
    ]
    for temp in temps:
        temp.touch()
    (out / "coco-train" / ".part-1-of-7.lock").touch()
    with lock_file(out / "coco-train/receipts" / f"{name}.lock", "a test"):
        merge_shards(str(out))
        assert [temp.exists() for temp in temps] == [True, False]
    merge_shards(str(out))
    assert not temps[0].exists()
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]


def test_merging_is_done_by_one(tmp_path):
    write_all(tmp_path, [DrawnSource("coco", 8)])
    with (
        lock_folder(tmp_path, "merging", ".merge.lock"),
        pytest.raises(FolderBusy, match="merging"),
    ):
        merge_shards(str(tmp_path))


# --- ends ----------------------------------------------------------------------------------------


def test_a_run_ends_with_what_it_wrote_and_what_comes_next(data, tmp_path, capsys):
    write(data, tmp_path / "out", ["coco"], part="1/2")
    assert "after the last part: unigs shards merge --out" in capsys.readouterr().out
    remove_a_picture(data)
    write(data, tmp_path / "new", ["coco"], max_skip_fraction=0.5)
    told = capsys.readouterr().out
    assert "coco-panoptic-train: 3 samples in 2 shards; left out: 1 x picture file missing" in told
    assert f"--data.shards '[{tmp_path}/new]'" in told


def test_a_source_without_a_usable_picture_is_refused(data, tmp_path):
    path = data / "coco/annotations/instances_val2017.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    with pytest.raises(UnigsError, match=r"got none, in coco-instances val.*without annotations"):
        write(data, tmp_path / "out", ["coco"])
    assert not (tmp_path / "out").exists()


WRITER = textwrap.dedent("""
    import signal, sys, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    sys.path.insert(0, sys.argv[2])
    from shard_fixtures import DrawnSource
    import unigs.annotations, unigs.cli

    class SlowSource(DrawnSource):
        def load(self, i, skips):
            time.sleep(0.02)
            return super().load(i, skips)

    unigs.annotations.find_sources = lambda **roots: [SlowSource("coco", 400)]
    words = ["shards", "--out", sys.argv[1], "--samples_per_shard", "100", "--workers", sys.argv[3]]
    sys.exit(unigs.cli.main(words))
""")


@pytest.mark.parametrize(("workers", "group"), [("1", False), ("2", False), ("2", True)])
def test_an_interrupt_leaves_whole_files_and_a_word(tmp_path, workers, group):
    out = tmp_path / "out"
    script = [sys.executable, "-c", WRITER, str(out), str(Path(__file__).parent), workers]
    pipes = {"stderr": subprocess.PIPE, "text": True}
    writer = subprocess.Popen(script, start_new_session=True, **pipes)
    wait_for(lambda: list(out.glob("*/*.tar.*.tmp")))
    (os.killpg if group else os.kill)(writer.pid, signal.SIGINT)
    told = writer.communicate(timeout=20)[1]
    assert writer.returncode == 130
    assert "unigs: interrupted" in told
    assert "finished shards are kept: run the same command again" in told
    assert "Traceback" not in told
    left = {path.name for path in out.rglob("*") if path.is_file()}
    assert not [name for name in left if name.endswith((".tmp", ".lock"))]


@pytest.mark.usefixtures("interrupted_at_birth")
def test_writers_outlive_an_interrupt_that_comes_before_their_first_line(tmp_path, capfd):
    write_source(DrawnSource("coco", 8), tmp_path, 2, 2)
    assert "Traceback" not in capfd.readouterr().err


class FatalSource(DrawnSource):
    def load(self, i, skips):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_told(tmp_path):
    with pytest.raises(UnigsError, match=r"one killed .*fewer workers"):
        write_source(FatalSource("coco", 8), tmp_path, 2, 2)


class RefusingSource(DrawnSource):
    def load(self, i, skips):
        from unigs.files import FileRefused

        raise FileRefused("link leaves its folder", "there")


def test_what_a_worker_refuses_comes_back_as_it_was(tmp_path):
    with pytest.raises(UnigsError, match="link leaves its folder, at there"):
        write_source(RefusingSource("coco", 8), tmp_path, 2, 2)


@pytest.mark.parametrize("verb", ["shards", "shards merge"])
def test_an_output_that_may_not_be_written_is_told(data, tmp_path, verb, capsys):
    if os.getuid() == 0:
        out = "/proc/self/shards"
    else:
        (tmp_path / "locked").mkdir(mode=0o555)
        out = str(tmp_path / "locked" / "shards")
    words = [*verb.split(), "--out", out]
    words += ["--coco", str(data / "coco")] if verb == "shards" else []
    assert main(words) == 1
    told = capsys.readouterr().err
    assert told.startswith("unigs: expected")
    assert out.split("/shards")[0] in told


def test_an_output_that_is_a_file_is_told(data, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert main(["shards", "--out", f"{tmp_path}/out", "--coco", f"{data}/coco"]) == 1
    assert f"{tmp_path}/out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a\nb"])
def test_a_source_whose_name_is_no_file_name_is_refused(tmp_path, name):
    with pytest.raises(UnigsError, match="whose name a file can have"):
        write_source(DrawnSource(name, 2), tmp_path / "out", 2, 1)
    assert not (tmp_path / "up-train").exists()


def test_a_damaged_receipt_means_an_unfinished_shard(tmp_path):
    write_all(tmp_path, [DrawnSource("coco", 8)])
    before = read_tree(tmp_path)
    receipts = sorted(tmp_path.glob("*/receipts/*.json"))
    receipts[0].write_text("{")
    receipts[1].write_text('{"name": 7}')
    write_all(tmp_path, [DrawnSource("coco", 8)])
    assert read_tree(tmp_path) == before
    assert len(read_manifests(tmp_path)["coco-train"]) == 8


def test_parts_together_leave_out_no_more_than_the_whole_may(tmp_path):
    """Every second picture is unusable: of a part it is as much, however many there are."""
    source, refused = DrawnSource("coco", 24, skip_every=2), 0
    for k in range(1, 12):
        with suppress(TooManySkips):
            write_source(source, tmp_path, 1, 1, (k, 11))
            refused -= 1
        refused += 1
    assert refused == 11


def test_what_a_reader_counts_does_not_stop_the_writer(data, tmp_path):
    """A name that no file can have, and a picture of far too many rows."""
    table = next((data / "coco").rglob("instances_train2017.json"))
    told = json.loads(table.read_text())
    told["images"][0]["file_name"] = "x" * 308 + ".jpg"
    table.write_text(json.dumps(told))
    write(data, tmp_path / "coco", ("coco",), max_skip_fraction=1.0)
    with monkey_limit("unigs.annotations.jsonindex.MAX_ELEMENT_BYTES", 10):
        write(data, tmp_path / "open", ("openimages",), max_skip_fraction=1.0)


@contextmanager
def monkey_limit(name: str, value: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(name, value)
        yield
