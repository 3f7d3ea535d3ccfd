"""Derive which palette colour each cell owns, and write ``unigs/codec/cell_colours.py``.

    python tools/optimise_palette.py            the published table: seed 0, 4 million steps
    python tools/optimise_palette.py --report   distances of the package's table, and of lexical

121 of the 124 colours are given to the 11 x 11 cells; the three nearest to black are left out.
Simulated annealing over swaps of two cells minimises a sum of three costs, exp(-distance / scale):

1. between cells up to two apart: the distance of their colours, king's neighbours counting most,
   since entities whose centres lie in such cells are the ones that touch;
2. between a cell and each pair of neighbouring cells near it: the RGB distance of its colour from
   the line between theirs, because the blurred border of that pair would look like this entity;
3. distance from black in the upper left corner, which coarse grids are made of.

The scale of cost 1 is small, which makes the sum a soft minimum: the worst pair decides. Distance
is the smaller of Lab's and half of RGB's: an autoencoder trained on RGB confuses pairs that are
near in RGB even where Lab holds them wide apart.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np
from kornia.color import rgb_to_lab
from tqdm import trange

from unigs.codec.palette import Palette, legal_colours

CELLS = Palette().cells
SIDE_SCALE, BLEND_SCALE, DARK_SCALE = 5.0, 10.0, 12.0
TABLE = Path(__file__).parents[1] / "unigs" / "codec" / "cell_colours.py"


def measure_colours() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lab and separating distances of pairs [125, 125]; RGB distance of c from a-b [a, b, c]."""
    rgb = legal_colours()
    lab = rgb_to_lab(rgb.t().float()[:, None] / 255)[:, 0].t().double().numpy()
    lab = np.round(lab * 2**14) / 2**14  # a library's last bits must not steer the annealing
    lab_distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    points = rgb.numpy().astype(np.float64)
    rgb_distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    way = points[None] - points[:, None]  # a -> b
    along = np.einsum("abk,ack->abc", way, way) / np.maximum((way**2).sum(-1), 1)[:, :, None]
    along = along.clip(0, 1)
    foot = (rgb_distance**2)[:, None, :]  # |c - a|^2
    length = (rgb_distance**2)[:, :, None]
    dot = np.einsum("abk,ack->abc", way, way)
    line = np.sqrt(np.maximum(foot - 2 * along * dot + along**2 * length, 0))
    return lab_distance, np.minimum(lab_distance, rgb_distance / 2), line


def list_relations() -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Per cell: (other, weight) of cost 1, and the triples of cost 2 it takes part in."""
    place = list(product(range(CELLS), range(CELLS)))
    apart = np.array([[max(abs(a - c), abs(b - d)) for c, d in place] for a, b in place])
    others = [np.flatnonzero((row > 0) & (row <= 2)) for row in apart]
    weights = [np.where(row[o] == 1, 1.0, 0.02) for row, o in zip(apart, others)]
    triples: list[list[tuple[int, int, int]]] = [[] for _ in place]
    for a, b in product(range(len(place)), repeat=2):
        if a < b and apart[a, b] == 1:
            for c in np.flatnonzero(np.minimum(apart[a], apart[b]) <= 1):
                if c not in (a, b):
                    for cell in (a, b, int(c)):
                        triples[cell].append((a, b, int(c)))
    return others, weights, [np.array(rows).T for rows in triples]


def anneal(seed: int, steps: int) -> np.ndarray:
    """The annealed table, int [121]."""
    _, distance, line = measure_colours()
    dark = np.exp(-distance[0] / DARK_SCALE)
    side, blend = np.exp(-(distance - 50) / SIDE_SCALE), np.exp(-line / BLEND_SCALE)
    others, weights, triples = list_relations()
    row, column = np.divmod(np.arange(CELLS**2), CELLS)
    corner = np.where((row < 7) & (column < 7), 3.0, 0.0)

    def cost(table: np.ndarray, cell: int) -> float:
        a, b, c = table[triples[cell]]
        near = (side[table[cell], table[others[cell]]] * weights[cell]).sum()
        return near + 0.3 * blend[a, b, c].sum() + corner[cell] * dark[table[cell]]

    rng = np.random.default_rng(seed)
    left_out = {1, 5, 25}  # (0, 0, 64), (0, 64, 0), (64, 0, 0)
    table = rng.permutation([n for n in range(1, 125) if n not in left_out])
    for step in trange(steps, desc="annealing", mininterval=5):
        heat = 3.0 * (0.002 / 3.0) ** (step / steps)
        i, j = rng.integers(CELLS**2, size=2)
        before = cost(table, i) + cost(table, j)
        table[i], table[j] = table[j], table[i]
        rise = cost(table, i) + cost(table, j) - before
        if rise > 0 and rng.random() >= np.exp(-rise / heat):
            table[i], table[j] = table[j], table[i]
    return table


def report(name: str, table: np.ndarray) -> str:
    """Least and mean Lab distance of king's neighbours, and of all from black."""
    lab, _, line = measure_colours()
    grid = table.reshape(CELLS, CELLS)
    pairs = [
        (grid[y, x], grid[y + dy, x + dx])
        for y, x, (dy, dx) in product(range(CELLS), range(CELLS), ((0, 1), (1, -1), (1, 0), (1, 1)))
        if y + dy < CELLS and 0 <= x + dx < CELLS
    ]
    gaps = np.array([lab[a, b] for a, b in pairs])
    _, _, triples = list_relations()
    blends = np.concatenate([line[tuple(table[t])] for t in triples])
    return (
        f"{name}: neighbours' Lab distance least {gaps.min():.1f}, mean {gaps.mean():.1f};"
        f" black at least {lab[0, table].min():.1f} away; blends of neighbours within 24 RGB"
        f" of a third cell's colour: {(blends < 24).mean():.2%}"
    )


def write_table(table: np.ndarray) -> None:
    rows = "\n".join(f"    ({', '.join(map(str, row))})," for row in table.reshape(CELLS, CELLS))
    TABLE.write_text(
        '"""Which colour each palette cell owns: written by ``tools/optimise_palette.py``.\n\n'
        "Number n is the n-th of the 125 legal colours, red slowest, blue fastest; 0 is black.\n"
        f'"""\n\nCELL_COLOURS = (\n{rows}\n)\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4_000_000)
    parser.add_argument("--report", action="store_true", help="only describe the present table")
    options = parser.parse_args()
    if not options.report:
        write_table(anneal(options.seed, options.steps))
        print(f"wrote {TABLE}")
        return
    print(report("lexical order", np.arange(1, CELLS**2 + 1)))
    print(report("this table   ", Palette().colours().numpy()))


if __name__ == "__main__":
    main()
