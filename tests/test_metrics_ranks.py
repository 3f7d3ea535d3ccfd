"""Every metric on 1, 2 and 3 real processes, one of which may have seen nothing."""

import json
import multiprocessing
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from test_metrics_segmentation import jitter, random_labels

from unigs.metrics.average_precision import EntityAP
from unigs.metrics.classes import PanopticClassQuality, SemanticQuality
from unigs.metrics.panoptic import PanopticEntityQuality
from unigs.metrics.segmentation import EntityQuality, ReferringQuality
from unigs.tasks import ClassTable

TABLE = ClassTable(("disc", "ring", "sky"), (True, True, False))
METRICS = {
    "EntityQuality": EntityQuality,
    "ReferringQuality": ReferringQuality,
    "PanopticEntityQuality": PanopticEntityQuality,
    "EntityAP": EntityAP,
    "SemanticQuality": partial(SemanticQuality, TABLE),
    "PanopticClassQuality": partial(PanopticClassQuality, TABLE),
}


def make_pictures(count=6):
    rng = np.random.default_rng(0)
    for _ in range(count):
        true = random_labels(rng, 7)
        predicted = jitter(true, rng)
        yield predicted[None], [rng.random(int(predicted.max())).tolist()], true[None]


def measure(rank, ranks, group=None):
    """Figures of all metrics, synced over the group; the last of three ranks sees no picture."""
    busy = min(ranks, 2)
    values = {}
    for kind, make in METRICS.items():
        metric = make()
        metric.process_group = group
        for place, (predicted, scores, true) in enumerate(make_pictures()):
            if place % busy == rank:
                names = [[TABLE.names[(place + k) % 3] for k in range(7)]]
                arguments = {
                    "EntityAP": (predicted, scores, true),
                    "SemanticQuality": (predicted, names, true, names),
                    "PanopticClassQuality": (predicted, names, true, names),
                }
                metric.update(*arguments.get(kind, (predicted, true)))
        values |= {f"{kind}.{k}": float(v) for k, v in metric.compute().items()}
    return values


def run_rank(rank, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 3)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=3)
    for ranks in (2, 3):
        group = dist.new_group(list(range(ranks)))
        if rank < ranks:
            values = measure(rank, ranks, group)
            Path(folder, f"{ranks}-{rank}.json").write_text(json.dumps(values))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_one_two_and_three_ranks_give_the_same_numbers():
    alone = measure(0, 1)
    assert len(alone) == 28
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["unigs.metrics.average_precision", "hypothesis", "pytest"])
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=run_rank, args=(rank, folder)) for rank in range(3)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(60)
        assert [process.exitcode for process in ranks] == [0, 0, 0]
        for name in ("2-0", "2-1", "3-0", "3-1", "3-2"):
            np.testing.assert_equal(json.loads(Path(folder, f"{name}.json").read_text()), alone)
