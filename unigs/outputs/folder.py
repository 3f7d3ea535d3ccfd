"""A run's folder: files per picture, each whole, then the COCO files and the run's record.

A picture is done when its record lies there, which is written last; a run that is started again
goes on from there. A folder holds one run: of one verb, model, sampling and set of words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unigs.files import explain_errors, new_folder, write_bytes, write_json, write_text
from unigs.outputs.coco import list_panoptic, list_results
from unigs.outputs.encode import encode_ids, encode_labels, encode_mask, encode_pixels
from unigs.outputs.found import Found
from unigs.outputs.overlay import encode_overlay
from unigs.records import UnigsError, show

RUN = "run.json"


class OutFolder:
    """Where a run writes.

    Args:
        path: of the folder.
        run: what decides an answer, as plain values; a folder of another run is refused.
        beside: what a reader may want to know besides, as plain values.

    Raises:
        UnigsError: a file lies there, other files do, another run's, or it cannot be written to.
    """

    def __init__(self, path: Path, run: Mapping[str, Any], beside: Mapping[str, Any]) -> None:
        self.path = path
        self._run: dict[str, Any] = json.loads(json.dumps(run))
        self._beside = beside
        if path.exists() and not path.is_dir():
            raise UnigsError(f"expected a folder to write to, got a file, at {path}")
        with explain_errors("a folder to write to", path):
            self._claim()

    def _claim(self) -> None:
        """Take an empty folder, or go on in one of the same run."""
        record = self.path / RUN
        if record.exists():
            self._compare(_read(record))
        elif self.path.exists() and any(self.path.iterdir()):
            raise UnigsError(
                f"expected an empty folder, or one of a run, got other files, at {self.path}"
            )
        (self.path / "records").mkdir(parents=True, exist_ok=True)
        write_json(record, {**self._run, **self._beside})

    def _compare(self, before: Mapping[str, Any]) -> None:
        for name, value in self._run.items():
            if before.get(name) != value:
                raise UnigsError(
                    f"expected a folder of the same run, got one whose {name} is "
                    f"{show(before.get(name), 200)} and not {show(value, 200)}, at {self.path}; "
                    "give another --out"
                )

    def has(self, key: str, inputs: Mapping[str, str]) -> bool:
        """Whether a picture is done; not if its files have changed since.

        Args:
            key: of the picture.
            inputs: sha256 of each file, by option.
        """
        record = self.path / "records" / f"{key}.json"
        return record.exists() and _read(record).get("inputs") == dict(inputs)

    def holds(self, key: str, source: str) -> bool:
        """Whether there is an answer under a picture's key, made of whatever files.

        Args:
            key: of the picture.
            source: see ``Found``.

        Raises:
            UnigsError: it is the answer to another picture, which is kept.
        """
        record = self.path / "records" / f"{key}.json"
        if not record.exists():
            return False
        before = _read(record).get("source")
        if before != source:
            raise UnigsError(
                f"expected an answer to {show(source)}, got one to {show(before)}, at {record}; "
                "give another --out"
            )
        return True

    def write(self, found: Found) -> None:
        """Write all files of one picture; its record comes last.

        Raises:
            DiskFull: no room; the pictures before are kept.
        """
        with explain_errors("to write", self.path):
            about = found.describe()
            with new_folder(self.path / "masks" / found.key) as masks:
                for segment in about["segments"]:
                    mask = encode_mask(found.labels == segment["label"])
                    (masks / f"{segment['label']:03}.png").write_bytes(mask)
            files = {
                f"overlays/{found.key}.jpg": encode_overlay(found.image, found.labels),
                f"labels/{found.key}.png": encode_labels(found.labels),
                f"panoptic/{found.key}.png": encode_ids(found.labels),
            }
            if found.drawn:
                files[f"images/{found.key}.png"] = encode_pixels(found.image)
            for name, data in files.items():
                (self.path / name).parent.mkdir(exist_ok=True)
                write_bytes(self.path / name, data)
            write_json(self.path / "records" / f"{found.key}.json", about)

    def close(self, counts: Mapping[str, Any]) -> None:
        """Write the COCO files of all pictures that are done, and the run's record.

        Args:
            counts: of this call, for the record.
        """
        with explain_errors("to write", self.path):
            paths = sorted((self.path / "records").glob("*.json"))
            records = {path.stem: _read(path) for path in paths}
            write_text(self.path / "results.json", json.dumps(list_results(records)) + "\n")
            about = f"unigs {self._run.get('verb', '')}"
            write_json(self.path / "panoptic.json", list_panoptic(records, about))
            write_json(self.path / RUN, {**self._run, **self._beside, "last_call": dict(counts)})


def holds_run(path: Path) -> bool:
    """Whether a folder is one that :class:`OutFolder` wrote."""
    return (path / RUN).is_file() and (path / "records").is_dir()


def _read(path: Path) -> dict[str, Any]:
    """A JSON object that an earlier call wrote."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UnigsError(f"expected a record of an earlier run, got no JSON object, at {path}")
    return content
