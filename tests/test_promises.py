"""docs/promises.md, row by row, with a tiny network over real shards and the real callbacks."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path

import lightning as L
import pytest
import torch
from builders import build_data
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from unigs.callbacks import EMA
from unigs.checkpoints import NotFinite, find_last, read_checkpoint
from unigs.data import UniGSData
from unigs.locks import FolderBusy, lock_folder
from unigs.promises import FiniteSteps, Preempted, Preemption
from unigs.promises.resume import TRAINER_RULES, describe_run
from unigs.records import UnigsError
from unigs.runs import OtherRun, find_rule
from unigs.streams import LoaderStuck
from unigs.systems import UniGS
from unigs.tasks import TaskOptions

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
from fault_harness import Tiny, find_difference  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

STEPS_PER_EPOCH = 5


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr("fault_harness.SLOWNESS_S", 0.0)


def make_data(shards: str, **changes) -> UniGSData:
    options = {
        "tasks": TaskOptions(32, max_painted=9),
        "global_batch_size": 4,
        "steps_per_epoch": STEPS_PER_EPOCH,
        "num_workers": 0,
        "samples_per_task": 2,
        "batch_size": 1,
    }
    return build_data(shards, **{**options, **changes})


class Seen(Callback):
    """Which samples came, batch by batch."""

    def __init__(self) -> None:
        self.indices: list[int] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.indices += batch.index.tolist()


def make_trainer(folder: Path, *callbacks, saver=None, **changes) -> L.Trainer:
    options = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
    }
    ends = {} if {"max_steps", "max_epochs"} & changes.keys() else {"max_epochs": 3}
    saver = ModelCheckpoint(folder, **(saver or {"every_n_train_steps": 1000}))
    return L.Trainer(**{**options, **ends, **changes}, callbacks=[EMA(0.9), *callbacks, saver])


def fit(shards: str, folder: Path, *callbacks, resume=None, data=None, model=None, **changes):
    """Train to the end; the samples seen and the final state."""
    seen = Seen()
    trainer = make_trainer(folder, seen, *callbacks, **changes)
    data = data or make_data(shards)
    trainer.fit(model or Tiny(), data, ckpt_path=resume)
    return seen.indices, read_state(folder / "last.ckpt")


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory):
    """What :func:`fit` gives a run that is left alone; runs of the same options are made once."""
    done: dict[str, tuple[list[int], dict]] = {}

    def train(**options) -> tuple[list[int], dict]:
        name = repr(sorted(options.items()))
        if name not in done:
            done[name] = fit(shards, tmp_path_factory.mktemp("undisturbed"), **options)
        return done[name]

    return train


def read_state(path: Path) -> dict:
    content = read_checkpoint(path)
    parts = ("global_step", "epoch", "state_dict", "optimizer_states", "lr_schedulers")
    state = {name: content[name] for name in parts}
    logged = content["loops"]["fit_loop"]["epoch_loop.state_dict"]  # the step that loggers show
    average, stream = content["callbacks"]["EMA"], content["UniGSData"]
    return state | {"average": average, "stream": stream, "logged": logged}


SAVERS = [
    {"every_n_train_steps": 1},
    {"every_n_train_steps": 2, "save_last": "link"},
    {"every_n_epochs": 1},
    {"every_n_epochs": 1, "save_on_train_epoch_end": True},
    {"train_time_interval": timedelta(0)},
    {},
]
ENDINGS = [{"max_epochs": 3}, {"max_steps": 9}]
SHAPES = [
    {"limit_val_batches": 0},
    {"accumulate_grad_batches": 2, "val_check_interval": 3},
    {"accumulate_grad_batches": 3, "check_val_every_n_epoch": 2},
    {"val_check_interval": 4, "check_val_every_n_epoch": None, "limit_train_batches": 4},
]


CASES = [
    pytest.param(
        saver, ending, shape,
        id=f"{saver} {next(iter(ending))} {' '.join(shape)}",
        marks=[] if (i + j + k) % 3 == 0 else [pytest.mark.slow],
    )
    for i, saver in enumerate(SAVERS)
    for j, ending in enumerate(ENDINGS)
    for k, shape in enumerate(SHAPES)
]  # fmt: skip
"""A third of all combinations by default, each saver, ending and shape among them."""


@pytest.mark.parametrize(("saver", "ending", "shape"), CASES)
def test_every_checkpoint_of_every_moment_resumes_to_the_same_end(
    shards, tmp_path, saver, ending, shape
):
    saver = {**saver, "save_top_k": -1, "filename": "{step}-{epoch}"}
    whole, final = fit(shards, tmp_path / "whole", saver=saver, **ending, **shape)
    assert whole == list(range(len(whole)))
    cuts = [p for p in sorted((tmp_path / "whole").glob("*.ckpt")) if p.name != "last.ckpt"]
    assert cuts
    for cut in cuts[:: max(1, len(cuts) // 4)]:
        seen, again = fit(
            shards, tmp_path / cut.stem, resume=cut, saver=saver, **ending, **shape
        ) if not is_done(cut, ending, shape) else ([], final)  # fmt: skip
        assert seen == whole[len(whole) - len(seen) :], cut.name
        assert not find_difference(again, final), cut.name


def is_done(cut: Path, ending: dict, shape: dict) -> bool:
    content = read_checkpoint(cut)
    return content["epoch"] >= ending.get("max_epochs", 99) or content["global_step"] >= ending.get(
        "max_steps", 99
    )


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda e: next(iter(e)))
def test_resuming_twice_at_the_end_of_an_epoch_trains_no_step_twice(
    shards, tmp_path, undisturbed, ending
):
    whole, final = undisturbed(**ending)
    resume = None
    for step in (5, 7):
        with pytest.raises(Preempted):
            fit(
                shards,
                tmp_path / "cut",
                Strike("on_train_batch_end", step),
                resume=resume,
                **ending,
            )
        resume = tmp_path / "cut" / "last.ckpt"
    seen, again = fit(shards, tmp_path / "cut", resume=resume, **ending)
    assert seen == whole[4 * 7 :]
    assert not find_difference(again, final)


class Strike(Callback):
    """Sends this process a signal in a hook, once a step is reached."""

    def __init__(self, hook: str, step: int, number: int = signal.SIGTERM) -> None:
        self.step, self.number, self.struck_at = step, number, 0.0
        setattr(self, hook, self.strike)

    def strike(self, trainer, *args) -> None:
        if trainer.global_step >= self.step and not self.struck_at:
            self.struck_at = time.monotonic()
            os.kill(os.getpid(), self.number)


HOOKS = [
    "on_train_batch_start",
    "on_before_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_batch_start",
    "on_validation_end",
    "on_train_epoch_end",
]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(("accumulate", "preemption_first"), [(1, False), (2, True)])
def test_a_signal_at_any_moment_saves_what_resumes_exactly(
    shards, tmp_path, undisturbed, hook, accumulate, preemption_first
):
    shape = {"accumulate_grad_batches": accumulate, "val_check_interval": 3}
    whole, final = undisturbed(**shape)
    strike = Strike(hook, 1)
    guards = [Preemption()] if preemption_first else []
    if preemption_first:  # before EMA, as a config may list it
        trainer = make_trainer(tmp_path / "cut", strike, **shape)
        trainer.callbacks = guards + trainer.callbacks
        with pytest.raises(Preempted) as ended:
            trainer.fit(Tiny(), make_data(shards))
    else:
        with pytest.raises(Preempted) as ended:
            fit(shards, tmp_path / "cut", strike, **shape)
    assert ended.value.code == 143
    cut = tmp_path / "cut" / "last.ckpt"
    seen, again = fit(shards, tmp_path / "cut", resume=cut, **shape)
    assert seen == whole[len(whole) - len(seen) :]
    assert not find_difference(again, final)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_of_a_save_waits_for_its_end(shards, tmp_path, number):
    """In a process of its own, because an exception in torch's writer would abort it."""

    def train(queue) -> None:
        import unigs.checkpoints as module

        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs

        write = module._Writer.write

        def strike(self, data):
            if not queue.empty():
                queue.get()
                os.kill(os.getpid(), number)
            return write(self, data)

        module._Writer.write = strike
        saver = {"every_n_epochs": 1, "save_on_train_epoch_end": True, "filename": "{epoch}"}
        fit(shards, tmp_path, saver=saver, max_epochs=2)

    context = get_context("fork")
    queue = context.Queue()
    queue.put(1)
    run = context.Process(target=train, args=(queue,))
    run.start()
    run.join(60)
    assert run.exitcode in (143, 1)  # Lightning ends with 1 at an interrupt
    assert read_checkpoint(tmp_path / "epoch=0.ckpt")["global_step"] == STEPS_PER_EPOCH


def test_a_signal_before_the_first_step_ends_with_words(shards, tmp_path, capfd):
    with pytest.raises(Preempted) as ended:
        fit(shards, tmp_path, Strike("on_sanity_check_start", 0), num_sanity_val_steps=2)
    assert ended.value.code == 143
    assert "nothing to save" in capfd.readouterr().out
    assert not list(tmp_path.glob("*.ckpt"))


def test_a_signal_is_heeded_while_validating_and_saves_the_trained_weights(shards, tmp_path):
    class Slow(Tiny):
        def validation_step(self, batch, batch_idx) -> None:
            time.sleep(0.5)

    strike = Strike("on_validation_batch_start", 5)
    with pytest.raises(Preempted):
        fit(shards, tmp_path / "cut", strike, model=Slow())
    assert time.monotonic() - strike.struck_at < 2  # eight batches take four seconds
    fit(shards, tmp_path / "whole", saver={"every_n_train_steps": 5, "save_top_k": -1,
                                                      "filename": "{step}"})  # fmt: skip
    expected = read_state(tmp_path / "whole" / "step=5.ckpt")
    assert not find_difference(read_state(tmp_path / "cut" / "last.ckpt"), expected)


def test_a_signal_is_heeded_while_the_loader_does_not_deliver(shards, tmp_path, short_farewell):
    data = make_data(shards, num_workers=1)
    hang_from(data, 12)
    started = time.monotonic()
    with pytest.raises(Preempted) as ended:
        fit(shards, tmp_path, Alarm(2, 1.5), data=data)
    assert ended.value.moment == "data"
    assert time.monotonic() - started < 60
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] > 0


@pytest.fixture
def short_farewell(monkeypatch):
    """torch waits so long for a loader process that hangs before it ends it by force."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)


class Alarm(Callback):
    """Sends SIGTERM a while after a step, from another thread."""

    def __init__(self, step: int, after_s: float) -> None:
        self.step, self.after_s = step, after_s

    def on_train_batch_end(self, trainer, *args) -> None:
        if trainer.global_step == self.step:
            import threading

            threading.Timer(self.after_s, os.kill, (os.getpid(), signal.SIGTERM)).start()


def hang_from(data: UniGSData, index: int) -> None:
    """Let the loader processes hang at a sample, as they do without shared memory."""
    make = data.make_dataset

    def make_hanging(split, augment, ratios):
        dataset = make(split, augment, ratios)
        inner = dataset.make_sample

        def hang(record, task, at):
            if at >= index:
                time.sleep(3600)
            return inner(record, task, at)

        dataset.make_sample = hang
        return dataset

    data.make_dataset = make_hanging


def test_a_loader_that_does_not_deliver_ends_the_run_with_words_and_what_it_had(
    shards, tmp_path, monkeypatch, short_farewell
):
    data = make_data(shards, num_workers=1)
    hang_from(data, 12)
    make = data.train_dataloader

    def make_impatient():
        loader = make()
        loader.timeout_s = 1.0
        return loader

    monkeypatch.setattr(data, "train_dataloader", make_impatient)
    with pytest.raises(LoaderStuck, match="shared memory"):
        fit(shards, tmp_path, data=data)
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] > 0


def test_loaders_that_are_made_anew_go_on_and_a_new_fit_begins_anew(shards, tmp_path, undisturbed):
    data = make_data(shards)
    whole, final = undisturbed()
    seen, again = fit(shards, tmp_path / "reloaded", data=data, reload_dataloaders_every_n_epochs=1)
    assert seen == whole
    assert not find_difference(again, final)
    seen, _ = fit(shards, tmp_path / "new", data=data)
    assert seen == whole


def test_weights_alone_are_no_checkpoint_to_resume_from(shards, tmp_path):
    saver = {"save_weights_only": True, "every_n_train_steps": 4, "filename": "{step}"}
    trainer = make_trainer(tmp_path, saver=saver, max_steps=4)
    trainer.fit(Tiny(), make_data(shards))
    with pytest.raises(UnigsError, match="weights alone"):
        fit(shards, tmp_path / "again", resume=tmp_path / "step=4.ckpt")
    (tmp_path / "last.ckpt").unlink()
    run = describe_run(trainer, Tiny(), make_data(shards))
    found, skipped = find_last([tmp_path], run)
    assert found is None
    assert "weights alone" in skipped[0]


@pytest.mark.parametrize("ending", [{"max_epochs": 3}, {"max_steps": 13}], ids=str)
def test_the_end_of_a_run_is_saved(shards, tmp_path, ending):
    seen, final = fit(shards, tmp_path, saver={"every_n_train_steps": 4}, **ending)
    assert final["global_step"] == len(seen) // 4 == (13 if "max_steps" in ending else 15)
    assert final["stream"]["next_index"] == len(seen)


# --- what may change on resume -------------------------------------------------------------------


def resume_with(shards, folder, data=None, model=None, **changes):
    """Train four steps more from step 5, the end of an epoch, with something changed."""
    if not (folder / "last.ckpt").exists():
        fit(shards, folder, max_epochs=1, saver={"every_n_epochs": 1})
    with pytest.warns() as warned:
        fit(shards, folder.with_name("again"), resume=folder / "last.ckpt", data=data, model=model,
            max_epochs=2, **changes)  # fmt: skip
    return " ".join(str(one.message) for one in warned)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("data.seed", {"seed": 1}),
        ("data.mixture", {"task_ratios": {"entity": 1.0}}),
        ("data.mixture", {"window_shards": 3}),
        ("data.manifests", {"train_split": "val"}),
        ("data.tasks.resolution_px", {"tasks": TaskOptions(40, max_painted=9)}),
        ("data.tasks.max_painted", {"tasks": TaskOptions(32, max_painted=16)}),
        ("data.tasks.negative_probability", {"tasks": TaskOptions(32, 4, 0.5, max_painted=9)}),
    ],
)
def test_what_would_be_another_run_is_refused_by_name(shards, tmp_path, name, changes):
    with pytest.raises(OtherRun, match=re.escape(name)):
        resume_with(shards, tmp_path / "first", data=make_data(shards, **changes))


def test_another_system_is_refused_by_name(shards, tmp_path):
    class Other(Tiny):
        pass

    with pytest.raises(OtherRun, match="system"):
        resume_with(shards, tmp_path / "first", model=Other())


@pytest.mark.parametrize(
    ("name", "data", "trainer"),
    [
        ("data.global_batch_size", {"global_batch_size": 8}, {}),
        ("data.steps_per_epoch", {"steps_per_epoch": 7}, {}),
        ("trainer.accumulate_grad_batches", {}, {"accumulate_grad_batches": 2}),
        ("trainer.gradient_clip_val", {}, {"gradient_clip_val": 0.5}),
        ("trainer.gradient_clip_algorithm", {}, {"gradient_clip_algorithm": "value"}),
        ("trainer.limit_train_batches", {}, {"limit_train_batches": 3}),
    ],
)
def test_what_changes_the_bits_is_told(shards, tmp_path, name, data, trainer):
    words = resume_with(shards, tmp_path / "first", data=make_data(shards, **data), **trainer)
    assert "no longer bit for bit" in words
    assert name in words


def test_a_run_without_changes_is_not_warned_of_any(shards, tmp_path):
    assert "other options" not in resume_with(shards, tmp_path / "first")


def test_the_page_says_of_every_option_what_a_change_does(shards):
    rules = TRAINER_RULES | UniGS.ON_RESUME | UniGSData.ON_RESUME
    page = (ROOT / "docs" / "promises.md").read_text("utf-8")
    table = dict.fromkeys(("refused", "warned", "taken"), "")
    for rule, names in re.findall(r"^\| (refused|warned|taken) \| (.*) \|$", page, re.M):
        table[rule] += names
    for name, rule in rules.items():
        assert f"`{name}`" in table[rule] or f"`{name}.*`" in table[rule], name
    run = describe_run(make_trainer(Path("none")), UniGS("base"), make_data(shards))
    for name in run.options:
        group = name.rpartition(".")[0]
        rule = find_rule(name, rules)
        assert f"`{name}`" in table[rule] or f"`{group}.*`" in table[rule], name


# --- one folder, one run -------------------------------------------------------------------------


def test_a_folder_of_another_run_is_refused_before_anything_is_written(shards, tmp_path):
    fit(shards, tmp_path, max_epochs=1)
    before = (tmp_path / "last.ckpt").read_bytes()
    with pytest.raises(OtherRun, match=r"data\.mixture"):
        fit(shards, tmp_path, data=make_data(shards, task_ratios={"entity": 1.0}))
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_a_link_to_the_last_checkpoint_is_replaced_and_never_followed(shards, tmp_path):
    """The end of a run is written beside the file that the link named, which stays whole."""
    saver = {"every_n_train_steps": 4, "save_last": "link", "filename": "{step}"}
    saver["enable_version_counter"] = False
    fit(shards, tmp_path, saver=saver, max_steps=4)
    assert (tmp_path / "last.ckpt").readlink() == Path("step=4.ckpt")
    fit(shards, tmp_path, saver=saver, max_steps=5, resume=tmp_path / "last.ckpt")
    assert not (tmp_path / "last.ckpt").is_symlink()
    steps = {p.name: read_checkpoint(p)["global_step"] for p in tmp_path.glob("*.ckpt")}
    assert steps == {"step=4.ckpt": 4, "last.ckpt": 5}


def test_a_damaged_record_is_told(shards, tmp_path):
    fit(shards, tmp_path, max_epochs=1)
    (tmp_path / "run.json").write_text("[")
    with pytest.raises(UnigsError, match=r"run\.json"):
        fit(shards, tmp_path)


def _train_slowly(shards, folder, event) -> None:
    class Slow(Tiny):
        def training_step(self, batch, batch_idx):
            event.set()
            time.sleep(0.3)
            return super().training_step(batch, batch_idx)

    fit(shards, folder, model=Slow())


def test_two_runs_in_one_folder_are_refused(shards, tmp_path):
    context = get_context("fork")
    event = context.Event()
    other = context.Process(target=_train_slowly, args=(shards, tmp_path, event))
    other.start()
    try:
        assert event.wait(60)
        with pytest.raises(FolderBusy, match=f"process {other.pid}"):
            fit(shards, tmp_path)
    finally:
        other.kill()
        other.join()


def test_a_folder_is_free_again_after_a_run_however_it_ended(shards, tmp_path):
    fit(shards, tmp_path, max_epochs=1)
    with pytest.raises(Preempted):
        fit(shards, tmp_path, Strike("on_train_batch_end", 7), resume=tmp_path / "last.ckpt")
    with lock_folder(tmp_path, "test"):
        pass


def test_last_is_the_newest_whole_checkpoint_of_this_run(shards, tmp_path):
    fit(shards, tmp_path, saver={"every_n_train_steps": 4, "save_top_k": -1, "filename": "{step}"})
    fit(shards, tmp_path / "other", data=make_data(shards, seed=1), max_epochs=1)
    (tmp_path / "last-backup.ckpt").write_bytes((tmp_path / "other" / "last.ckpt").read_bytes())
    last = tmp_path / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    found, skipped = find_last(
        [tmp_path], describe_run(make_trainer(tmp_path), Tiny(), make_data(shards))
    )
    assert found == tmp_path / "step=12.ckpt"
    assert len(skipped) == 2
    assert "last.ckpt (a file that is cut" in " ".join(skipped)
    assert "data.seed 0 (saved with 1)" in " ".join(skipped)


# --- nothing that is not finite ------------------------------------------------------------------


class Poisoned(Tiny):
    """Its loss is not finite at some steps."""

    def __init__(self, steps: tuple[int, ...] = (), value: float = float("nan")) -> None:
        super().__init__()
        self.poison = dict.fromkeys(steps, value)

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * self.poison.get(self.global_step, 1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_step_that_is_not_finite_stops_the_run(shards, tmp_path, value):
    with pytest.raises(NotFinite, match=r"step 8: loss .* tasks .* samples .*-") as stopped:
        fit(shards, tmp_path, model=Poisoned((7,), value), saver={"every_n_train_steps": 3})
    assert "No weight was touched" in str(stopped.value)
    saved = read_checkpoint(tmp_path / "last.ckpt")
    assert saved["global_step"] == 7
    assert all(torch.isfinite(weight).all() for weight in saved["state_dict"].values())


def test_a_gradient_that_is_not_finite_stops_the_run_too(shards, tmp_path):
    class Rooted(Tiny):
        def training_step(self, batch, batch_idx):
            zero = (self.network[0].weight * 0).sum()
            return super().training_step(batch, batch_idx) + zero.sqrt()  # 0, its slope is not

    with pytest.raises(NotFinite, match="gradient"):
        fit(shards, tmp_path, model=Rooted())


def test_steps_may_be_skipped_and_are_counted_over_a_resume(shards, tmp_path, capsys):
    steps = (3, 7)
    _, final = fit(shards, tmp_path / "a", FiniteSteps(skip_steps=2), model=Poisoned(steps))
    assert capsys.readouterr().out.count("skipped a step") == 2
    again = {"saver": {"every_n_train_steps": 5, "save_top_k": -1, "filename": "{step}"}}
    fit(shards, tmp_path / "b", FiniteSteps(skip_steps=2), model=Poisoned(steps), **again)
    resume = tmp_path / "b" / "step=5.ckpt"
    _, resumed = fit(shards, tmp_path / "c", FiniteSteps(skip_steps=2), resume=resume,
                     model=Poisoned(steps))  # fmt: skip
    assert not find_difference(resumed, final)
    with pytest.raises(NotFinite):
        fit(shards, tmp_path / "d", FiniteSteps(skip_steps=1), resume=resume, model=Poisoned(steps))


def test_weights_that_are_not_finite_are_never_saved(shards, tmp_path):
    class Broken(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args) -> None:
            if trainer.global_step == 7:
                with torch.no_grad():
                    pl_module.network[2].bias[3] = float("nan")

    with pytest.raises(NotFinite, match=r"network\.2\.bias"):
        fit(shards, tmp_path, Broken(), saver={"every_n_train_steps": 1, "filename": "{step}"})
    assert read_checkpoint(tmp_path / "step=6.ckpt")["global_step"] == 6
    assert not list(tmp_path.glob("*.tmp"))


def test_a_bad_sample_stops_the_run_with_its_words_and_saves(shards, tmp_path):
    data = make_data(shards)
    make = data.make_dataset

    def make_failing(split, augment, ratios):
        dataset = make(split, augment, ratios)
        inner = dataset.make_sample
        dataset.make_sample = lambda record, task, at: inner(record, task, at) if at < 30 else 1 / 0
        return dataset

    data.make_dataset = make_failing
    with pytest.raises(UnigsError, match="ZeroDivisionError"):
        fit(shards, tmp_path, data=data)
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 7


@pytest.mark.slow
def test_runs_struck_at_random_end_like_runs_left_alone():
    """tools/fault_harness.py for some minutes; UNIGS_FAULT_MINUTES says how many."""
    import subprocess

    minutes = os.environ.get("UNIGS_FAULT_MINUTES", "3")
    seed = str(int(time.time()) % 10**6)
    command = [sys.executable, str(ROOT / "tools" / "fault_harness.py"), "--minutes", minutes]
    done = subprocess.run([*command, "--seed", seed], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
