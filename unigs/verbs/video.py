"""``unigs segment --video``: one clip, frame by frame, with ids that stay over its frames.

One frame is in memory at a time, and beside it the stream's state, which is written after each
frame: whatever ends a run, the next one goes on bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from unigs.files import write_bytes
from unigs.images import decode_image, encode_image
from unigs.outputs import OutFolder
from unigs.pictures import draw_sheet
from unigs.records import Skips, UnigsError
from unigs.verbs.answer import Item, Order, check_order, describe_order, tell_end, tell_failure
from unigs.verbs.frames import Clip, open_clip
from unigs.verbs.model import list_versions, locate_model
from unigs.verbs.request import read_request

if TYPE_CHECKING:
    from unigs.systems.clips import ClipState

DEFAULT = Path("pix2seq-d-video")
"""The model that follows a clip if none is named."""

STATE = "stream.safetensors"
SHEET, COLUMNS, ROWS, TILE_PX = "sheet.jpg", 4, 3, 256


def follow_clip(order: Order) -> None:
    """Carry out an order on one clip.

    Raises:
        UnigsError: what was typed leads nowhere, or a model that does not look back; at the end, if
            a frame failed.
    """
    check_order(order)
    model = locate_model(order.model or DEFAULT)
    clip = open_clip(order.files, order.out)
    run = describe_order(replace(order, verb="segment --video"), model, clip.root)
    folder = OutFolder(order.out, run, {"versions": list_versions()})
    state, failed = find_start(order, clip, folder)
    kept = state.frame - failed.total
    if kept:
        print(f"{kept} of {len(clip.frames)} frames are done already and kept, at {order.out}")
    made = run_clip(order, model, clip, state, folder, failed)
    folder.close({"made": made, "kept": kept, "failed": failed.counts})
    write_sheet(order.out, clip)
    tell_end(order, made, failed)


def find_start(order: Order, clip: Clip, folder: OutFolder) -> tuple[ClipState, Skips]:
    """Where to go on, and the frames before it that failed and still do.

    A run begins again where a frame before that place is another than the one that was followed.
    """
    from unigs.systems.clips import ClipState, read_state

    path, failed = folder.path / STATE, Skips()
    if not path.exists():
        return ClipState(), failed
    state = read_state(path)
    if state.frame <= len(clip.frames):
        has = lambda k: folder.has(clip.frames[k].key, clip.hash_inputs(k))
        open_ = [k for k in range(state.frame) if not has(k)]
        if not any(item for k in open_ for item in read_items(order, clip, k, k + 1, failed)):
            return state, failed
    print(f"expected frames as they were, got others; all begin again, at {folder.path}")
    return ClipState(), Skips()


def run_clip(
    order: Order, model: Path, clip: Clip, state: ClipState, folder: OutFolder, failed: Skips
) -> int:
    """Load the model and follow the frames that are left; how many were made."""
    from unigs.verbs.device import choose_device

    order = replace(order, device=choose_device(order.device))
    from unigs.systems.clips import save_state
    from unigs.verbs.running import load_runner

    runner = load_runner(order, model)
    runner.require_past(model)
    made, start, end = 0, state.frame, len(clip.frames)
    with tqdm(total=end, initial=start, desc="segment", unit="frame") as bar:
        for item in read_items(order, clip, start, end, failed):
            if item is None:
                state = replace(state, frame=state.frame + 1)
            else:
                found, state = runner.follow(item, state)
                folder.write(found)
                made += 1
            if state.maps is not None:
                save_state(state, folder.path / STATE)
            bar.update()
    return made


def read_items(
    order: Order, clip: Clip, start: int, end: int, failed: Skips
) -> Iterator[Item | None]:
    """Frames from one to before another; None for one that cannot be used, which is told and
    counted. All have the size of the first of the clip that can be read.
    """
    sizes = (pixels.shape for pixels in clip.read(0) if isinstance(pixels, np.ndarray))
    size = next(sizes, ())
    for place, pixels in zip(range(start, end), clip.read(start)):
        picture = clip.frames[place]
        try:
            if isinstance(pixels, UnigsError):
                raise pixels
            if pixels.shape != size:
                raise UnigsError(
                    f"expected a frame of {size[2]} x {size[1]} px as the first, got "
                    f"{pixels.shape[2]} x {pixels.shape[1]} px, at {picture.path}"
                )
            sample = read_request(order.task, picture.path, None, None, (), None, pixels)
        except UnigsError as error:
            tell_failure(failed, picture.path, error)
            yield None
        else:
            yield Item(picture, clip.hash_inputs(place), sample)


def write_sheet(out: Path, clip: Clip) -> None:
    """Overlays of up to twelve frames at even distances, as one picture."""
    paths = [path for f in clip.frames if (path := out / "overlays" / f"{f.key}.jpg").exists()]
    columns = min(COLUMNS, len(paths))
    if not columns:
        return
    count = min(ROWS, len(paths) // columns) * columns
    chosen = [paths[k] for k in np.linspace(0, len(paths) - 1, count).round().astype(int)]
    rows = []
    for first in range(0, count, columns):
        mine = chosen[first : first + columns]
        tiles = [decode_image(path.read_bytes()).transpose(2, 0, 1) for path in mine]
        rows.append((", ".join(path.stem for path in mine), tiles))
    sheet = draw_sheet([""] * columns, rows, TILE_PX)
    write_bytes(out / SHEET, encode_image(np.ascontiguousarray(sheet.transpose(1, 2, 0))))
