"""Where the chunks of an HDF5 dataset lie in its file, read node by node, so that chunks can be fetched by ranges.

HDF5 keeps the addresses of a dataset's chunks in a B-tree (version 1, HDF5 File Format Specification III.A.1). A
session of NSD has one chunk a voxel: 700,000 addresses, 45 MB of index between 1 GB of chunks. The HDF5 library walks
it one node after the other, a round trip each; here all nodes of a level that lead to wanted chunks are asked for at
once, so that a session takes as many rounds as the tree is high.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass

import h5py
import numpy as np

from bench.core.errors import CorruptFileError
from bench.data.sources.ranges import RangeFile

HEADER = struct.Struct("<4sBBHQQ")
"""Of a node: signature, type (1 for chunks), level (0 for leaves), entries, left and right sibling."""
LAYOUT_MESSAGE, CONTINUATION_MESSAGE = 0x08, 0x10
SUPERBLOCK_BYTES = 96
UNDEFINED_ADDRESS = 2**64 - 1
OBJECT_HEADER_BYTES = 4096
"""Read at once from an object header's address: a dataset without attributes has a header of a few hundred bytes."""


@dataclass(frozen=True)
class ChunkIndex:
    """A dataset's chunk B-tree.

    Attributes:
        root: Address of its root node.
        node_bytes: Bytes of a node; all are allocated in full.
        base: Offset of the file's address 0 (the size of its user block).
        grid: Chunks along each axis.
        chunk: Shape of a chunk.
    """

    root: int
    node_bytes: int
    base: int
    grid: tuple[int, ...]
    chunk: tuple[int, ...]


def index_of(dataset: h5py.Dataset, file: RangeFile) -> ChunkIndex | None:
    """Return where a dataset's chunk index is, or None if it has none of this kind.

    None means: stored whole, compressed, or written with a newer index than MATLAB's and h5py's default.
    """
    if dataset.chunks is None or dataset.id.get_create_plist().get_nfilters():
        return None
    base = dataset.file.userblock_size
    fanout = _fanout(file.range(base, SUPERBLOCK_BYTES))
    if fanout is None:
        return None
    # Not h5o.get_info: it adds up the bytes of the whole index, node by node.
    low, high = h5py.h5g.get_objinfo(dataset.parent.id, dataset.name.encode()).objno
    root = _root_of(file, base + low + (high << 32), dataset.ndim)
    if root is None:
        return None
    key = 8 + 8 * (dataset.ndim + 1)
    node_bytes = HEADER.size + fanout * (key + 8) + key
    grid = tuple(-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True))
    return ChunkIndex(root, node_bytes, base, grid, dataset.chunks)


def _fanout(superblock: bytes) -> int | None:
    """Return how many children a node of a chunk index has room for, or None if the file counts in other sizes."""
    version = superblock[8]
    sizes = superblock[13:15] if version < 2 else superblock[9:11]
    if sizes != b"\x08\x08":
        return None
    if version == 1:
        return 2 * int(struct.unpack_from("<H", superblock, 24)[0])
    # Versions 2 and 3 name another fan-out in an extension only, and most files have no extension.
    extended = version > 1 and struct.unpack_from("<Q", superblock, 20)[0] != UNDEFINED_ADDRESS
    return None if extended else 64


def _root_of(file: RangeFile, address: int, ndim: int) -> int | None:
    """Return the root address named by the layout message of a version 1 object header, or None."""
    file.seek(address)
    header = file.read(OBJECT_HEADER_BYTES)
    if header[:1] != b"\x01":  # version 2 headers begin with "OHDR" and come with newer indexes
        return None
    (size,) = struct.unpack_from("<I", header, 8)
    blocks = [header[16 : 16 + size]]
    while blocks:
        block, at = blocks.pop(0), 0
        while at + 8 <= len(block):
            kind, length = struct.unpack_from("<HH", block, at)
            body = block[at + 8 : at + 8 + length]
            if kind == LAYOUT_MESSAGE:
                return _chunked_root(body, ndim)
            if kind == CONTINUATION_MESSAGE:
                offset, extent = struct.unpack_from("<QQ", body)
                file.seek(offset)
                blocks.append(file.read(extent))
            at += 8 + length
    return None


def _chunked_root(message: bytes, ndim: int) -> int | None:
    """Return the B-tree's address from a version 3 layout message of chunked storage, or None."""
    version, layout, dimensions = struct.unpack_from("<BBB", message)
    if (version, layout, dimensions) != (3, 2, ndim + 1):
        return None
    return int(struct.unpack_from("<Q", message, 3)[0])


def locate(file: RangeFile, index: ChunkIndex, wanted: np.ndarray) -> np.ndarray:
    """Return the file offset of each wanted chunk, -1 for one that was never written.

    Args:
        file: The file.
        index: Its dataset's index.
        wanted: `(N,)` ranks of chunks in the dataset's own (C) order of the chunk grid, ascending.

    Raises:
        CorruptFileError: If a node is not one of this tree.
    """
    offsets = np.full(len(wanted), -1, dtype=np.int64)
    frontier = [(index.root, slice(0, len(wanted)))]
    while frontier:
        nodes = file.ranges([(index.base + address, index.node_bytes) for address, _ in frontier])
        below: list[tuple[int, slice]] = []
        for (_, part), node in zip(frontier, nodes, strict=True):
            level, keys, children = _decode(node, index, str(file))
            # Child i holds the chunks from key i up to, but without, key i + 1.
            child = np.searchsorted(keys[:-1], wanted[part], side="right") - 1
            if level == 0:
                found = (child >= 0) & (keys[child] == wanted[part])
                offsets[part][found] = index.base + children[child[found]]
            else:
                below.extend(_branches(children, np.maximum(child, 0), part))
        frontier = below
    return offsets


def _branches(children: np.ndarray, child: np.ndarray, part: slice) -> list[tuple[int, slice]]:
    """Return the children that hold wanted chunks, each with its share of them."""
    edges = np.r_[0, np.flatnonzero(np.diff(child)) + 1, len(child)]
    return [(int(children[child[a]]), slice(part.start + a, part.start + b)) for a, b in itertools.pairwise(edges)]


def _decode(node: bytes, index: ChunkIndex, where: str) -> tuple[int, np.ndarray, np.ndarray]:
    """Return a node's level, its keys as chunk ranks (one more than children) and its children's addresses."""
    signature, kind, level, entries, _, _ = HEADER.unpack_from(node)
    dimensions = len(index.grid) + 1
    entry = np.dtype([("bytes", "<u4"), ("mask", "<u4"), ("offset", "<u8", (dimensions,)), ("child", "<u8")])
    fits = HEADER.size + entries * entry.itemsize + entry.itemsize - 8 <= len(node)
    if signature != b"TREE" or kind != 1 or not entries or not fits:
        raise CorruptFileError(f"{where}: a node of the chunk index is damaged")
    # The last key has no child behind it: eight bytes of padding make it a whole entry.
    table = np.frombuffer(node + bytes(8), entry, entries + 1, HEADER.size)
    places = table["offset"][:, :-1].astype(np.int64) // np.array(index.chunk)
    keys = places @ np.r_[np.cumprod(index.grid[:0:-1])[::-1], 1]
    return level, keys, table["child"][:-1].astype(np.int64)
