"""Templates of data work and of Kubernetes: parts that add up, groups that start again, schemas."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from jsonschema import ValidationError, validate

from unigs.cli import VERBS
from unigs.shards.write import read_part

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
SCHEMAS = json.loads((Path(__file__).parent / "kubernetes_schema.json").read_text())
"""Trimmed to the fields in use, so that any other is refused; the file names its source."""


def read_documents(name: str) -> dict[str, dict]:
    """Documents of a template by kind and name."""
    documents = yaml.safe_load_all((DOCKER / name).read_text())
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in documents}


@pytest.mark.parametrize("name", ["kubernetes.yaml", "kubernetes-shards.yaml", "trainjob.yaml"])
def test_manifests_follow_the_published_schemas(name):
    for key, document in read_documents(name).items():
        kind = key.partition("/")[0]
        if kind in SCHEMAS:
            validate(document["spec"], SCHEMAS[kind])
            wrong = copy.deepcopy(document["spec"]) | {"maxRetries": 1}
            with pytest.raises(ValidationError, match="maxRetries"):
                validate(wrong, SCHEMAS[kind])
        versions = {"Job": "batch/v1", "Service": "v1"}
        assert document["apiVersion"] == versions.get(kind, "trainer.kubeflow.org/v1alpha1")


# ------------------------------------------------------------------ data work in parts


def run_array(folder: Path, words: list[str], **array: str) -> list[str]:
    """What array.slurm lets srun start, from ``unigs`` on."""
    (folder / "srun").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {folder}/srun.txt\n')
    (folder / "srun").chmod(0o755)
    environment = {"IMAGE": "i", "DATA": "d", "PATH": f"{folder}:{os.environ['PATH']}"}
    environment |= {"SLURM_CPUS_PER_TASK": "8"}
    environment |= {f"SLURM_ARRAY_TASK_{name}": value for name, value in array.items()}
    subprocess.run(["bash", DOCKER / "array.slurm", *words], env=environment, check=True)
    started = (folder / "srun.txt").read_text().splitlines()
    return started[started.index("unigs") :]


def test_tasks_of_an_array_are_the_parts(tmp_path):
    words = ["shards", "--coco", "data/my coco", "--out", "data/shards"]
    parts = []
    for index in range(3):
        started = run_array(tmp_path, words, ID=str(index), COUNT="3")
        assert started[: 1 + len(words)] == ["unigs", *words]
        assert started[-2] == "--part"
        parts.append(read_part(started[-1]))
    assert parts == [(1, 3), (2, 3), (3, 3)]
    merge = ["shards", "merge", "--out", "data/shards"]
    assert run_array(tmp_path, merge) == ["unigs", *merge]


def test_what_an_array_says_in_its_head_works(tmp_path):
    """The commands of its comment, with a stand-in of sbatch."""
    text = (DOCKER / "array.slurm").read_text()
    lines = re.findall(r"^#   (.*)$", text, re.M)
    (tmp_path / "sbatch").write_text(
        f'#!/bin/sh\nprintf "%s " "$@" >> {tmp_path}/sbatch.txt\n'
        f'echo >> {tmp_path}/sbatch.txt\necho "7;cluster"\n'
    )
    (tmp_path / "sbatch").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-eu", "-c", "\n".join(lines)], env=environment, check=True)
    first, second = (shlex.split(x) for x in (tmp_path / "sbatch.txt").read_text().splitlines())
    assert {"--parsable", "--array=0-63", "docker/array.slurm"} <= set(first)
    assert "--dependency=afterok:7" in second
    assert second[second.index("docker/array.slurm") + 1 :][:2] == ["shards", "merge"]
    for words in (first, second):
        verb = words[words.index("docker/array.slurm") + 1]
        assert verb in {name.split()[0] for name in VERBS}
    assert "--array" not in "".join(re.findall(r"^#SBATCH .*$", text, re.M))


def test_pods_of_an_indexed_job_are_the_parts(tmp_path):
    documents = read_documents("kubernetes-shards.yaml")
    spec = documents["Job/unigs-shards"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    told = {entry["name"]: entry["value"] for entry in container["env"]}
    assert spec["completionMode"] == "Indexed"
    assert int(told["PARTS"]) == spec["completions"]
    (tmp_path / "unigs").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "unigs").chmod(0o755)
    assert container["command"][:2] == ["tini", "--"]
    parts, merge = [], documents["Job/unigs-merge"]["spec"]
    for index in range(spec["completions"]):
        environment = told | {
            "JOB_COMPLETION_INDEX": str(index),
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
        }
        command = [*container["command"][2:], *container["args"]]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        words = done.stdout.splitlines()
        assert words[0] == "shards"
        parts.append(read_part(words[words.index("--part") + 1]))
    assert parts == [(index + 1, 16) for index in range(16)]
    assert merge["suspend"] is True
    merged = merge["template"]["spec"]["containers"][0]["args"]
    assert merged == ["shards", "merge", f"--out={words[words.index('--out') + 1]}"]
    head = (DOCKER / "kubernetes-shards.yaml").read_text().partition("apiVersion")[0]
    for name in ("unigs-shards", "unigs-merge"):
        assert f"job/{name}" in head.replace("patch job ", "patch job/")


# ------------------------------------------------------------------ Kubeflow Trainer


def test_a_trainjob_restarts_as_a_group_and_has_time_to_save():
    documents = read_documents("trainjob.yaml")
    runtime, job = documents["TrainingRuntime/unigs"]["spec"], documents["TrainJob/unigs"]["spec"]
    assert job["runtimeRef"]["kind"] == "TrainingRuntime"
    assert job["trainer"]["numNodes"] == runtime["mlPolicy"]["numNodes"] == 2
    jobset = runtime["template"]["spec"]
    assert jobset["failurePolicy"]["maxRestarts"] > 0
    (replicated,) = jobset["replicatedJobs"]
    node = replicated["template"]
    assert node["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert node["spec"]["backoffLimit"] == 0
    (rule,) = node["spec"]["podFailurePolicy"]["rules"]
    assert rule["onPodConditions"][0]["type"] == "DisruptionTarget"
    (policy,) = jobset["failurePolicy"]["rules"]
    assert policy["onJobFailureReasons"] == ["PodFailurePolicy"]
    pod = node["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert replicated["name"] == container["name"] == "node", "the operator looks for it"
    from torch.distributed.run import get_args_parser

    command = container["command"]
    run = get_args_parser().parse_args(
        [*command[command.index("torchrun") + 1 :], *container["args"]]
    )
    assert (run.module, run.training_script) == (True, "unigs")
    assert run.max_restarts == 0, "the group restarts, and no pod by itself"
    assert 120 < run.shutdown_timeout < pod["terminationGracePeriodSeconds"]
    assert not [word for word in container["args"] if "num_nodes" in word or "devices" in word]


@pytest.mark.parametrize("name", ["kubernetes-shards.yaml", "trainjob.yaml"])
def test_pods_run_as_a_user_and_mount_what_they_name(name):
    for document in read_documents(name).values():
        spec = document["spec"]
        if document["kind"] == "TrainJob":
            continue
        if document["kind"] == "TrainingRuntime":
            spec = spec["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]
        pod = spec["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["restartPolicy"] == "Never"
        assert pod["securityContext"] == {"runAsNonRoot": True, "runAsUser": 10001}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in pod["volumes"]}
