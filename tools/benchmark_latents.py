"""What a cache of latents saves: a live step beside a cached one, part by part.

Live and cached take turns, batch by batch, on drawn scenes, with the model and data options of a
config. On a CPU the time is that of the process, whatever else runs on the machine; loaders work in
the process too. Lightning's own work is left out.

    python tools/benchmark_latents.py                                # configs/quickstart.yaml
    python tools/benchmark_latents.py --config configs/joint.yaml --preset sd15 --scene 512
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from unigs.recipes.bases import make_base
from unigs.shards import write_shards
from unigs.synthetic import write_datasets
from unigs.verbs.encoding import open_run
from unigs.verbs.latents import write_latents


class Clock:
    """Seconds by name, once a round.

    Args:
        device: that the work is done on.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        start = self.now()
        yield
        self.seconds[name].append(self.now() - start)


def take_turns(system: Any, live: Iterator, cached: Iterator, rounds: int) -> Clock:
    """A live and a cached step in every round; the first two rounds are left out."""
    clock, device = Clock(system.device), system.device
    optimizer = system.configure_optimizers()["optimizer"]
    precision = system.trainer.precision_plugin
    for turn in range(rounds + 2):
        if turn == 2:
            clock.seconds.clear()
        with clock.measure("make"):
            batch = next(live).to(device)
        with clock.measure("encode"), torch.no_grad(), precision.train_step_context():
            encoded = system.encode(batch)
        with clock.measure("read"):
            latents = next(cached).to(device)
        for name, told in (("live step", encoded), ("cached step", latents)):
            with clock.measure(name):
                with precision.train_step_context():
                    parts = system.losses(told)
                sum(part.mean() for part in parts.values()).backward()
                torch.nn.utils.clip_grad_norm_(system.network.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
    return clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--options", nargs="*", default=[], help="of the run beside the config")
    parser.add_argument("--preset", default="tiny", help="of the base")
    parser.add_argument("--scene", type=int, default=80, help="side of the drawn scenes, px")
    parser.add_argument("--batch", type=int, default=16, help="samples a step")
    parser.add_argument("--rounds", type=int, default=12)
    told = parser.parse_args()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as root:
        scenes = {"size_px": told.scene, "max_things": 4, "max_stuff": 2, "min_radius": 0.08}
        write_datasets(Path(root, "data"), images=8, val_images=1, **scenes)
        sets = {name: f"{root}/data/{name}" for name in ("coco", "openimages", "entityseg")}
        write_shards(out=f"{root}/shards", workers=1, **sets)  # type: ignore[arg-type]
        make_base(f"{root}/base", preset=told.preset)
        options = [
            f"data.shards=[{root}/shards]", f"model.base={root}/base", "trainer.devices=1",
            f"data.loading.global_batch_size={told.batch}", "data.loading.num_workers=0",
            *told.options,
        ]  # fmt: skip
        system, data = open_run([told.config], options)
        live = data.train_dataloader()
        samples = (told.rounds + 2) * told.batch
        write_latents([told.config], f"{root}/latents", samples, options=options)
        data.latents = f"{root}/latents"
        live.steps_per_epoch = told.rounds + 2
        clock = take_turns(system, iter(live), iter(data.train_dataloader()), told.rounds)
        stored = sum(path.stat().st_size for path in Path(root, "latents").rglob("*.tar"))
    cost = {name: 1000 * median(s) / told.batch for name, s in clock.seconds.items()}
    parts = clock.seconds
    whole = [map(sum, zip(parts["make"], parts["encode"], parts["live step"], strict=True)),
             map(sum, zip(parts["read"], parts["cached step"], strict=True))]  # fmt: skip
    ratio = median(one / other for one, other in zip(*whole, strict=True))
    for name, spent in cost.items():
        print(f"{name:12} {spent:8.2f} ms a sample")
    print(f"live / cached {ratio:.2f} (median of {told.rounds} pairs)")
    print(f"{stored / samples / 1024:.1f} KiB a sample on disk")


if __name__ == "__main__":
    main()
