"""Where training images come from: the embedded digits, or the user's files."""

from __future__ import annotations

import os
import tokenize
import zipfile
import zlib
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aigc_fast.data.dataset import ImageDataset
from aigc_fast.data.folder import SUFFIXES, find_images, read_images
from aigc_fast.data.idx import find_idx, read_idx
from aigc_fast.errors import UserError

DEFAULT_SIZE = 28
_ARRAY_IMAGES = ("x_train", "x", "images", "data")
_ARRAY_LABELS = ("y_train", "y", "labels", "target")
# What zipfile, its decompressors (lzma is None where Python lacks it) and NumPy's parser of headers raise.
_DAMAGED = (
    *(ValueError, TypeError, KeyError, EOFError, MemoryError, OverflowError, RuntimeError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
    *(() if zipfile.lzma is None else (zipfile.lzma.LZMAError,)),
)


def digits(size: int = DEFAULT_SIZE) -> ImageDataset:
    """The 1,797 handwritten digits that come with the package, with a black margin, scaled up (bicubic).

    UCI's "Optical Recognition of Handwritten Digits" test set (Alpaydin and Kaynak, 1998), CC BY 4.0.

    Args:
        size: side of the images in pixels.

    Raises:
        UserError: on a size that does not fit into memory.
    """
    with np.load(files("aigc_fast.data") / "digits.npz", allow_pickle=False) as arrays:
        levels, labels = arrays["images"], arrays["labels"]
    small = torch.nn.functional.pad(torch.from_numpy(levels)[:, None].float() * (255 / 16), (1, 1, 1, 1))
    names = tuple(str(digit) for digit in range(10))
    return ImageDataset(_resized(small, size), torch.from_numpy(labels).long(), names, "digits")


def _resized(images: Tensor, size: int, antialias: bool = False) -> Tensor:
    try:
        scaled = torch.nn.functional.interpolate(images, size=(size, size), mode="bicubic", antialias=antialias)
        return scaled.round().clamp(0, 255).byte()
    except RuntimeError:
        raise _too_large(size, len(images)) from None


def _too_large(size: int, count: int) -> UserError:
    return UserError(f"size={size}: {count} images of that size do not fit into memory")


def load(
    path: str | os.PathLike[str] | None = None, *, size: int | None = None, channels: int | None = None
) -> ImageDataset:
    """Training images.

    Args:
        path: None for the embedded digits; an .npz file with MNIST's arrays (`x_train`, `y_train`; or `x`, `y`);
            a folder with MNIST's IDX files, gzipped or not; or a folder of images, whose subfolders are classes.
        size: side of the images in pixels; None keeps the arrays' own and scales image files and the digits to 28.
        channels: 1 for grey, 3 for colour; None for what the data is.

    Raises:
        UserError: when the data is missing, damaged or empty, or the size does not fit into memory.
    """
    if size is not None and size < 1:
        raise UserError(f"size={size}: expected a positive number of pixels")
    if channels not in (None, 1, 3):
        raise UserError(f"channels={channels}: expected 1 or 3")
    if path is None:
        return _in_channels(digits(size or DEFAULT_SIZE), channels)
    path = Path(path)
    try:
        if path.is_file():
            dataset = _read_npz(path)
        elif not path.is_dir():
            raise UserError(f"{path}: no such file or folder")
        elif idx := find_idx(path):
            dataset = _dataset(read_idx(idx[0]), read_idx(idx[1]), path)
        else:
            return _read_folder(path, size or DEFAULT_SIZE, channels)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    return _in_channels(_scaled(dataset, size), channels)


def _read_npz(path: Path) -> ImageDataset:
    try:
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise UserError(f"{path}: expected an .npz file with images and labels, got a single array")
            images = next((arrays[name] for name in _ARRAY_IMAGES if name in arrays), None)
            labels = next((arrays[name] for name in _ARRAY_LABELS if name in arrays), None)
            names = list(arrays)
    except _DAMAGED as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: damaged, or no .npz file of plain arrays: {error}") from None
    for array in (images, labels):
        if not isinstance(array, np.ndarray | None):
            raise UserError(f"{path}: damaged, or no .npz file of plain arrays: a member is no .npy file")
    if images is None:
        raise UserError(f"{path}: expected an array {' or '.join(_ARRAY_IMAGES)}, got {', '.join(names) or 'none'}")
    return _dataset(images, labels, path)


def _dataset(images: np.ndarray, labels: np.ndarray | None, path: Path) -> ImageDataset:
    pixels = _as_bytes(images, path)
    if labels is None:
        return ImageDataset(pixels, None, (), path.name)
    if labels.shape != (len(pixels),) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{path}: expected {len(pixels)} integer labels, one an image, got {labels.dtype} {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= len(labels):
        raise UserError(f"{path}: expected labels from 0 up, got {labels.min()} to {labels.max()}")
    names = tuple(str(index) for index in range(int(labels.max()) + 1))
    return ImageDataset(pixels, torch.from_numpy(labels.astype(np.int64)), names, path.name)


def _as_bytes(images: np.ndarray, path: Path) -> Tensor:
    """(N, H, W), (N, H, W, C) or (N, C, H, W), bytes or floats in [0, 1] or [0, 255], as uint8 (N, C, H, W)."""
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"{path}: expected images (N, height, width) in 1 or 3 channels, got shape {images.shape}")
    if images.size == 0:
        raise UserError(f"{path}: expected at least one image, got shape {images.shape}")
    if images.dtype.kind not in "iuf":
        raise UserError(f"{path}: expected numbers as pixels, got {images.dtype}")
    low, high = images.min(), images.max()
    if not (low >= 0 and high <= 255):
        raise UserError(f"{path}: expected pixels in 0 to 255 (or 0 to 1 as floats), got {low} to {high}")
    if images.dtype.kind == "f":
        images = np.round(images * (255 if high <= 1 else 1))
    return torch.from_numpy(np.array(images, dtype=np.uint8, order="C"))


def _read_folder(path: Path, size: int, channels: int | None) -> ImageDataset:
    found = find_images(path)
    if not found:
        raise UserError(f"{path}: holds no IDX files and no images ({', '.join(SUFFIXES)})")
    try:
        pixels = torch.from_numpy(np.ascontiguousarray(read_images([file for file, _ in found], size, channels)))
    except (MemoryError, OverflowError):
        raise _too_large(size, len(found)) from None
    names = tuple(sorted({name for _, name in found if name is not None}))
    labels = torch.tensor([names.index(name) for _, name in found]) if names else None
    return ImageDataset(pixels, labels, names, path.name)


def _scaled(dataset: ImageDataset, size: int | None) -> ImageDataset:
    if size is None or dataset.image_shape[1:] == (size, size):
        return dataset
    scaled = _resized(dataset.images.float(), size, antialias=True)
    return ImageDataset(scaled, dataset.labels, dataset.class_names, dataset.name)


def _in_channels(dataset: ImageDataset, channels: int | None) -> ImageDataset:
    if channels is None or dataset.image_shape[0] == channels:
        return dataset
    if channels == 3:
        images = dataset.images.expand(-1, 3, -1, -1)
    else:
        # ITU-R BT.601 luma, as Pillow's conversion to grey.
        weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        images = (dataset.images.float() * weights).sum(1, keepdim=True).round().byte()
    return ImageDataset(images, dataset.labels, dataset.class_names, dataset.name)
