"""Where training images come from: the embedded digits, or the user's files."""

from __future__ import annotations

import dataclasses
import os
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aigc_fast.checks import as_path, integer
from aigc_fast.data.audio import WAV_SUFFIXES
from aigc_fast.data.dataset import ImageDataset
from aigc_fast.data.folder import entries, files_below, find_files, indexed
from aigc_fast.data.idx import find_idx, is_idx_images, read_idx
from aigc_fast.data.notes import Notes, some, text_of
from aigc_fast.data.npz import read_npz
from aigc_fast.data.pictures import (
    BACKGROUND,
    MAX_PIXELS,
    check_channels,
    colour_of,
    composited,
    picture_suffixes,
    read_pictures,
)
from aigc_fast.errors import UserError
from aigc_fast.wording import counted

DEFAULT_SIZE = 28


def digits(size: int = DEFAULT_SIZE) -> ImageDataset:
    """The 1,797 handwritten digits that come with the package, with a black margin, scaled up (bicubic).

    UCI's "Optical Recognition of Handwritten Digits" test set (Alpaydin and Kaynak, 1998), CC BY 4.0.

    Args:
        size: side of the images in pixels.

    Returns:
        1,797 grey images in ten classes.

    Raises:
        UserError: if images of that size do not fit into memory.
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
    path: str | os.PathLike[str] | None = None,
    *,
    size: int | None = None,
    channels: int | None = None,
    background: str = BACKGROUND,
    max_pixels: int = MAX_PIXELS,
) -> ImageDataset:
    """Loads training images.

    Args:
        path: None for the digits of the package; an .npz file with MNIST's arrays (`x_train`, `y_train`; or `x`, `y`);
            a folder with MNIST's IDX files, gzipped or not; or a folder of image files, whose subfolders are classes.
        size: side of the images in pixels; None keeps that of arrays, and scales image files and the digits to 28.
        channels: 1 for grey, 3 for colour; None for those of the data.
        background: the colour behind transparent images, by a name or code that `PIL.ImageColor` knows.
        max_pixels: the greatest number of pixels of an image file: a few bytes can claim more than fits into memory.

    Returns:
        The images; `notes` says what was left out, scaled, put on the background or read in spite of a warning.

    Raises:
        TypeError: if an argument is of another type; the message names it.
        UserError: if the data is missing, damaged, empty or of another layout, an argument is out of range, or images
            of that size do not fit into memory.
    """
    if size is not None:
        integer("size", size, 1)
    integer("max_pixels", max_pixels, 1)
    check_channels(channels)
    colour_of(background)
    if path is None:
        return _in_channels(digits(size or DEFAULT_SIZE), channels)
    path = as_path("path", path)
    notes = Notes(path if path.is_dir() else path.parent)
    try:
        if path.is_file():
            dataset = _of_arrays(*_read_file(path, notes), path, background, notes)
        elif not path.is_dir():
            raise UserError(f"{path}: no such file or folder")
        elif idx := find_idx(path):
            _note_others(path, idx, notes)
            dataset = _of_arrays(read_idx(idx[0]), read_idx(idx[1]), path, background, notes)
        else:
            return _read_folder(path, size or DEFAULT_SIZE, channels, background, max_pixels, notes)
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from None
    return _in_channels(_scaled(dataset, size), channels)


def find_pictures(folder: Path, notes: Notes | None = None) -> list[tuple[Path, str | None]]:
    """The picture files of a folder with their classes: `find_files`."""
    return find_files(folder, picture_suffixes(), notes)


def _read_file(path: Path, notes: Notes) -> tuple[np.ndarray, np.ndarray | None]:
    if path.suffix.lower() in (*picture_suffixes(), *WAV_SUFFIXES):
        raise UserError(f"{path}: expected a folder or an .npz file, got one file: name the folder that it is in")
    return read_npz(path, notes)


def _note_others(folder: Path, used: tuple[Path, Path], notes: Notes) -> None:
    others, subfolders = entries(folder)
    for unit, paths in (("files", others), ("folders", subfolders)):
        for path in paths:
            if path not in used:
                notes.add(f"left out beside {used[0].name}", path, unit=unit)


def _of_arrays(
    images: np.ndarray, labels: np.ndarray | None, path: Path, background: str, notes: Notes
) -> ImageDataset:
    pixels = torch.from_numpy(np.ascontiguousarray(_in_colours(_as_bytes(images, path, notes), background, notes)))
    if labels is None:
        return ImageDataset(pixels, None, (), text_of(path.name), notes.lines)
    if labels.shape == (len(pixels), 1):
        labels = labels[:, 0]
    if labels.shape != (len(pixels),) or labels.dtype.kind not in "iuU":
        raise UserError(
            f"{path}: expected {len(pixels)} integer labels, one an image, got {labels.dtype} {labels.shape}"
        )
    if labels.dtype.kind == "i" and labels.min() < 0:
        raise UserError(f"{path}: expected labels from 0 up, got {labels.min()} to {labels.max()}")
    return ImageDataset(pixels, *indexed([str(label) for label in labels.tolist()]), text_of(path.name), notes.lines)


def _as_bytes(images: np.ndarray, path: Path, notes: Notes) -> np.ndarray:
    """(N, H, W), (N, H, W, C) or (N, C, H, W), bytes, bits, or floats in [0, 1] or [0, 255], as uint8 (N, C, H, W)."""
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3, 4):
        images = images.transpose(0, 3, 1, 2)
    elif images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"{path}: expected images (N, height, width) in 1 or 3 channels, got shape {images.shape}")
    if images.size == 0:
        raise UserError(f"{path}: expected at least one image, got shape {images.shape}")
    if images.dtype.kind not in "iuf":
        raise UserError(f"{path}: expected numbers as pixels, got {images.dtype}")
    low, high = images.min(), images.max()
    if not (low >= 0 and high <= 255):
        raise UserError(f"{path}: expected pixels in 0 to 255 (or 0 to 1 as floats), got {low} to {high}")
    if high == 1 and images.dtype.kind != "f":
        notes.say("pixels are 0 and 1, of which 1 was taken for white")
    if images.dtype.kind == "f" or high <= 1:
        images = np.round(np.multiply(images, 255 if high <= 1 else 1, dtype=np.float32))
    return images.astype(np.uint8)


def _in_colours(pixels: np.ndarray, background: str, notes: Notes) -> np.ndarray:
    """uint8 (N, C, H, W), without the fourth channel, of alpha."""
    if pixels.shape[1] != 4:
        return pixels
    transparent = int((pixels[:, 3].reshape(len(pixels), -1) < 255).any(1).sum())
    if transparent:
        notes.say(f"{counted(transparent, 'images')} with transparency, put on a background of {background}")
    return composited(pixels, background)


def _read_folder(
    path: Path, size: int, channels: int | None, background: str, max_pixels: int, notes: Notes
) -> ImageDataset:
    found = find_pictures(path, notes)
    if not found:
        raise _without_images(path)
    paths = [file for file, _ in found]
    try:
        read = read_pictures(paths, size, channels, background=background, max_pixels=max_pixels, notes=notes)
        pixels = torch.from_numpy(np.ascontiguousarray(read))
    except (MemoryError, OverflowError):
        raise _too_large(size, len(found)) from None
    return ImageDataset(pixels, *indexed([name for _, name in found]), text_of(path.name), notes.lines)


def _without_images(folder: Path) -> UserError:
    """The error of a folder without images, which names what may have been meant."""
    there = files_below(folder)
    likely = next((path.parent for path in there if is_idx_images(path)), None)
    likely = likely or next((path for path in there if path.suffix.lower() == ".npz"), None)
    names = [text_of(path.relative_to(folder)) for path in there]
    but = f", but {counted(len(there), 'files')}: {some(names)}" if there else ""
    return UserError(f"{folder}: holds no IDX files and no images{but}{f'; try {likely}' if likely else ''}")


def _scaled(dataset: ImageDataset, size: int | None) -> ImageDataset:
    height, width = dataset.image_shape[1:]
    if size is None or (height, width) == (size, size):
        return dataset
    scaled = _resized(dataset.images.float(), size, antialias=True)
    how = "scaled" if height == width else "stretched"
    note = f"{how} from {width} × {height} to {size} × {size} pixels"
    return dataclasses.replace(dataset, images=scaled, notes=(*dataset.notes, note))


def _in_channels(dataset: ImageDataset, channels: int | None) -> ImageDataset:
    if channels is None or dataset.image_shape[0] == channels:
        return dataset
    if channels == 3:
        images = dataset.images.expand(-1, 3, -1, -1)
    else:
        # ITU-R BT.601 luma in the 16-bit weights of Pillow's conversion to grey.
        weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32).view(1, 3, 1, 1)
        images = ((dataset.images * weights).sum(1, keepdim=True, dtype=torch.int32) + 32768 >> 16).byte()
    return dataclasses.replace(dataset, images=images)
