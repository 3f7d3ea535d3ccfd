"""The image and the job templates agree: with Lightning, with schedulers, with each other."""

from __future__ import annotations

import fnmatch
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from unigs.promises import PREEMPTED_EXIT_CODE

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
TEMPLATES = (
    "Dockerfile", "compose.yaml", "job.slurm", "array.slurm", "kubernetes.yaml",
    "kubernetes-shards.yaml", "trainjob.yaml",
)  # fmt: skip


def read_instructions() -> list[tuple[str, str]]:
    """(instruction, rest) of the Dockerfile, continuation lines joined."""
    text = (DOCKER / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line]  # type: ignore[misc]


def read_code(name: str) -> str:
    """A template without its comments."""
    lines = (DOCKER / name).read_text().splitlines()
    return "\n".join(re.sub(r"(^|\s)#.*", "", line) for line in lines)


def read_options(words: list[str]) -> dict[str, str]:
    """``--name=value`` words as a dict."""
    return dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)


def seconds(time: str) -> int:
    return int(time[:-1]) * {"s": 1, "m": 60, "h": 3600}[time[-1]]


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def job() -> dict:
    documents = list(yaml.safe_load_all((DOCKER / "kubernetes.yaml").read_text()))
    return {document["kind"]: document for document in documents}


def test_templates_open_with_purpose_and_hardware() -> None:
    for name in TEMPLATES:
        lines = (DOCKER / name).read_text().removeprefix("#!/bin/bash\n").splitlines()
        opening = "\n".join(lines[: next(i for i, x in enumerate(lines) if x[:1] != "#")])
        assert re.search(r"Hardware:|CPU cores", opening), name


def test_no_path_of_one_machine() -> None:
    for path in [*DOCKER.iterdir(), ROOT / ".dockerignore"]:
        if path.is_file():
            found = re.findall(r"/(?:root|home|work|Users|mnt)/[^\s:,]*", path.read_text())
            ours = ("/home/unigs", "/root/.cache/uv")
            assert not [place for place in found if not place.startswith(ours)], path


# ------------------------------------------------------------------ image


def test_base_is_an_argument() -> None:
    instructions = read_instructions()
    assert instructions[0][0] == "ARG"
    assert instructions[0][1].startswith("BASE=")
    froms = [rest.split()[0] for word, rest in instructions if word == "FROM"]
    assert set(froms) == {"${BASE}"}


def test_image_ends_as_a_user_of_any_uid() -> None:
    words = [word for word, _ in read_instructions()]
    final = read_instructions()[len(words) - 1 - words[::-1].index("FROM") :]
    user = next(i for i, (word, _) in enumerate(final) if word == "USER")
    assert int(final[user][1]) > 0, "a number, so that runAsNonRoot can be checked"
    assert not [word for word, _ in final[user:] if word in ("RUN", "COPY")]
    environment = dict(
        word.split("=", 1) for w, rest in final if w == "ENV" for word in shlex.split(rest)
    )
    writable = next(rest for word, rest in final if word == "RUN" and "-m 1777" in rest)
    assert environment["HOME"] in writable.split()
    assert environment["USER"], "a uid without a name has no other"


def test_unigs_is_behind_an_init() -> None:
    entry = dict(read_instructions())["ENTRYPOINT"]
    assert yaml.safe_load(entry) == ["tini", "--", "unigs"]


def test_nothing_secret_or_fetched_is_built_in() -> None:
    """What a run needs is mounted; what a build needs (an index) is gone with its stage."""
    instructions = read_instructions()
    last = max(i for i, (word, _) in enumerate(instructions) if word == "FROM")
    for word, rest in instructions:
        assert word != "ADD", "it fetches URLs and unpacks what it is given"
        if word in ("ENV", "ARG"):
            names = re.findall(r"(\w+)(?:=|$)", rest)
            assert not [n for n in names if re.search("TOKEN|SECRET|PASSWORD|KEY", n)], rest
        assert not re.search(r"\b(?:curl|wget|git clone|ssh|sudo)\b", rest)
    final = instructions[last:]
    assert not [rest for word, rest in final if word == "ARG"]
    assert not [x for w, x in final if w == "RUN" and "pip install" in x and "--offline" not in x]
    assert not [rest for word, rest in final if word in ("ENTRYPOINT", "CMD") and "root" in rest]


def test_dependencies_come_before_the_project() -> None:
    lines = [f"{word} {rest}" for word, rest in read_instructions()]
    install = next(i for i, x in enumerate(lines) if "-c requirements.lock" in x)
    project = next(i for i, x in enumerate(lines) if x.startswith("COPY unigs"))
    assert install < project


def test_context_has_what_is_copied_and_little_else() -> None:
    rules = [x for x in (ROOT / ".dockerignore").read_text().splitlines() if x[:1] not in ("#", "")]
    assert rules[0] == "*"
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    copied = {
        source
        for word, rest in read_instructions()
        if word == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    }
    assert copied == set(allowed)
    assert all((ROOT / path).exists() for path in copied)
    assert not any(fnmatch.fnmatch(".git", rule) for rule in allowed)


def list_requirements(*extras: str) -> list[str]:
    command = [sys.executable, DOCKER / "list_requirements.py", ROOT / "setup.cfg", *extras]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    return [re.split(r"[<>=!~;]", line)[0].strip() for line in out if line]


def test_requirements_are_those_of_the_extras_and_locked() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    normal = lambda name: re.sub(r"[-_.]+", "-", name.split("[")[0]).lower()
    core, more, dev = list_requirements(), list_requirements("eval", "remote"), ["pytest", "mypy"]
    assert "torch" in core
    assert {"open_clip_torch", "s3fs"} <= set(more) - set(core)
    assert not set(dev) & set(more)
    assert set(dev) <= set(list_requirements("dev"))
    for name in more:
        assert re.search(rf"^{normal(name)}==\S+.*\\\n\s+--hash=", lock, re.M), name
    with pytest.raises(subprocess.CalledProcessError):
        list_requirements("no-such-extra")


# ------------------------------------------------------------------ compose


def list_nodes(compose: dict) -> dict[str, dict]:
    return {k: v for k, v in compose["services"].items() if "torchrun" in v["entrypoint"]}


def test_torchrun_and_lightning_agree(compose: dict) -> None:
    from lightning import Trainer
    from torch.distributed.run import get_args_parser

    nodes = list_nodes(compose)
    for node in nodes.values():
        words = node["entrypoint"][node["entrypoint"].index("torchrun") + 1 :] + node["command"]
        run = get_args_parser().parse_args(words)
        assert (run.module, run.training_script) == (True, "unigs")
        fit = read_options(run.training_script_args)
        assert int(run.nnodes) == len(nodes)
        assert not {"trainer.num_nodes", "trainer.devices"} & fit.keys(), "torchrun says it"
        assert run.rdzv_backend == "c10d"
        assert run.rdzv_endpoint.split(":")[0] in nodes
        assert (ROOT / fit["config"]).is_file()
        keys = {key.split(".")[1] for key in fit if key.startswith("trainer.")}
        assert keys <= inspect.signature(Trainer.__init__).parameters.keys()


def test_ranks_have_time_to_save(compose: dict) -> None:
    for node in list_nodes(compose).values():
        timeout = int(read_options(node["entrypoint"])["shutdown-timeout"])
        assert 30 < timeout < seconds(node["stop_grace_period"])


def test_nodes_are_containers_fit_for_training(compose: dict) -> None:
    for node in list_nodes(compose).values():
        assert node["entrypoint"][0] == "tini"
        assert node["shm_size"]
        assert "ulimits" not in node  # an engine without root may raise none
        assert node["restart"].startswith("on-failure")
        assert node["depends_on"]["prepare"]["condition"] == "service_completed_successfully"


# ------------------------------------------------------------------ Slurm


def run_job(folder: Path, code: int) -> tuple[int, str, str]:
    """job.slurm with stand-ins for Slurm: its exit code, what srun got, what scontrol got."""
    for name, body in (("srun", f"exit {code}"), ("scontrol", "exit 0")):
        script = folder / name
        script.write_text(f'#!/bin/sh\necho "$@" > {folder}/{name}.txt\n{body}\n')
        script.chmod(0o755)
    slurm = dict(JOB_ID="77", NNODES="2", NTASKS_PER_NODE="8", CPUS_PER_TASK="12")
    environment = {f"SLURM_{k}": v for k, v in slurm.items()}
    environment |= dict(IMAGE="i", DATA="d", RUNS="r", PATH=f"{folder}:{os.environ['PATH']}")
    done = subprocess.run(["bash", DOCKER / "job.slurm"], env=environment, capture_output=True)
    told = [
        p.read_text() if p.exists() else "" for p in (folder / "srun.txt", folder / "scontrol.txt")
    ]
    return done.returncode, told[0], told[1].strip()


@pytest.mark.parametrize("code", [0, 1, 137, PREEMPTED_EXIT_CODE])
def test_slurm_requeues_what_was_preempted_and_only_that(tmp_path: Path, code: int) -> None:
    returned, started, requeued = run_job(tmp_path, code)
    assert returned == code
    assert requeued == ("requeue 77" if code == PREEMPTED_EXIT_CODE else "")
    assert "unigs fit --config configs/joint.yaml" in started
    assert "--trainer.num_nodes 2 --trainer.devices 8" in started


def test_slurm_asks_for_what_lightning_needs() -> None:
    text = (DOCKER / "job.slurm").read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)", text, re.M))
    assert options["ntasks-per-node"] == options["gpus-per-node"], "one task per GPU"
    name, time = options["signal"].split("@")
    assert name == "USR1", "which goes to the tasks; B:USR1 would go to this script alone"
    assert int(time) >= 120
    assert re.search(r"^#SBATCH --requeue$", text, re.M)
    assert options["open-mode"] == "append"
    assert "torchrun" not in read_code("job.slurm"), "it would win over Slurm"


# ------------------------------------------------------------------ Kubernetes


def test_pods_find_each_other(job: dict) -> None:
    name, service = job["Job"]["metadata"]["name"], job["Service"]
    spec = job["Job"]["spec"]
    pod = spec["template"]["spec"]
    fit = read_options(pod["containers"][0]["args"])
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(fit["trainer.num_nodes"])
    assert (
        int(fit["trainer.devices"]) == pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    )
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    environment = {entry["name"]: entry for entry in pod["containers"][0]["env"]}
    assert environment["MASTER_ADDR"]["value"] == f"{name}-0.{pod['subdomain']}"
    assert int(environment["MASTER_PORT"]["value"]) == service["spec"]["ports"][0]["port"]
    path = environment["NODE_RANK"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def test_preempted_pods_come_back_and_bad_command_lines_do_not(job: dict) -> None:
    spec = job["Job"]["spec"]
    pod = spec["template"]["spec"]
    codes: dict[int, str] = {}
    for rule in spec["podFailurePolicy"]["rules"]:
        if "onExitCodes" in rule:
            assert rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
            assert rule["onExitCodes"]["operator"] == "In"
            codes |= {code: rule["action"] for code in rule["onExitCodes"]["values"]}
    assert codes == {PREEMPTED_EXIT_CODE: "Ignore", 2: "FailJob"}
    assert pod["restartPolicy"] == "Never", "the policy asks for it"
    assert pod["terminationGracePeriodSeconds"] >= 120
    assert spec["backoffLimit"] > 0


def test_pods_may_run_and_write(job: dict) -> None:
    pod = job["Job"]["spec"]["template"]["spec"]
    context = pod["securityContext"]
    assert context["runAsNonRoot"]
    assert str(context["runAsUser"]) == dict(read_instructions())["USER"]
    assert "fsGroup" not in context
    mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert mounts.keys() == volumes.keys()
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    workdir = dict(read_instructions())["WORKDIR"]
    assert mounts == {"shm": "/dev/shm", "data": f"{workdir}/data", "runs": f"{workdir}/runs"}
    assert "torchrun" not in read_code("kubernetes.yaml"), "it would hide the exit code"
