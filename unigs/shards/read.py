"""One sample by its place: the only way training reads shards (shards -> streams).

Every read is checked: the bytes a sample occupies, tar headers and padding included, must have the
length and CRC-32 of the manifest. A cut tar, a flipped bit or a foreign file is a
:class:`DamagedSample`, never a short read. Where the bytes come from a cache, its copy is then
hashed, and fetched again if it is the copy that is damaged.
"""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from unigs.records import Annotated
from unigs.shards.manifest import Manifest
from unigs.shards.samples import MAX_SAMPLE_BYTES, DamagedSample, decode_sample


class ShardReader:
    """Random access to the samples of several manifests.

    Picklable; each process opens its own files.

    Args:
        manifests: by name, as ``read_manifests`` gives them.
        open_files: at most this many shards are held open.
    """

    def __init__(self, manifests: Mapping[str, Manifest], open_files: int = 64) -> None:
        self.manifests = dict(manifests)
        self._open_files = open_files
        self._files: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._asked: set[tuple[str, int]] = set()
        self._renewed: set[tuple[str, int]] = set()
        self._fetchers: ThreadPoolExecutor | None = None

    def read(self, name: str, shard: int, member: int) -> Annotated:
        """The record at a place.

        Args:
            name: of the manifest.
            shard, member: place in it, from 0.

        Raises:
            DamagedSample: not the bytes that were written.
            ShardError: the shard is not there.
            RemoteError: it could not be had.
        """
        where = self.describe(name, shard, member)
        return decode_sample(self.read_span(name, shard, member), where)

    def read_span(self, name: str, shard: int, member: int) -> bytes:
        """The checked tar members of one sample; see :meth:`read`."""
        offset, size, crc = self.manifests[name].span(shard, member)
        if size > MAX_SAMPLE_BYTES:
            where = self.describe(name, shard, member)
            raise DamagedSample(f"expected at most {MAX_SAMPLE_BYTES} bytes, got {size} {where}")
        span = os.pread(self._open(name, shard), size, offset)
        if (len(span) != size or zlib.crc32(span) != crc) and self._renew(name, shard):
            span = os.pread(self._open(name, shard), size, offset)
        if len(span) != size:
            where = self.describe(name, shard, member)
            raise DamagedSample(f"expected {size} bytes, got {len(span)} (shard cut?) {where}")
        if (came := zlib.crc32(span)) != crc:
            where = self.describe(name, shard, member)
            raise DamagedSample(f"expected CRC-32 {crc:08x}, got {came:08x} {where}")
        return span

    def _renew(self, name: str, shard: int) -> bool:
        """Whether a shard is a local copy, hashed again now, and opened anew; once a process."""
        if (name, shard) in self._renewed:
            return False
        self._renewed.add((name, shard))
        if not self.manifests[name].renew(shard):
            return False
        os.close(self._files.pop((name, shard)))
        return True

    def prefetch(self, windows: Mapping[str, list[int]]) -> None:
        """Fetch remote shards in the background, four at a time, as far as their cache has room.

        Args:
            windows: manifest name -> shards that will be read soon.
        """
        room = {id(m.cache): m.cache.max_bytes for m in self.manifests.values() if m.cache}
        wanted = [(name, shard) for name, shards in windows.items() for shard in shards]
        for name, shard in wanted:
            manifest = self.manifests[name]
            if not manifest.cache:
                continue
            room[id(manifest.cache)] -= manifest.shards[shard].bytes
            if (name, shard) in self._asked or room[id(manifest.cache)] < 0:
                continue
            self._fetchers = self._fetchers or ThreadPoolExecutor(4, "prefetch")
            self._fetchers.submit(manifest.warm, shard)
        self._asked = set(wanted)

    def describe(self, name: str, shard: int, member: int) -> str:
        """A place in words."""
        return f"at sample {member} of {self.manifests[name].describe(shard)}"

    def close(self) -> None:
        """Close all files; reading opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict(), "_asked": set(), "_fetchers": None}

    def __del__(self) -> None:
        self.close()

    def _open(self, name: str, shard: int) -> int:
        """The descriptor of a shard, least recently used ones closed."""
        known = self._files.get((name, shard))
        if known is not None:
            self._files.move_to_end((name, shard))
            return known
        descriptor = self.manifests[name].open(shard)
        while len(self._files) >= self._open_files:
            os.close(self._files.popitem(last=False)[1])
        self._files[name, shard] = descriptor
        return descriptor
