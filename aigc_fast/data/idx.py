"""MNIST's IDX files, gzipped or not."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from aigc_fast.errors import UserError

_UNSIGNED_BYTE = 0x08
_IMAGES = ("train-images-idx3-ubyte", "train-images.idx3-ubyte")
_LABELS = ("train-labels-idx1-ubyte", "train-labels.idx1-ubyte")


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in an IDX file; a name that ends in .gz is decompressed.

    Raises:
        UserError: when the file is no IDX file of bytes, or shorter or longer than its header says, or the header is of
            more dimensions or elements than an array can have.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != _UNSIGNED_BYTE:
                raise UserError(f"{path}: not an IDX file of bytes: it starts with {magic.hex() or 'nothing'}")
            header = file.read(4 * magic[3])
            if len(header) < 4 * magic[3]:
                raise UserError(f"{path}: the file is truncated inside its header")
            shape = struct.unpack(f">{magic[3]}I", header)
            body = _read_exactly(file, math.prod(shape), path, shape)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    try:
        return np.frombuffer(body, np.uint8).reshape(shape)
    except ValueError as error:
        raise UserError(f"{path}: its header is of no array: {error}") from None


def _read_exactly(file: gzip.GzipFile, size: int, path: Path, shape: tuple[int, ...]) -> bytes:
    # Chunks, so that a header that promises too much costs no memory.
    parts, left = [], size
    while left > 0 and (part := file.read(min(left, 1 << 22))):
        parts.append(part)
        left -= len(part)
    if left or file.read(1):
        raise UserError(f"{path}: expected {size} bytes for shape {shape}, got {'fewer' if left else 'more'}")
    return b"".join(parts)


def find_idx(folder: Path) -> tuple[Path, Path] | None:
    """The files of training images and labels in a folder, or None when it holds no IDX images.

    Raises:
        UserError: when the images are there and the labels are not.
    """
    images, labels = _first(folder, _IMAGES), _first(folder, _LABELS)
    if images is None:
        return None
    if labels is None:
        raise UserError(f"{folder}: {images.name} is there, {_LABELS[0]} (or .gz) is not")
    return images, labels


def is_idx_images(path: Path) -> bool:
    """Whether a file has the name of IDX training images."""
    return path.name.removesuffix(".gz") in _IMAGES


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    candidates = [folder / f"{name}{suffix}" for name in names for suffix in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), None)
