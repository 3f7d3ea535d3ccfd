"""What must hold on a real GPU as it does on a CPU: colours, masks, losses, graphs, waits."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch
from builders import build_unigs
from torch._dynamo.utils import counters

from unigs.codec import Palette, decode_refined, encode_colormap
from unigs.records import Batch
from unigs.systems import UniGS

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from benchmark_codec import LIGHT, corrupt, draw_voronoi
from benchmark_step import make_batch

GPU = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch sees"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def batch(tmp_path_factory) -> Batch:
    return make_batch(tmp_path_factory.mktemp("drawn"), 64, 4)


def open_model(base: str, device: torch.device | str, **options) -> UniGS:
    """The joint model, the same weights on every device."""
    model = build_unigs(base, palette=Palette(cells=5), **options)
    torch.manual_seed(0)
    model.configure_model()
    return model.to(device)


def add_losses(model: UniGS, batch: Batch) -> torch.Tensor:
    """One number, whose backward pass fills all gradients."""
    return sum(part.mean() for part in model.losses(batch.to(model.device)).values())


def test_colormaps_are_painted_as_on_a_cpu():
    labels = draw_voronoi(12, 0, 256)[None]
    assert torch.equal(encode_colormap(labels.to(GPU)).cpu(), encode_colormap(labels))


def test_masks_are_decoded_as_on_a_cpu():
    """All but a few pixels between two colours, where sums in another order decide."""
    colormap = corrupt(encode_colormap(draw_voronoi(12, 0, 256)), *LIGHT, 0)[None]
    here, there = decode_refined(colormap), decode_refined(colormap.to(GPU))
    assert (here.labels == there.labels.cpu()).float().mean() > 0.999


def test_losses_and_gradients_are_those_of_a_cpu(base, batch, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    here, there = open_model(base, "cpu"), open_model(base, GPU)
    losses = [add_losses(model, batch) for model in (here, there)]
    torch.testing.assert_close(losses[1].cpu(), losses[0], rtol=1e-4, atol=0)
    for loss in losses:
        loss.backward()
    sides = [
        torch.cat([w.grad.flatten().cpu() for w in model.unet.parameters() if w.grad is not None])
        for model in (here, there)
    ]
    assert (sides[0] - sides[1]).norm() < 1e-3 * sides[0].norm()


def test_bfloat16_stays_near(base, batch):
    model = open_model(base, GPU, channels_last=True)
    exact = add_losses(model, batch)
    with torch.autocast("cuda", torch.bfloat16):
        rough = add_losses(model, batch)
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0)


def test_compiled_blocks_make_all_graphs_at_once(base, batch):
    model = open_model(base, GPU)
    eager = add_losses(model, batch)
    torch._dynamo.reset()
    counters.clear()
    model.unet.compile_repeated_blocks(fullgraph=True, dynamic=False)
    seen = []
    for _ in range(3):
        loss = add_losses(model, batch)
        loss.backward()
        seen.append(counters["stats"]["unique_graphs"])
    torch.testing.assert_close(loss, eager, rtol=1e-3, atol=0)
    assert seen[0] > 0
    assert seen == seen[:1] * 3


def test_the_losses_of_a_step_wait_for_nothing(base, batch):
    """On the GPU itself, what ``test_host_waits`` counts on one that is made up."""
    model, moved = open_model(base, GPU, size_balance=0.5), batch.to(GPU)
    add_losses(model, moved).backward()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            add_losses(model, moved).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not [str(one.message) for one in told if "synchroniz" in str(one.message)]


def test_steps_take_no_more_memory_with_time(base, batch):
    model = open_model(base, GPU)
    optimizer = model.configure_optimizers()["optimizer"]
    held = []
    for _ in range(6):
        add_losses(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        held.append(torch.cuda.memory_allocated())
    assert held[2:] == held[2:3] * 4


def test_a_pipeline_finds_the_masks_of_a_cpu(batch):
    from unigs import UniGSPipeline

    pipe = UniGSPipeline.from_pretrained("tiny")
    pipe.set_progress_bar_config(disable=True)
    here = pipe("entity", batch.image[0]).labels[0]
    there = pipe.to(GPU)("entity", batch.image[0]).labels[0]
    assert (torch.as_tensor(here) == torch.as_tensor(there).cpu()).float().mean() > 0.99
