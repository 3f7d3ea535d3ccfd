"""What a run shows in a logger: panels in any that takes pictures, and the learning rate."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger
from test_training import ONE_STEP, make_data, make_model, make_trainer

from unigs.callbacks import SampledValidation
from unigs.callbacks.validation import log_panel
from unigs.records import TASKS

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
