"""What a run shows in a logger: panels in any that takes pictures, and the learning rate."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from test_training import ONE_STEP, make_data, make_model, make_trainer

from unigs.callbacks import SampledValidation
from unigs.callbacks.validation import log_panel
from unigs.records import TASKS
from unigs.verbs.fit import HUSHED, hush

PANEL = np.random.default_rng(0).integers(0, 256, (3, 5, 7), np.uint8)


class PictureLogger(CSVLogger):
    """A logger with the method by which Weights & Biases takes pictures; keeps all it is told."""

    def __init__(self, folder) -> None:
        super().__init__(folder)
        self.pictures, self.rates = {}, {}

    def log_image(self, key, images, step=None, **more) -> None:
        self.pictures[key] = (images, step)

    def log_metrics(self, metrics, step=None) -> None:
        self.rates.update((step, rate) for name, rate in metrics.items() if name.startswith("lr"))
        super().log_metrics(metrics, step)


def test_a_panel_is_the_same_in_every_logger(tmp_path):
    theirs = PictureLogger(tmp_path)
    log_panel(theirs, "val/entity", PANEL, 3)
    (picture,), step = theirs.pictures["val/entity"]
    np.testing.assert_array_equal(np.asarray(picture), PANEL.transpose(1, 2, 0))
    assert step == 3
    seen = []
    board = SimpleNamespace(add_image=lambda *told: seen.append(told))
    log_panel(SimpleNamespace(experiment=board), "val/entity", PANEL, 3)
    assert seen == [("val/entity", PANEL, 3)]
    log_panel(SimpleNamespace(experiment=None), "val/entity", PANEL, 3)  # takes none


def test_weights_and_biases_takes_it_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    log_panel(logger, "val/entity", PANEL, 3)
    logger.experiment.finish()
    assert list(tmp_path.rglob("*.png"))


SAID = {
    "pytorch/utilities/_pytree.py": "`isinstance(treespec, LeafSpec)` is deprecated, use ...",
    "pytorch/loops/fit_loop.py": "Found 506 module(s) in eval mode at the start of training. This",
    "pytorch/trainer/connectors/data_connector.py": "The 'x' does not have many workers which",
    "pytorch/callbacks/model_checkpoint.py": "Checkpoint directory runs/x exists and is not empty.",
}


def test_only_what_no_user_can_act_on_is_hushed(monkeypatch):
    others = ["Found NaN in the loss", "a directory exists and is not empty", "The 'x' has workers"]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        hush()
        for said in [*SAID.values(), *others]:
            warnings.warn(said, stacklevel=1)
    assert [str(one.message) for one in seen] == others
    told: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: told.append(record.getMessage()))
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    monkeypatch.setattr(log, "handlers", [handler])
    for said in ("💡 Tip: buy", "TPU available: False, using: 0", "GPU available: False"):
        rank_zero_info(said)
    assert told == ["GPU available: False"]


def test_what_is_hushed_is_still_said():
    """Words that Lightning has changed would be shown again, and these lines be dead."""
    root = Path(lightning.__file__).parent
    for (file, said), words in zip(SAID.items(), HUSHED, strict=True):
        if "LeafSpec" in said:  # torch's own words about a line of this file
            assert "LeafSpec" in (root / file).read_text()
            continue
        for part in re.split(r"\{\}|'", words):
            assert part.strip() in (root / file).read_text(), file


def test_a_run_shows_panels_and_its_learning_rate(base, shards, tmp_path):
    logger = PictureLogger(tmp_path)
    trainer = make_trainer(
        tmp_path, logger=logger, max_steps=2, log_every_n_steps=1, limit_val_batches=4,
        callbacks=[SampledValidation(ONE_STEP, pictures=1)],
    )  # fmt: skip
    model = make_model(base, warmup_steps=4)
    trainer.fit(model, make_data(shards, steps_per_epoch=2))
    assert set(logger.pictures) == {f"val/{task}" for task in TASKS}
    assert all(step == 2 for _, step in logger.pictures.values())
    expected = {step: 1e-3 * model.optimizer.rate_at(step) for step in (0, 1)}
    assert logger.rates == pytest.approx(expected)
