"""Images and labels: readers, the prepared store, and who holds what.

`read_source` reads a data set's tables, `prepare` decodes its images once into a memory-mapped
store, `partition` deals the store to sites, splits and labels. A new data set is one reader
module, its name in `readers.READERS`, and a file in `configs/data`.
"""

from mediffusion_core.data.dataset import Move, Source
from mediffusion_core.data.partitioning.splits import ClientPartition, partition
from mediffusion_core.data.readers import READERS, read_source
from mediffusion_core.data.store.images import ImageError
from mediffusion_core.data.store.prepared import Store, default_store_folder, prepare

__all__ = [
    "READERS",
    "ClientPartition",
    "ImageError",
    "Move",
    "Source",
    "Store",
    "default_store_folder",
    "partition",
    "prepare",
    "read_source",
]
