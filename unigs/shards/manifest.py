"""What lies where in a folder of shards: ``manifest.json`` and ``index.npy``.

The manifest names, per shard, its samples, bytes and sha256; the category table; source, licence
and options. The index holds one row of 20 bytes per sample (place, length, CRC-32 of everything the
sample occupies, hash of its key) and is read without pickles: two million samples open in a
fraction of a second. A ``digest`` over all of it names the data set: a training run that resumes
refuses another one. Both files may come from anyone: nothing in them is used before it is checked
(``schema``), and no name in them leads out of their folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unigs.files import FileRefused, open_inside, read_inside
from unigs.remote import Cache, RemoteError, is_remote, join_url
from unigs.shards.files import MAX_JSON_BYTES, ShardError, parse_json, read_json
from unigs.shards.schema import BLOCK, MAX_SHARD_BYTES, check_folders, check_manifest, shorten

FORMAT = 1
MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.npy"
FOLDERS_NAME = "folders.json"
ROW = np.dtype([("block", "<u4"), ("blocks", "<u4"), ("crc", "<u4"), ("key", "<u8")])
"""A sample's row: first 512-byte block in its shard, number of blocks, their CRC-32, key's hash."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar: file name, number of samples, size, sha256 in hex."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True, eq=False)
class Manifest:
    """One split of one source as shards.

    Attributes:
        folder: where the shards lie; a path or a URL.
        name: ``source-split``, the folder's own name.
        source, split, licence: as the reader gave them.
        categories: rows of ``id``, ``name``, ``is_thing``.
        options: what the shards were written with.
        skipped: reason -> how many pictures or entities were left out.
        shards: in order; the plan addresses them by place.
        index: ``ROW`` [samples], in the shards' order.
        digest: sha256 over all the above and over the shards' bytes.
        cache: what fetches the shards, if the folder is a URL.
    """

    folder: str
    name: str
    source: str
    split: str
    licence: str
    categories: tuple[dict[str, Any], ...]
    options: dict[str, Any]
    skipped: dict[str, int]
    shards: tuple[Shard, ...]
    index: np.ndarray
    digest: str
    cache: Cache | None = None

    def __post_init__(self) -> None:
        starts = np.cumsum([0, *self.sizes])
        object.__setattr__(self, "_starts", starts.tolist())

    def __len__(self) -> int:
        return len(self.index)

    @property
    def sizes(self) -> list[int]:
        """Samples per shard, as ``Plan`` wants them."""
        return [shard.samples for shard in self.shards]

    def span(self, shard: int, member: int) -> tuple[int, int, int]:
        """(offset in bytes, length in bytes, CRC-32) of one sample in its shard."""
        row = self.index[self._starts[shard] + member]  # type: ignore[attr-defined]
        return int(row["block"]) * BLOCK, int(row["blocks"]) * BLOCK, int(row["crc"])

    def open(self, shard: int) -> int:
        """A descriptor of one shard, fetched first if it is remote.

        Raises:
            ShardError: it is not there, no plain file, or a link out of the folder.
        """
        wanted = self.shards[shard]
        url = join_url(self.folder, wanted.name)
        if self.cache:
            return self.cache.open(url, wanted.sha256, wanted.bytes)
        try:  # of any length: a reader checks every sample, and says which are hit
            return open_inside(Path(self.folder), wanted.name, MAX_SHARD_BYTES)
        except (OSError, FileRefused) as error:
            raise ShardError(f"expected the shard of a manifest, got {error}, at {url}") from error

    def renew(self, shard: int) -> bool:
        """Whether a shard is a local copy of a remote one, which then is hashed, and fetched again
        if it is damaged.

        Raises:
            RemoteError: it could not be had.
        """
        if self.cache:
            wanted = self.shards[shard]
            self.cache.renew(join_url(self.folder, wanted.name), wanted.sha256, wanted.bytes)
        return self.cache is not None

    def describe(self, shard: int) -> str:
        """Where a shard lies, and where its local copy, if it is remote."""
        wanted = self.shards[shard]
        url = join_url(self.folder, wanted.name)
        return f"{url} (copy {self.cache.locate(url, wanted.sha256)})" if self.cache else url

    def warm(self, shard: int) -> None:
        """Fetch one remote shard ahead; whoever reads it is told if that fails."""
        with contextlib.suppress(RemoteError):
            os.close(self.open(shard))


def read_manifests(
    *roots: str | os.PathLike[str], cache: Cache | None = None
) -> dict[str, Manifest]:
    """All manifests under some roots, by name.

    Args:
        *roots: what ``write_shards`` wrote to, or single folders of it; paths or URLs.
        cache: for URLs; by default one with its own defaults.

    Raises:
        ShardError: none found, damaged, or one name twice.
        RemoteError: a URL could not be read.
    """
    manifests: dict[str, Manifest] = {}
    for folder in [folder for root in roots for folder in list_folders(os.fspath(root), cache)]:
        manifest = read_manifest(folder, cache)
        if manifest.name in manifests:
            first = manifests[manifest.name].folder
            raise ShardError(f"expected one {manifest.name}, got two, at {first} and {folder}")
        manifests[manifest.name] = manifest
    return manifests


def list_folders(root: str, cache: Cache | None = None) -> list[str]:
    """The folders with a manifest under a root, or the root itself if it has one."""
    if is_remote(root):
        if root.rstrip("/").endswith(MANIFEST_NAME):
            return [root.rstrip("/").removesuffix(MANIFEST_NAME)]
        where = join_url(root, FOLDERS_NAME)
        content = parse_json((cache or Cache()).read(where, MAX_JSON_BYTES), where)
        return [join_url(root, name) for name in check_folders(content, where)]
    base = Path(root)
    if (base / MANIFEST_NAME).is_file():
        return [root]
    if not (base / FOLDERS_NAME).is_file():
        found = "an unfinished one" if any(base.glob("*/source.json")) else "nothing such"
        raise ShardError(
            f"expected a folder of shards ({MANIFEST_NAME} or {FOLDERS_NAME}), got {found}, at "
            f"{root}; `unigs shards` writes one, `unigs shards merge` finishes one made in parts"
        )
    content = read_json(base / FOLDERS_NAME)
    return [join_url(root, name) for name in check_folders(content, str(base / FOLDERS_NAME))]


def read_manifest(folder: str | os.PathLike[str], cache: Cache | None = None) -> Manifest:
    """Read and check one folder's manifest and index; the shards themselves are not opened.

    Raises:
        ShardError: missing, of another format, or not what its digest says.
    """
    folder = os.fspath(folder)
    cache = (cache or Cache()) if is_remote(folder) else None
    where = join_url(folder, MANIFEST_NAME)
    if cache:
        content = parse_json(cache.read(where, MAX_JSON_BYTES), where)
    else:
        content = read_json(Path(where))
    if type(content.get("format")) is not int or content["format"] != FORMAT:
        came = shorten(content.get("format"))
        raise ShardError(f"expected shard format {FORMAT}, got {came}, at {where}")
    check_manifest(content, where)
    if content["digest"] != digest_manifest(content):
        raise ShardError(f"expected digest {content['digest']}, got other content, at {where}")
    shards = tuple(Shard(**shard) for shard in content["shards"])
    index = read_index(folder, content["samples"], content["index_sha256"], cache)
    check_index(index, shards, join_url(folder, INDEX_NAME))
    fields = ("source", "split", "licence", "options", "skipped", "digest")
    return Manifest(
        folder=folder,
        name=name_folder(content["source"], content["split"]),
        categories=tuple(content["categories"]),
        shards=shards,
        index=index,
        cache=cache,
        **{field: content[field] for field in fields},
    )


def name_folder(source: str, split: str) -> str:
    """The folder of a source's split, and the stem of its shards' names."""
    return f"{source}-{split}"


def count_shards(samples: int, samples_per_shard: int) -> int:
    """How many shards a source makes; at least one, which may be empty."""
    return max(1, -(-samples // samples_per_shard))


def name_shard(folder: str, k: int) -> str:
    """The file name of shard ``k``: unique among all sources and splits."""
    return f"{folder}-{k:06d}.tar"


def read_index(folder: str, samples: int, sha256: str, cache: Cache | None = None) -> np.ndarray:
    """The index, of the promised length and checksum, in memory: a mapped file that is cut while a
    run reads it would end the run without a word. No numpy header is ever parsed: one is expected.

    Raises:
        ShardError: not there, or another than promised.
        RemoteError: could not be had.
    """
    header = make_index_header(samples)
    size = len(header) + samples * ROW.itemsize
    url = join_url(folder, INDEX_NAME)
    try:
        if cache:
            with open(cache.open(url, sha256, size, trust=False), "rb") as file:
                data = file.read(size)
        else:
            data = read_inside(Path(folder), INDEX_NAME, size)
    except (OSError, FileRefused) as error:
        raise ShardError(f"expected an index of {size} bytes, got {error}, at {url}") from error
    if (came := hashlib.sha256(data).hexdigest()) != sha256:
        raise ShardError(f"expected an index with sha256 {sha256}, got {came}, at {url}")
    if len(data) != size or not data.startswith(header):
        raise ShardError(f"expected {samples} rows of {ROW}, got another array, at {url}")
    return np.frombuffer(data, ROW, offset=len(header))


def make_index_header(samples: int) -> bytes:
    """What numpy writes before ``ROW`` [samples]."""
    header = io.BytesIO()
    description = {"descr": ROW.descr, "fortran_order": False, "shape": (samples,)}
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()


def check_index(index: np.ndarray, shards: tuple[Shard, ...], where: str) -> None:
    """In every shard, samples lie one behind the other from its first block, and end inside of it.

    Raises:
        ShardError: names the first shard whose rows say something else.
    """
    at = 0
    for shard in shards:
        rows = index[at : at + shard.samples]
        at += shard.samples
        ends = np.cumsum(rows["blocks"], dtype=np.uint64)
        starts = ends - rows["blocks"]
        if not len(rows):
            continue
        if int(ends[-1]) * BLOCK > shard.bytes or (rows["block"] != starts).any():
            raise ShardError(
                f"expected samples one behind the other in {shard.bytes} bytes, got other places "
                f"for {shard.name}, at {where}"
            )


def digest_manifest(content: Mapping[str, Any]) -> str:
    """sha256 over a manifest's content, apart from itself and from the version that wrote it.

    Raises:
        ShardError: the content is nested too deep.
    """
    body = {key: value for key, value in content.items() if key not in ("digest", "written_by")}
    try:
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    except RecursionError:
        raise ShardError("expected a manifest of plain lists, got one nested too deep") from None
