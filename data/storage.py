"""How arrays lie in an HDF5 file of ours, and how they come out: memory-mapped where they can be, else decompressed.

Compressed frames lie in chunks of a few frames. CoinRun's frames (64x64, with backgrounds) become 3.4 times smaller as
lzf, 8.2 times as gzip, 9.1 times as blosc; one core (Zen 4) reads random clips of 16 of them at 33, 38 and 200 thousand
frames/s. Blosc's other codecs were smaller and slower (Zstandard: 11.6 times, 79 thousand frames/s), or larger and no
faster (quick LZ4: 4.8 times, 150 thousand).
"""

import errno
import mmap
import os
import resource
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

COMPRESSIONS = (None, "lzf", "gzip", "blosc")
BLOSC = 32001  # the filter's number in HDF5's register
# Random windows decode whole chunks: few frames per chunk waste little, one frame alone compresses less well.
FRAMES_PER_CHUNK = {"lzf": 4, "gzip": 4, "blosc": 8}
# What a system answers where files cannot be locked, as on many network disks.
NO_LOCK = {errno.EAGAIN, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
KEPT_OPEN = 128  # files of compressed arrays

Opened = TypeVar("Opened")


def frames_layout(compression: str | None, shape: tuple[int, ...]) -> dict[str, Any]:
    """Keywords of h5py's `create_dataset` for frames of this shape; ValueError for a compression that there is not."""
    if compression is None:
        return {}
    if compression not in COMPRESSIONS:
        raise ValueError(f"compression={compression} is not one of null, {', '.join(COMPRESSIONS[1:])}")
    chunk = (min(FRAMES_PER_CHUNK[compression], shape[0]), *shape[1:])
    layout: dict[str, Any] = {"chunks": chunk, "shuffle": False, "compression": compression}
    if compression == "blosc":
        plugin = _import_plugin()
        if plugin is None:
            raise ValueError(
                "compression=blosc needs a package (pip install hdf5plugin); or set it to gzip, lzf or null"
            )
        # The slow, thorough form of LZ4: what it writes decompresses at the speed of memory.
        layout |= plugin.Blosc(cname="lz4hc", clevel=5, shuffle=plugin.Blosc.NOSHUFFLE)
    return layout


def _import_plugin() -> Any:
    """The package that teaches HDF5 further filters by being imported; None where it is not installed."""
    try:
        import hdf5plugin
    except ImportError:
        return None
    return hdf5plugin


def missing_filter(dataset: h5py.Dataset) -> str | None:
    """The compression of a dataset, where a package that can read it is not installed."""
    properties = dataset.id.get_create_plist()
    numbers = [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]
    if all(h5py.h5z.filter_avail(number) for number in numbers):
        return None
    _import_plugin()
    unknown = [number for number in numbers if not h5py.h5z.filter_avail(number)]
    return {BLOSC: "blosc"}.get(unknown[0], f"HDF5 filter {unknown[0]}") if unknown else None


def open_hdf5(fpath: Path) -> h5py.File:
    """Open a finished file for reading; without a lock where none can be had, since nobody writes it any more.

    There is no cache of decompressed chunks: random windows would never hit it, and it may hold a megabyte per file.
    """
    try:
        return with_room(lambda: h5py.File(fpath, "r", rdcc_nbytes=0))
    except OSError as error:
        if error.errno not in NO_LOCK:
            raise
        return with_room(lambda: h5py.File(fpath, "r", rdcc_nbytes=0, locking=False))


class DecompressionError(ValueError):
    """Rows of a compressed array that cannot be brought back."""


class CompressedArray:
    """Rows of a chunked HDF5 dataset, by the indices that h5py understands; its file is opened when it is read.

    HDF5 holds about a megabyte per open file, so that a process keeps `KEPT_OPEN` of them, those read last.
    """

    def __init__(self, fpath: Path, dataset: h5py.Dataset):
        self.fpath, self.name, self.shape, self.dtype = fpath, dataset.name, dataset.shape, dataset.dtype
        self._version = fpath.stat().st_ino, fpath.stat().st_mtime_ns

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Raises DecompressionError where a chunk is damaged."""
        dataset = _kept_open(self.fpath, self.name, self._version, os.getpid())
        try:
            return dataset[rows]
        except (OSError, RuntimeError) as error:
            raise DecompressionError(f"{rows} cannot be decompressed, {str(error).splitlines()[0]}") from None


@lru_cache(maxsize=KEPT_OPEN)
def _kept_open(fpath: Path, name: str, version: tuple[int, ...], process: int) -> h5py.Dataset:
    """version: of the file, which may have been made again. process: a fork must not use its parent's HDF5 handles."""
    return open_hdf5(fpath)[name]  # keeps the file open for as long as it is used itself


def map_arrays(file: h5py.File, names: Sequence[str]) -> dict[str, Any]:
    """Datasets as read-only arrays in a memory map of the file, or as `CompressedArray` where they are compressed.

    Closes the file; a map keeps one descriptor, however many arrays it holds.
    """
    arrays: dict[str, Any] = {}
    whole = None
    for name in names:
        dataset = file[name]
        offset = dataset.id.get_offset()
        if dataset.chunks is not None:
            arrays[name] = CompressedArray(Path(file.filename), dataset)
        elif dataset.size == 0:
            arrays[name] = np.empty(dataset.shape, dataset.dtype)
        else:
            whole = whole or _map(file.filename)
            arrays[name] = np.ndarray(dataset.shape, dataset.dtype, whole, offset)
    file.close()
    return arrays


def _map(fpath: str) -> mmap.mmap:
    with with_room(lambda: open(fpath, "rb")) as file:
        return with_room(lambda: mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def read_ahead(array: Any, first: int, last: int) -> None:
    """Ask the system to fetch rows first … last - 1 of a mapped array from the disk, without waiting for them.

    On pages that are in memory already this takes a fifth of the time of copying them; on others it makes random clips
    arrive three times as fast.
    """
    if isinstance(array, CompressedArray) or not array.size:
        return
    whole = array.base
    begin = _address(array[first:]) - _address(np.frombuffer(whole, np.uint8))
    end = begin + (last - first) * array[0].nbytes
    begin -= begin % mmap.PAGESIZE
    whole.madvise(mmap.MADV_WILLNEED, begin, end - begin)


def disk_waits() -> int:
    """How often this process has had to wait for mapped pages that were not in memory (its major page faults)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def with_room(open_one: Callable[[], Opened]) -> Opened:
    """What `open_one` opens, after allowing this process more open files where that is needed and possible.

    A dataset of ten million frames has hundreds of shards, and 1,024 open files are a usual first limit.
    """
    while True:
        try:
            return open_one()
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            if soft == hard:
                raise
            more = soft * 4 if hard == resource.RLIM_INFINITY else min(soft * 4, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
