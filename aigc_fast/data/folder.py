"""A folder of files, whose subfolders are classes; and of images."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from aigc_fast.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
DAMAGED = (
    *(OSError, SyntaxError, ValueError, TypeError, AttributeError, KeyError, IndexError, struct.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)
"""What Pillow raises on damaged images; it lets through what its parsers of metadata run into."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture upright, by EXIF's orientation."""
_GREY_MODES = ("1", "L", "LA", "I", "I;16", "F")


def find_files(folder: Path, suffixes: tuple[str, ...]) -> list[tuple[Path, str | None]]:
    """The files of a folder that end in one of `suffixes`, in any case, with their classes, sorted by name.

    Files right in the folder have no class; when there are none, each subfolder with such files is a class.
    """
    files = _files_in(folder, suffixes)
    if files:
        return [(path, None) for path in files]
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir())
    return [(path, subfolder.name) for subfolder in subfolders for path in _files_in(subfolder, suffixes)]


def _files_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.is_file())


def find_images(folder: Path) -> list[tuple[Path, str | None]]:
    """The image files of a folder with their classes: `find_files`."""
    return find_files(folder, SUFFIXES)


def read_images(files: list[Path], size: int, channels: int | None) -> np.ndarray:
    """Reads image files as one array: cropped to the middle square and scaled to `size`.

    Args:
        files: at least one.
        size: side of the result in pixels.
        channels: 1 for grey, 3 for colour, None for grey when every file is grey.

    Returns:
        uint8 (N, channels, size, size).

    Raises:
        UserError: when a file is damaged or no image.
    """
    pictures = [_read(path, size) for path in files]
    if channels is None:
        channels = 1 if all(picture.mode == "L" for picture in pictures) else 3
    mode = "L" if channels == 1 else "RGB"
    arrays = [np.asarray(picture.convert(mode)) for picture in pictures]
    return np.stack(arrays).reshape(len(arrays), size, size, channels).transpose(0, 3, 1, 2)


def _read(path: Path, size: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                return ImageOps.fit(_plain(_upright(picture)), (size, size), Image.Resampling.LANCZOS)
    except DAMAGED as error:
        raise UserError(f"{path}: cannot be read as an image: {error}") from None


def _upright(picture: Image.Image) -> Image.Image:
    # Pillow's exif_transpose also writes the metadata again, which fails on damage that does not touch the picture.
    turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation))
    return picture if turn is None else picture.transpose(turn)


def _plain(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        # Pillow's own conversion of 16-bit grey clips at 255 where it should scale.
        return Image.fromarray((np.asarray(picture).astype(np.float32) / 257).clip(0, 255).astype(np.uint8))
    if picture.mode in _GREY_MODES:
        return picture.convert("L")
    return picture.convert("RGB")
