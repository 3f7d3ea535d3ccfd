"""Measure the mask codec: accuracy under corruption, speed, scaling.

    python tools/benchmark_codec.py accuracy [--seeds 20] [--real FOLDER] [--vae FOLDER]
    python tools/benchmark_codec.py speed      one CPU core; also a GPU where there is one

A corruption is a Gaussian blur of sigma_b px, then a smooth colour drift of sigma_d (8 x 8 grid of
normal numbers, bilinear), then noise of sigma_n, in units of 0..255, on the painted colormap.
``--real`` is any folder of COCO panoptic PNGs, searched to its depths. ``bound`` gives each pixel
the nearest true colour among the true entities within 4 px, after smoothing by 0.7 px: what a
decoder that is told every entity, its colour and its place could reach by the colour of pixels.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from unigs.callbacks.throughput import measure_peak_gib
from unigs.codec import decode_dichotomy, decode_refined, encode_colormap

LIGHT, HEAVY, NOISE = (1.5, 4, 6), (3, 12, 14), (0, 40, 0)
"""Corruptions: sigma of blur, noise and drift."""


def draw_voronoi(entities: int, seed: int, size: int = 512) -> Tensor:
    """A full cover of ``entities`` Voronoi cells around uniform points, int64 [H, W], 1..N."""
    rng = np.random.default_rng(seed)
    points = torch.from_numpy(rng.uniform(0, size, (entities, 2)))
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    best = torch.full((size, size), torch.inf, dtype=torch.double)
    labels = torch.zeros(size, size, dtype=torch.long)
    for number, (cy, cx) in enumerate(points.tolist(), 1):
        distance = (y - cy) ** 2 + (x - cx) ** 2
        labels[distance < best] = number
        best = torch.minimum(best, distance)
    return labels


def draw_ellipses(entities: int, seed: int, size: int = 512) -> Tensor:
    """Ellipses with half axes of 5..20 % of the side on background, later ones on top."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] + 0.5
    labels = np.zeros((size, size), np.int64)
    for number in range(1, entities + 1):
        cy, cx = rng.uniform(0.15 * size, 0.85 * size, 2)
        a, b = rng.uniform(0.05 * size, 0.2 * size, 2)
        turn = rng.uniform(0, np.pi)
        u = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
        v = (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
        labels[(u / a) ** 2 + (v / b) ** 2 <= 1] = number
    return torch.from_numpy(labels)


def blur(picture: Tensor, sigma_px: float) -> Tensor:
    """Gaussian blur of float [3, H, W], reflected at the edges, cut at four sigma."""
    if not sigma_px:
        return picture
    radius = int(4 * sigma_px + 0.5)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma_px) ** 2)
    taps = taps / taps.sum()
    rows = F.pad(picture[:, None], (0, 0, radius, radius), mode="reflect")
    rows = F.conv2d(rows, taps.view(1, 1, -1, 1))
    return F.conv2d(F.pad(rows, (radius, radius, 0, 0), mode="reflect"), taps.view(1, 1, 1, -1))[
        :, 0
    ]


def to_bytes(picture: Tensor) -> Tensor:
    return picture.clamp(0, 255).round().to(torch.uint8)


def corrupt(colormap: Tensor, b: float, n: float, d: float, seed: int) -> Tensor:
    """The issue's corruption of uint8 [3, H, W]: blur, then drift, then noise."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.randn(1, 3, 8, 8, generator=generator) * d
    drift = F.interpolate(grid, colormap.shape[1:], mode="bilinear", align_corners=True)[0]
    noise = torch.randn(colormap.shape, generator=generator) * n
    return to_bytes(blur(colormap.float(), b) + drift + noise)


def to_jpeg(colormap: Tensor, quality: int = 30) -> Tensor:
    """Through a JPEG file and back."""
    file = io.BytesIO()
    Image.fromarray(colormap.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)


def rescale(colormap: Tensor, factor: int = 4) -> Tensor:
    """Down by ``factor`` and up again, bicubic, antialiased."""
    height, width = colormap.shape[1:]
    small = (max(1, height // factor), max(1, width // factor))
    picture = colormap[None].float()
    picture = F.interpolate(picture, small, mode="bicubic", antialias=True)
    return to_bytes(F.interpolate(picture, (height, width), mode="bicubic")[0])


def apply_gamma(colormap: Tensor, gamma: float) -> Tensor:
    return to_bytes((colormap.float() / 255) ** gamma * 255)


def best_ious(truth: Tensor, found: Tensor) -> Tensor:
    """Best IoU over found masks for each true entity (labels >= 1 of both), float64 [N]."""
    columns = int(found.max()) + 1
    pairs = torch.bincount(
        (truth.long() * columns + found.long()).reshape(-1),
        minlength=(int(truth.max()) + 1) * columns,
    ).view(-1, columns)
    union = pairs.sum(0) + pairs.sum(1, keepdim=True) - pairs
    iou = pairs.double() / union.clamp(min=1)
    iou = F.pad(iou[:, 1:], (0, 1))  # a truth may meet no mask at all
    return iou.amax(1)[1:][pairs.sum(1)[1:] > 0]


def add_hole(colormap: Tensor, labels: Tensor) -> Tensor:
    """A black disc of a third of its size's radius in the middle of the largest entity."""
    area = torch.bincount(labels.view(-1))
    area[0] = 0
    inside = (labels == area.argmax()).nonzero().double()
    centre = inside[(inside - inside.mean(0)).square().sum(1).argmin()]
    y, x = torch.meshgrid(*(torch.arange(n) for n in labels.shape), indexing="ij")
    radius = (float(area.max()) / torch.pi) ** 0.5 / 3
    return colormap * ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 > radius**2)


def load_autoencoder(folder: str) -> Callable[[Tensor], Tensor]:
    """There and back through a diffusers autoencoder, uint8 [3, H, W] cut to whole latent cells."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder).eval()
    cell = 2 ** (len(vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def through(colormap: Tensor) -> Tensor:
        pad = [-n % cell for n in colormap.shape[1:]]
        picture = F.pad(
            colormap[None].float() / 127.5 - 1, (0, pad[1], 0, pad[0]), mode="replicate"
        )
        picture = vae.decode(vae.encode(picture).latent_dist.mode()).sample[0]
        return to_bytes((picture[:, : colormap.shape[1], : colormap.shape[2]] + 1) * 127.5)

    return through


def decode_bound(colormap: Tensor, labels: Tensor, radius_px: int = 4) -> Tensor:
    """The bound of the module's docstring: told all but the border; int64 [H, W]."""
    picture, painted = blur(colormap.float(), 0.7), encode_colormap(labels).float()
    best = torch.full(labels.shape, torch.inf)
    found = torch.zeros_like(labels)
    for label in labels.unique().tolist():
        own = labels == label
        near = F.max_pool2d(own[None].float(), 2 * radius_px + 1, 1, radius_px)[0] > 0
        distance = (picture - painted[:, own][:, :1, None]).square().sum(0)
        take = near & (distance < best)
        best[take], found[take] = distance[take], label
    return found


def load_panoptic(folder: str) -> list[Tensor]:
    """Every panoptic PNG below a folder as a label map; 0 stays 0."""
    maps = []
    for path in sorted(Path(folder).rglob("panoptic*/*.png")):
        ids = np.array(Image.open(path).convert("RGB")).astype(np.int64) @ (1, 256, 65536)
        values, number = np.unique(ids, return_inverse=True)
        maps.append(torch.from_numpy(number.reshape(ids.shape) + int(values[0] != 0)))
    return maps


def measure_accuracy(
    scenes: list[Tensor], harm: Callable[[Tensor, Tensor, int], Tensor], decoders: list[str]
) -> str:
    """One row: per decoder the mean best IoU, its least over scenes, masks found / true."""
    rows: dict[str, list[float]] = {name: [] for name in decoders}
    counts = dict.fromkeys(rows, 0)
    true = 0
    for seed, labels in enumerate(scenes):
        colormap = harm(encode_colormap(labels), labels, seed)
        mode = "foreground" if bool((labels == 0).any()) else "entity"
        found = {
            "refined": lambda c=colormap, m=mode: decode_refined(c, mode=m).labels[0],
            "dichotomy": lambda c=colormap, m=mode: decode_dichotomy(c, m).labels[0],
            "bound": lambda c=colormap, t=labels: decode_bound(c, t),
        }
        for name, ious in rows.items():
            masks = found[name]()
            ious.append(float(best_ious(labels, masks).mean()))
            counts[name] += len(masks[masks > 0].unique())
        true += len(labels[labels > 0].unique())
    return " | ".join(
        f"{name} {sum(v) / len(v):.4f} (least {min(v):.3f}, masks {counts[name] / true:.3f})"
        for name, v in rows.items()
    )


def run_accuracy(options: argparse.Namespace) -> None:
    """Print the table of docs/codec.md."""
    seeds = range(options.seeds)
    kinds = {
        "4 ellipses": [draw_ellipses(4, seed) for seed in seeds],
        "12 Voronoi": [draw_voronoi(12, seed) for seed in seeds],
        "30 Voronoi": [draw_voronoi(30, seed) for seed in seeds],
    }
    if options.real:
        kinds["real panoptic"] = load_panoptic(options.real)
    harms: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
        f"b {b} n {n} d {d}": lambda c, _, seed, b=b, n=n, d=d: corrupt(c, b, n, d, seed)
        for b, n, d in ((0, 0, 0), (0, 4, 6), (1.5, 4, 6), (2.5, 8, 10), (3, 12, 14))
    }
    harms |= {
        "JPEG 30": lambda c, *_: to_jpeg(c),
        "down and up by 4": lambda c, *_: rescale(c),
        "gamma 0.8": lambda c, *_: apply_gamma(c, 0.8),
        "gamma 1.25": lambda c, *_: apply_gamma(c, 1.25),
        "black hole, b 1.5 n 4 d 6": lambda c, t, seed: corrupt(add_hole(c, t), 1.5, 4, 6, seed),
    }
    if options.vae:
        through = load_autoencoder(options.vae)
        harms["autoencoder"] = lambda c, *_: through(c)
    for kind, scenes in kinds.items():
        for name, harm in tqdm(harms.items(), desc=kind, leave=False):
            tqdm.write(f"{kind} | {name} | {measure_accuracy(scenes, harm, options.decoders)}")


def cluster_pixels(colormap: Tensor, delta: float = 10) -> int:
    """The baseline: the dichotomy pixel by pixel on scikit-learn's KMeans; number of clusters."""
    from kornia.color import rgb_to_lab
    from sklearn.cluster import KMeans

    rgb = colormap.float()
    points = torch.cat((rgb, rgb_to_lab(rgb / 255))).view(6, -1).t().contiguous().numpy()
    leaves, stack = 0, [points]
    while stack:
        mine = stack.pop()
        if np.linalg.norm(mine - mine.mean(0), axis=1).mean() < delta:
            leaves += 1
            continue
        side = KMeans(2, random_state=0).fit_predict(mine)
        stack += [mine[side == 0], mine[side == 1]]
    return leaves


def time_in_turn(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each call, interleaved, after one round to warm up.

    Seconds are the process's own, so that other work on the machine counts less.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn:
                seconds[name].append(time.process_time() - start)
    return {name: median(values) for name, values in seconds.items()}


def run_speed(options: argparse.Namespace) -> None:
    """One CPU core against the baseline, then cost against entities and pixels, then a GPU."""
    torch.set_num_threads(1)
    from threadpoolctl import threadpool_limits

    def scene(entities: int, size: int, harm: tuple[float, float, float] = LIGHT) -> Tensor:
        return corrupt(encode_colormap(draw_voronoi(entities, 0, size)), *harm, 0)

    colormap = scene(12, 512)
    calls: dict[str, Callable[[], object]] = {
        "per-pixel KMeans recursion": partial(cluster_pixels, colormap),
        "dichotomy": partial(decode_dichotomy, colormap),
        "refined": partial(decode_refined, colormap),
    }
    with threadpool_limits(1):
        seconds = time_in_turn(calls, options.rounds)
    base = seconds["per-pixel KMeans recursion"]
    for name, value in seconds.items():
        print(f"512 x 512, 12 entities | {name} | {1e3 * value:.1f} ms | {base / value:.1f} x")
    for entities, size, harm in (
        (4, 512, LIGHT), (30, 512, LIGHT), (60, 512, LIGHT), (120, 512, LIGHT), (12, 256, LIGHT),
        (12, 1024, LIGHT), (12, 512, HEAVY), (30, 512, NOISE),
    ):  # fmt: skip
        colormap = scene(entities, size, harm)
        calls = {
            "dichotomy": partial(decode_dichotomy, colormap),
            "refined": partial(decode_refined, colormap),
        }
        rows = time_in_turn(calls, options.rounds)
        print(
            f"{size} x {size}, {entities} entities, b {harm[0]} n {harm[1]} d {harm[2]} | "
            + str({k: f"{1e3 * v:.1f} ms" for k, v in rows.items()})
        )
    if torch.cuda.is_available():
        run_gpu(scene(12, 512), options.rounds)
    else:
        print("no GPU here: its part was not run")


def run_gpu(colormap: Tensor, rounds: int, batch: int = 64) -> None:
    """Images per second in batches, peak memory, and share of the bandwidth limit."""
    maps = colormap.cuda().repeat(batch, 1, 1, 1)
    source, target = torch.empty(2, 2**28, dtype=torch.uint8, device="cuda").unbind()
    copy, _ = time_call(lambda: target.copy_(source), maps.device, rounds)
    bytes_per_s = 2 * source.numel() / copy
    least = batch * colormap[0].numel() * (3 + 4) / bytes_per_s  # colours once, int32 labels once
    for decode in (decode_refined, decode_dichotomy):
        seconds, peak_gib = time_call(partial(decode, maps), maps.device, rounds)
        print(
            f"GPU, batches of {batch} | {decode.__name__} | {batch / seconds:.0f} images/s |"
            f" {peak_gib:.2f} GiB | {least / seconds:.2%} of the bandwidth limit"
        )


def time_call(call: Callable[[], object], device: torch.device, rounds: int) -> tuple[float, float]:
    """Median seconds after two rounds of warm-up, and the most memory that was taken, GiB."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        call()
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return median(seconds[2:]), measure_peak_gib(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(required=True)
    accuracy = verbs.add_parser("accuracy", help="the table of docs/codec.md")
    accuracy.add_argument("--seeds", type=int, default=20, help="scenes per row")
    accuracy.add_argument("--real", help="folder with COCO panoptic PNGs")
    accuracy.add_argument("--vae", help="folder of a diffusers AutoencoderKL")
    choices = ["refined", "dichotomy", "bound"]
    accuracy.add_argument("--decoders", nargs="+", choices=choices, default=["refined"])
    accuracy.set_defaults(run=run_accuracy)
    speed = verbs.add_parser("speed", help="time against the baseline, scaling, GPU")
    speed.add_argument("--rounds", type=int, default=7, help="rounds, of which the median counts")
    speed.set_defaults(run=run_speed)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
