"""Tensors and what belongs to them in safetensors files, checked when they are read."""

from __future__ import annotations

import json
import math
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aigc_fast import __version__
from aigc_fast.errors import UserError
from aigc_fast.files import atomic

_KEY = "aigc_fast"
_CHECKSUM = "aigc_fast.crc32"


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes tensors and JSON-able metadata to a safetensors file, whole or not at all.

    Args:
        path: the file; what stands there is replaced when the new one is complete.
        tensors: by name, on any device.
        metadata: JSON-able; the package's version and a checksum of the tensors are added.

    Raises:
        UserError: when the file can't be written.
    """
    kept = contiguous(tensors)
    text = json.dumps({**metadata, "version": __version__})
    with atomic(path) as temporary:
        try:
            save_file(kept, temporary, {_KEY: text, _CHECKSUM: _checksum(kept, text)})
        except SafetensorError as error:
            raise UserError(f"cannot write {path}: {error}") from None


def contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors takes them: on the CPU, contiguous, of several in one memory all but one copied."""
    kept, taken = {}, set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        start = value.untyped_storage().data_ptr()
        kept[name] = value.clone() if start in taken else value
        taken.add(start)
    return kept


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    total = zlib.crc32(text.encode())
    for name in sorted(tensors):
        total = zlib.crc32(name.encode(), total)
        # Nothing has no bytes, and strides by which it may not be viewed as such.
        if tensors[name].numel():
            total = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy(), total)
    return f"{total:08x}"


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata that `write_tensors` wrote, without reading the tensors; their checksum is not checked.

    Raises:
        UserError: when the file is missing, damaged or not the package's own.
    """
    with opened(path) as file:
        return _metadata(path, file.metadata())


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata that `write_tensors` wrote, to which it adds the file's `checksum`.

    Raises:
        UserError: when the file is missing, damaged or not the package's own.
    """
    with opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = file.metadata()
    metadata = _metadata(path, header)
    if header.get(_CHECKSUM) != _checksum(tensors, header[_KEY]):
        raise UserError(f"{path}: the file is damaged: its checksum does not match")
    return tensors, {**metadata, "checksum": header[_CHECKSUM]}


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """A safetensors file to read from.

    Raises:
        UserError: when it is missing or damaged.
    """
    try:
        if not Path(path).is_file():
            raise UserError(f"{path}: {'a folder, not a model file' if Path(path).is_dir() else 'no such file'}")
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: the file is damaged or no safetensors file: {error}") from None


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class MappedFile:
    """A safetensors file whose tensors are read as they are looked at, and copied as they are written to.

    Args:
        path: the file, which must not be written to while tensors of it live; that another takes its place is fine.

    Raises:
        UserError: when it is missing or damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        with opened(path), open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            self._header = json.loads(file.read(size))
            self._begin = 8 + size
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._path, self._length = path, len(self._bytes)
        self._address = torch.frombuffer(self._bytes, dtype=torch.uint8, count=1).data_ptr()

    def tensor(self, name: str) -> Tensor:
        """A tensor of the file, which is mapped where it is of floating-point numbers."""
        entry = self._header[name]
        shape, dtype = entry["shape"], _DTYPES.get(entry["dtype"])
        begin = self._begin + entry["data_offsets"][0]
        if dtype is None or begin % dtype.itemsize or 0 in shape:
            with opened(self._path) as file:
                return file.get_tensor(name)
        return torch.frombuffer(self._bytes, dtype=dtype, count=math.prod(shape), offset=begin).view(shape)

    def release(self, tensor: Tensor) -> None:
        """Gives back the memory of a tensor that was read and not written to; it is read again when it is looked at.

        Args:
            tensor: of this file, or another, of which nothing is given back.
        """
        begin = tensor.data_ptr() - self._address
        if not hasattr(mmap, "MADV_DONTNEED") or not 0 <= begin < self._length:
            return
        first = begin // mmap.PAGESIZE * mmap.PAGESIZE
        self._bytes.madvise(mmap.MADV_DONTNEED, first, begin + tensor.nbytes - first)


def _metadata(path: str | os.PathLike[str], header: Mapping[str, str] | None) -> dict[str, Any]:
    try:
        metadata = json.loads((header or {}).get(_KEY, ""))
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise UserError(f"{path}: the file was not written by aigc_fast: it lacks its metadata")
    return metadata
