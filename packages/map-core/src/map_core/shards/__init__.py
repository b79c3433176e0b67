"""Data sets in shards: tar files in WebDataset's layout, with an index that says where in them each sample is.

With the index any sample is one read away, as with single files. So the order, held-out parts, exact resume and any
number of processes work as they do for files, with the same code.
"""

from map_core.shards.index import ShardIndex, read_index
from map_core.shards.indexing import index_shards
from map_core.shards.opening import ShardRoot, ShardSettings, default_cache, has_index
from map_core.shards.order import in_windows
from map_core.shards.reader import ShardReader
from map_core.shards.sizes import parse_size
from map_core.shards.writing import Files, write_shards

__all__ = [
    "Files",
    "ShardIndex",
    "ShardReader",
    "ShardRoot",
    "ShardSettings",
    "default_cache",
    "has_index",
    "in_windows",
    "index_shards",
    "parse_size",
    "read_index",
    "write_shards",
]
