"""Runs as clusters start and end them, on one machine: Slurm's script, torchrun's agents, Ray."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from builders import build_unigs

from unigs.checkpoints import read_checkpoint
from unigs.promises import PREEMPTED_EXIT_CODE
from unigs.verbs.fit import read_topology

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
from fault_harness import find_difference, pick_port  # noqa: E402

STEPS, LIMIT_S = 30, 900


@pytest.fixture
def config(base, shards, tmp_path) -> Path:
    """The joint model, small, which saves every third step; its checkpoints lie beside it."""
    return write_config(base, shards, tmp_path / "run")


def write_config(base, shards, folder: Path) -> Path:
    callbacks = [
        {"class_path": "unigs.callbacks.EMA", "init_args": {"decay": 0.9}},
        {"class_path": "unigs.callbacks.Preemption", "init_args": {"every_n_steps": 1}},
        {
            "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {"dirpath": str(folder), "save_last": True, "every_n_train_steps": 3},
        },
    ]
    data = {
        "shards": [str(shards)],
        "tasks": {"resolution_px": 32},
        "loading": {"global_batch_size": 4, "num_workers": 0, "steps_per_epoch": 1000},
    }
    model = {"base": str(base), "optimizer": {"learning_rate": 1e-3, "warmup_steps": 1}}
    trainer = {
        "accelerator": "cpu", "max_steps": STEPS, "logger": False, "limit_val_batches": 0,
        "num_sanity_val_steps": 0, "enable_progress_bar": False, "enable_model_summary": False,
        "default_root_dir": str(folder), "callbacks": callbacks,
    }  # fmt: skip
    told = {
        "model": {"class_path": "unigs.systems.UniGS", "init_args": model},
        "data": {"class_path": "unigs.data.UniGSData", "init_args": data},
        "trainer": trainer,
        "ckpt_path": "last",
    }
    folder.mkdir(parents=True)
    (folder / "config.in.yaml").write_text(yaml.safe_dump(told))
    return folder / "config.in.yaml"


def wait_for(happened, what: str, process: subprocess.Popen) -> None:
    start = time.monotonic()
    while not happened():
        assert process.poll() is None, f"ended before {what}"
        assert time.monotonic() - start < LIMIT_S, f"no {what}"
        time.sleep(0.1)


def read_end(folder: Path) -> dict:
    content = read_checkpoint(folder / "last.ckpt")
    parts = {name: content[name] for name in ("global_step", "state_dict", "optimizer_states")}
    return parts | {"average": content["callbacks"]["EMA"], "stream": content["UniGSData"]}


def measure_drift(end: dict, other: dict, base: str) -> float:
    """The distance of two averages, as a share of how far training moved one from its start.

    A weight at a time says less: where a gradient is rounding alone, AdamW makes steps of it.
    """
    model = build_unigs(base)
    model.configure_model()
    start = dict(model.unet.named_parameters())
    mine, theirs = end["average"]["weights"], other["average"]["weights"]
    gap = sum((mine[name] - theirs[name]).square().sum() for name in theirs)
    way = sum((start[name].detach() - theirs[name]).square().sum() for name in theirs)
    return float(gap / way) ** 0.5


def list_children(parent: int) -> list[int]:
    """Processes that a process started, and that these started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = int(entry.parent.name), entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(rest[1]) == parent:
            found += [pid, *list_children(pid)]
    return found


# --- torchrun ---


REJOIN = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Without it a new agent waits for an address that an old one tells in its first round only."""


class Agents:
    """torchrun's agents, one a node, on this machine."""

    def __init__(self, folder: Path, nodes: str) -> None:
        self.folder, self.nodes, self.port = folder, nodes, pick_port()
        self.started: list[subprocess.Popen] = []

    def start(self, config: Path) -> subprocess.Popen:
        words = [
            f"--nnodes={self.nodes}", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=test",
            f"--rdzv-endpoint=127.0.0.1:{self.port}", "--local-addr=127.0.0.1", "--max-restarts=3",
            "-m", "unigs", "fit", "--config", str(config),
        ]  # fmt: skip
        log = open(self.folder / f"agent{len(self.started)}.log", "wb")  # noqa: SIM115
        command = [sys.executable, "-m", "torch.distributed.run", *words]
        environment = os.environ | {"OMP_NUM_THREADS": "1", **REJOIN}
        self.started.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
        return self.started[-1]

    def end(self, agent: subprocess.Popen) -> None:
        """As a machine ends that loses its power: nobody is told."""
        for pid in [agent.pid, *list_children(agent.pid)]:
            os.kill(pid, signal.SIGKILL)
        agent.wait()

    def read(self) -> str:
        return "\n".join(log.read_text() for log in sorted(self.folder.glob("agent*.log")))


@pytest.fixture
def agents(tmp_path, request):
    group = Agents(tmp_path, request.param)
    yield group
    for agent in group.started:
        if agent.poll() is None:
            group.end(agent)


@pytest.fixture(scope="module")
def undisturbed(base, shards, tmp_path_factory) -> dict:
    """The end of the run on two nodes that nobody touched."""
    folder = tmp_path_factory.mktemp("undisturbed")
    group = Agents(folder, "2")
    config = write_config(base, shards, folder / "run")
    both = [group.start(config), group.start(config)]
    assert [agent.wait(LIMIT_S) for agent in both] == [0, 0], group.read()
    return read_end(config.parent)


@pytest.mark.slow
@pytest.mark.parametrize("agents", ["2"], indirect=True)
def test_a_node_that_is_lost_and_comes_back_changes_nothing(agents, config, undisturbed):
    """The other agent starts its rank again by itself, and both go on from the last checkpoint."""
    first = agents.start(config)
    second = agents.start(config)
    last = config.parent / "last.ckpt"
    wait_for(last.exists, "checkpoint", first)
    agents.end(second)
    assert read_end(config.parent)["global_step"] < STEPS
    again = agents.start(config)
    assert [first.wait(LIMIT_S), again.wait(LIMIT_S)] == [0, 0], agents.read()
    assert "resuming from" in agents.read()
    assert not find_difference(read_end(config.parent), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("agents", ["1:2"], indirect=True)
def test_elastic_nodes_keep_the_global_batch(agents, config, undisturbed, base):
    """Two nodes, then one: the same samples, and weights that differ by rounding."""
    first = agents.start(config)
    second = agents.start(config)
    wait_for((config.parent / "last.ckpt").exists, "checkpoint", first)
    agents.end(second)
    assert first.wait(LIMIT_S) == 0, agents.read()
    assert "resuming from" in agents.read()
    end = read_end(config.parent)
    assert end["global_step"] == STEPS
    assert end["stream"] == undisturbed["stream"]
    assert measure_drift(end, undisturbed, base) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("agents", ["1"], indirect=True)
def test_torchrun_turns_preemption_into_failure_and_the_next_start_resumes(
    agents, config, undisturbed
):
    """So whatever starts torchrun starts it again on any failure, a bounded number of times."""
    agent = agents.start(config)
    wait_for((config.parent / "last.ckpt").exists, "checkpoint", agent)
    agent.terminate()
    assert agent.wait(LIMIT_S) not in (0, PREEMPTED_EXIT_CODE)
    wait_for(lambda: "saved" in agents.read(), "word of what was saved", agents.start(config))
    assert agents.started[-1].wait(LIMIT_S) == 0, agents.read()
    assert read_end(config.parent)["stream"] == undisturbed["stream"]


def test_nodes_are_those_that_torchrun_started(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert read_topology() == {}
    for name, value in {
        "TORCHELASTIC_RUN_ID": "x", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "8",
        "GROUP_WORLD_SIZE": "3",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert read_topology() == {"num_nodes": 3, "devices": 8}


# --- Slurm ---

SRUN = """#!{python}
import os, signal, subprocess, sys

words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
tasks = [
    subprocess.Popen(words, env=os.environ | {{
        "SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank), "SLURM_LOCALID": "0",
    }})
    for rank in range(int(os.environ["SLURM_NTASKS"]))
]
signal.signal(signal.SIGUSR1, lambda *_: [task.send_signal(signal.SIGUSR1) for task in tasks])
open("srun.pid", "w").write(str(os.getpid()))
sys.exit(max(task.wait() for task in tasks))
"""


def write_stand_ins(folder: Path) -> dict[str, str]:
    """Commands of Slurm and of the image, and what Slurm tells a job of two nodes."""
    scripts = {
        "srun": SRUN.format(python=sys.executable),
        "scontrol": f'#!/bin/sh\necho "$@" >> {folder}/scontrol.txt\n',
        "unigs": f'#!/bin/sh\nexec {sys.executable} -m unigs "$@"\n',
    }
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    slurm = {
        "JOB_ID": str(10000 + os.getpid() % 10000), "JOB_NAME": "unigs",
        "NNODES": "2", "NTASKS": "2", "NTASKS_PER_NODE": "1", "CPUS_PER_TASK": "1",
        "NODELIST": "127.0.0.1",
    }  # fmt: skip
    told = {f"SLURM_{name}": value for name, value in slurm.items()}
    paths = {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return os.environ | told | paths | {"IMAGE": "i", "DATA": "d", "RUNS": "r"}


@pytest.mark.slow
def test_a_slurm_job_that_is_preempted_goes_on_bit_for_bit(config, undisturbed, tmp_path):
    """The batch script itself: two tasks, SIGUSR1 before the time limit, requeue, resume."""
    environment = write_stand_ins(tmp_path) | {"CONFIG": str(config)}
    job = ["bash", str(ROOT / "docker" / "job.slurm")]
    with open(tmp_path / "job.log", "wb") as log:
        options = {"cwd": tmp_path, "env": environment, "stdout": log, "stderr": log}
        first = subprocess.Popen(job, **options)
        wait_for((config.parent / "last.ckpt").exists, "checkpoint", first)
        os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGUSR1)
        told = lambda: (tmp_path / "job.log").read_text()
        assert first.wait(LIMIT_S) == PREEMPTED_EXIT_CODE, told()
        requeued = (tmp_path / "scontrol.txt").read_text()
        assert requeued == f"requeue {environment['SLURM_JOB_ID']}\n"
        assert read_end(config.parent)["global_step"] < STEPS
        assert subprocess.run(job, **options).returncode == 0, told()
    assert "resuming from" in told()
    assert not find_difference(read_end(config.parent), undisturbed)


# --- Ray ---


@pytest.mark.slow
def test_shards_of_ray_are_those_of_one_machine_to_the_byte(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "600")  # a busy machine is no broken one
    from unigs.shards import write_shards
    from unigs.synthetic import write_datasets

    ray = pytest.importorskip("ray")
    spec = importlib.util.spec_from_file_location("shards_on_ray", ROOT / "tools/shards_on_ray.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    write_datasets(tmp_path / "data", images=12, val_images=6, size_px=64)
    sets = {name: str(tmp_path / "data" / name) for name in ("coco", "openimages", "entityseg")}
    write_shards(out=str(tmp_path / "one"), samples_per_shard=3, workers=1, **sets)
    words = [f"--{name}={folder}" for name, folder in sets.items()]
    runtime = {"env_vars": {"PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}"}}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env=runtime)
    try:
        options = [*words, "--samples_per_shard=3"]
        assert tool.write_parts(str(tmp_path / "many"), 3, 1, options) == 0
        assert tool.write_parts(str(tmp_path / "bad"), 2, 1, ["--coco=nowhere"]) == 1
    finally:
        ray.shutdown()
    one, many = (
        {
            p.relative_to(root): p.read_bytes()
            for p in root.rglob("*")
            if p.suffix in (".tar", ".npy")
        }
        for root in (tmp_path / "one", tmp_path / "many")
    )
    assert one == many
    assert len(one) > 6
    for name in ("manifest.json", "folders.json"):
        for path in (tmp_path / "one").rglob(name):
            other = tmp_path / "many" / path.relative_to(tmp_path / "one")
            assert path.read_bytes() == other.read_bytes()
