"""Measure what the codes of Pix2Seq-D and GSS lose before any network: truth there and back.

    python tools/benchmark_codes.py [--scenes 200]
    python tools/benchmark_codes.py --posterior runs/vq/vq [--stages runs/maskige/ft ...]

Scenes are the benchmark's, 64 px. Bits: class and id map are sampled at the cell middles of a
grid, written as analog bits, read by their signs, and repeated to 64 px. Maskige: the class map is
painted, Gaussian noise of a standard deviation in levels of 0..255 is added and clipped, and read.
Entity mIoU is ``metrics.segmentation.EntityQuality``; a maskige knows no entities, so that each
connected region of a class counts as one. Class mIoU is over the pixels of all scenes, meaned over
the classes. A code whose figure is below 0.85 wants another grid. Prints a Markdown table.

With a posterior: the reconstruction column of Table 1 of arXiv 2303.11316. FF and FF-R paint and
read by given colours; the others are folders, of ``unigs.recipes.Maskige`` (FT, TF, TT) or of an
exported GSS (FT-W, which reads the true codes here), each with its own posterior inside.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from unigs.codec.analog_bits import BitCode, decode_bits, encode_bits
from unigs.codec.maskige import (
    farthest_colours,
    lattice_colours,
    least_distance,
    paint_maskige,
    random_colours,
    read_maskige,
    solve_maskige,
)
from unigs.codec.panoptic_ids import LEAST_PX, decode_panoptic, draw_ids
from unigs.codec.regions import label_regions
from unigs.metrics.segmentation import EntityQuality
from unigs.synthetic.scenes import STUFF_IDS, THING_IDS, draw_scene, scene_seed
from unigs.systems.gss import coder as first_stage
from unigs.systems.gss.coder import Coder, load_coder
from unigs.systems.gss.painting import choose_painting
from unigs.systems.gss.posterior import load_posterior
from unigs.systems.gss.predictor import load_stages
from unigs.tasks import ClassTable
from unigs.weights import INDEX, read_config

SIZE_PX = 64
CLASSES = {str(number): k for k, number in enumerate([*THING_IDS.values(), *STUFF_IDS.values()])}
NAMES = (*THING_IDS, *STUFF_IDS)
BATCH = 16
CODE = BitCode(class_bits=5, id_bits=4)
GRIDS = (64, 32, 16)
NOISES = (0, 20, 40)

Rates = tuple[float, float]
"""Entity mIoU and class mIoU."""


def draw_truth(scenes: int) -> tuple[Tensor, Tensor]:
    """Label maps and class maps of validation scenes, int64 [B, H, W], classes 0..K - 1."""
    labels, classes = [], []
    for index in range(scenes):
        seed = scene_seed("val", index)
        scene = draw_scene(seed, SIZE_PX, max_things=4, max_stuff=2, min_radius=0.08)
        labels.append(torch.from_numpy(scene.labels).long())
        numbers = [CLASSES[entity.category_id] for entity in scene.entities]
        classes.append(torch.tensor([0, *numbers])[labels[-1]])
    return torch.stack(labels), torch.stack(classes)


def rate_entities(found: Tensor, labels: Tensor) -> float:
    metric = EntityQuality()
    metric.update(found, labels)
    return float(metric.compute()["miou"])


def rate_classes(found: Tensor, classes: Tensor) -> float:
    """Mean IoU over the classes; a pixel found as none of them (-1) is missed, no more."""
    ious = []
    for k in classes.unique().tolist():
        one, two = found == k, classes == k
        ious.append(float((one & two).sum() / (one | two).sum()))
    return sum(ious) / len(ious)


def resize(maps: Tensor, side: int) -> Tensor:
    """Ints [B, H, W] at the nearest middles of a ``side`` x ``side`` grid."""
    return F.interpolate(maps[:, None].double(), (side, side), mode="nearest-exact")[:, 0].long()


def rate_bits(labels: Tensor, classes: Tensor, grid: int, least_px: int) -> Rates:
    """Truth through analog bits on a grid, with random ids."""
    ids = draw_ids(labels, CODE, 0, range(len(labels)))
    bits = encode_bits(resize(classes + 1, grid), resize(ids, grid), CODE)
    found = [resize(maps, SIZE_PX) for maps in decode_bits(bits, CODE)]
    entities = torch.stack([picture.labels for picture in decode_panoptic(*found, least_px)])
    return rate_entities(entities, labels), rate_classes(found[0] - 1, classes)


def rate_maskige(
    labels: Tensor, classes: Tensor, colours: Tensor, noise: float, squares: bool = False
) -> Rates:
    """Truth through a noisy maskige, read by the nearest colour or by least squares."""
    painted = paint_maskige(classes, colours).float()
    error = torch.randn(painted.shape, generator=torch.Generator().manual_seed(0))
    pixels = (painted + noise * error).clamp(0, 255)
    found = solve_maskige(pixels, colours).argmax(1) if squares else read_maskige(pixels, colours)
    return rate_both(found, labels, classes)


def rate_both(found: Tensor, labels: Tensor, classes: Tensor) -> Rates:
    """A class map against both truths; each connected region counts as an entity."""
    regions = label_regions(found)
    regions = regions - regions.amin((1, 2), keepdim=True) + 1  # numbers run through the batch
    return rate_entities(regions, labels), rate_classes(found, classes)


def list_rows(labels: Tensor, classes: Tensor) -> Iterator[tuple[str, Rates]]:
    for grid in GRIDS:
        for least_px in (1, LEAST_PX):
            title = f"bits, grid {grid}, ids of {least_px} px or more"
            yield title, rate_bits(labels, classes, grid, least_px)
    palettes = {
        "farthest": farthest_colours(len(CLASSES)),
        "lattice": lattice_colours(len(CLASSES)),
        "random": random_colours(len(CLASSES), 0),
    }
    for name, colours in palettes.items():
        title = f"maskige, {name} colours ({least_distance(colours):.0f} apart)"
        for noise in NOISES:
            yield f"{title}, noise {noise}", rate_maskige(labels, classes, colours, noise)
    squares = rate_maskige(labels, classes, palettes["farthest"], 0, squares=True)
    yield "maskige, farthest colours, least squares, noise 0", squares


def rate_stage(labels: Tensor, classes: Tensor, coder: Coder, enlarge: int) -> Rates:
    """Truth through a first stage of GSS."""
    table = coder.painting.table
    numbers = torch.tensor([table.names.index(name) for name in NAMES])  # ours -> the table's
    parts = numbers[classes].split(BATCH)
    found = torch.cat([coder.reconstruct(part, enlarge) for part in parts])
    return rate_both(found, labels, numbers[classes])


def list_stages(
    labels: Tensor, classes: Tensor, posterior: str, folders: list[str], enlarge: int
) -> Iterator[tuple[str, Rates]]:
    table = ClassTable(tuple(sorted(NAMES)), tuple(name in THING_IDS for name in sorted(NAMES)))
    for title, kind in (("FF", "farthest"), ("FF-R", "random")):
        coder = Coder(load_posterior(posterior), choose_painting(table, kind))
        yield f"{title} through {posterior}", rate_stage(labels, classes, coder, enlarge)
    for folder in folders:
        named = read_config(Path(folder) / INDEX).get("_class_name")
        coder, title = (
            load_coder(folder) if named == first_stage.FOLDER else (load_stages(folder)[0], "GSS")
        )
        yield f"{title} of {folder}", rate_stage(labels, classes, coder, enlarge)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scenes", type=int, default=200, help="validation scenes")
    parser.add_argument("--posterior", help="folder; rates GSS' first stages and nothing else")
    parser.add_argument("--stages", nargs="*", default=[], help="folders of FT, TF, TT, FT-W")
    parser.add_argument("--enlarge", type=int, default=2, help="maskiges over pictures, of a stage")
    told = parser.parse_args()
    truth = draw_truth(told.scenes)
    rows = list_rows(*truth)
    if told.posterior:
        rows = list_stages(*truth, told.posterior, told.stages, told.enlarge)
    print("| code | entity mIoU | class mIoU |\n|---|---|---|")
    for title, (entity, semantic) in rows:
        print(f"| {title} | {entity:.3f} | {semantic:.3f} |", flush=True)


if __name__ == "__main__":
    main()
