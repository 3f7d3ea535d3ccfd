"""``Annotated`` records on disk: plain WebDataset tars with a manifest (annotations -> shards).

``schema`` and ``rows`` say what their files may hold, ``samples`` turns one record into tar members
and back, ``manifest`` knows what lies where and its checksums, ``write``, ``inputs``, ``pool`` and
``merge`` make shards from sources, ``verify`` finds any damage, ``read`` fetches one sample by its
place. Stock ``webdataset.WebDataset`` opens the tars too; the manifest adds what that cannot give:
random access, counts, and checksums on every read.
"""

from unigs.files import DiskFull
from unigs.shards.files import ShardError
from unigs.shards.manifest import Manifest, read_manifest, read_manifests
from unigs.shards.read import ShardReader
from unigs.shards.samples import DamagedSample
from unigs.shards.verify import verify_shards
from unigs.shards.write import merge_shards, write_shards

__all__ = [
    "DamagedSample",
    "DiskFull",
    "Manifest",
    "ShardError",
    "ShardReader",
    "merge_shards",
    "read_manifest",
    "read_manifests",
    "verify_shards",
    "write_shards",
]
