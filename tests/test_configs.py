"""Every file in configs/ opens with its two lines, parses, and instantiates."""

from __future__ import annotations

from functools import cache
from itertools import chain
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml

from unigs.systems.joint.module import Compute
from unigs.systems.joint.objective import Objective
from unigs.systems.sampling import Sampling
from unigs.verbs.fit import RANK_TIMEOUT, make_cli

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
OVERLAYS = {"inpainting", "synthesis", "referring", "entity"}
SMALL = {"gpu-24gb", "gpu-24gb-8bit", "gpu-16gb", "lora"}
BASES = {
    **dict.fromkeys(OVERLAYS | SMALL, "joint"),
    "ablation": "benchmark",
    "fsdp2": "joint",
    "gss-ade20k": "gss",
    "gss-cityscapes": "gss",
    "gss-ft-w": "gss-benchmark",
    "entity-benchmark": "benchmark",
    "pix2seq-d-video": "pix2seq-d",
    "pix2seq-d-video-benchmark": "pix2seq-d-benchmark",
}
"""Config that is laid over another -> that one."""
CPU = ["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.devices=1"]
RECORDS = {"objective": Objective, "compute": Compute, "sampling.all": Sampling}
"""Of the joint model: option -> record."""


def words_for(path: Path) -> list[str]:
    base = BASES.get(path.stem)
    files = [path.with_stem(base), path] if base else [path]
    return ["fit", *(word for file in files for word in ("--config", str(file)))]


@cache
def instantiate(path: Path):
    """The command line of a config, on a CPU."""
    return make_cli([*words_for(path), *CPU], run=False)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_opens_with_what_it_trains_and_on_what(path):
    first, second = path.read_text().splitlines()[:2]
    assert first.startswith("# ")
    assert second.startswith("# ")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_parses_and_instantiates(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cli = instantiate(path)
    assert cli.trainer.max_epochs or cli.trainer.max_steps > 0
    assert not cli.trainer._accelerator_connector.use_distributed_sampler


@pytest.mark.parametrize("joined", [True, False])
def test_what_may_be_null_in_a_record_can_be_said_to_be(joined, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    fields = [
        f"{record}.{name}"
        for record, kind in RECORDS.items()
        for name, hint in get_type_hints(kind).items()
        if type(None) in get_args(hint)
    ]
    words = [["--model." + field, "null"] for field in fields]
    words += [["--model.sampling.entity", '{"ensemble_size": null, "num_inference_steps": 2}']]
    path = next(p for p in CONFIGS if p.stem == "benchmark")
    spelt = ["=".join(pair) for pair in words] if joined else [*chain(*words)]
    said = make_cli([*words_for(path), *CPU, *spelt], run=False).config.fit.model.init_args
    assert {field: said[field] for field in fields} == dict.fromkeys(fields)
    assert said.sampling["entity"].ensemble_size is None
    assert said.sampling["entity"].num_inference_steps == 2


@pytest.mark.parametrize("task", sorted(OVERLAYS))
def test_an_overlay_trains_its_task_alone(task, monkeypatch, tmp_path):
    path = next(p for p in CONFIGS if p.stem == task)
    monkeypatch.chdir(tmp_path)
    cli = instantiate(path)
    assert cli.datamodule.task_ratios == {task: 1.0}
    assert cli.trainer.max_epochs == 48
    assert cli.model.hparams.base.startswith("stable-diffusion-v1-5/")


def test_a_rank_that_is_left_alone_gives_up_after_minutes(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = [*words_for(CONFIGS[0].parent / "joint.yaml"), "--trainer.precision=32-true"]
    cli = make_cli([*words, "--trainer.accelerator=cpu", "--trainer.devices=2"], run=False)
    assert cli.trainer.strategy._timeout == RANK_TIMEOUT
    assert cli.trainer.strategy._ddp_kwargs["gradient_as_bucket_view"]


def test_joint_is_the_papers_recipe():
    joint = yaml.safe_load((CONFIGS[0].parent / "joint.yaml").read_text())
    data = joint["data"]["init_args"]
    assert data["task_ratios"] == {
        "inpainting": 0.3, "synthesis": 0.3, "referring": 0.2, "entity": 0.2,
    }  # fmt: skip
    assert data["tasks"]["resolution_px"] == 512
    assert joint["trainer"]["max_epochs"] == 96
    assert set(data["source_weights"]["entity"]) == {"coco-panoptic", "entityseg"}
