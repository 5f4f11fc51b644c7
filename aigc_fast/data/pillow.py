"""What Pillow and the libraries under it raise, say and allow."""

from __future__ import annotations

import logging
import math
import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from PIL import Image

from aigc_fast.data.overheard import overheard, stderr_overheard

TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)
"""What Pillow raises within `reading` on an image of too many pixels."""
DAMAGED = (
    *(OSError, EOFError, SyntaxError, ValueError, RuntimeError),
    *(TypeError, AttributeError, KeyError, IndexError, struct.error),
    *TOO_LARGE,
)
"""What Pillow raises on damaged images; it lets through what its parsers of metadata run into."""

# Deflate makes at most so many bytes of one, and a code of 12 bits is the most that a GIF has for 4096 pixels.
_MOST_INFLATED, _MOST_OF_GIF = 1032, 4096 * 8 // 12

# Without a handler Python would write to stderr what Pillow logs and raises besides.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@contextmanager
def reading(max_pixels: int) -> Iterator[list[str]]:
    """Reads images of `max_pixels` and less, silently.

    Yields:
        What Pillow and the libraries under it warned of, complete when the block ends.
    """
    with overheard() as said:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            yield said
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def opened(path: str | os.PathLike[str], formats: Sequence[str] | None = None) -> Iterator[Image.Image]:
    """A picture to look at within `reading`.

    Of a GIF the frames are no larger than the file has pixels for: Pillow fills their memory when it comes to them.

    Args:
        path: the file.
        formats: what it may be, as Pillow calls it; None for all.
    """
    limit, most = Image.MAX_IMAGE_PIXELS, _most_of_gif(path)
    Image.MAX_IMAGE_PIXELS = min(limit, most)
    try:
        with Image.open(path, formats=formats) as picture:
            yield picture
    except TOO_LARGE:
        if limit <= most:
            raise
        raise OSError("its frames are larger than the file has pixels for") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _most_of_gif(path: str | os.PathLike[str]) -> float:
    with open(path, "rb") as file:
        return _MOST_OF_GIF * os.fstat(file.fileno()).st_size if file.read(3) == b"GIF" else math.inf


def decode(picture: Image.Image, said: list[str]) -> None:
    """Decodes an opened picture within `reading`."""
    if (picture.format == "PNG" and not _may_hold(picture)) or (picture.format == "TIFF" and not _is_covered(picture)):
        raise OSError("image file is truncated")
    # libtiff has no other way to warn.
    with stderr_overheard(said) if picture.format == "TIFF" else nullcontext():
        picture.load()


def _is_covered(picture: Image.Image) -> bool:
    """Whether strips or tiles are there for all of a TIFF; Pillow leaves black what has none."""
    width, height = picture.size
    parts = [part for _, part, *_ in picture.tile if part is not None]
    area = sum((min(right, width) - left) * (min(low, height) - top) for left, top, right, low in parts)
    return area >= width * height


def _may_hold(picture: Image.Image) -> bool:
    """Whether a PNG is as large as its pixels, of a bit and more, need; Pillow takes memory for them, and fills it."""
    try:
        size = os.stat(picture.filename).st_size
    except (OSError, AttributeError):
        return True
    return picture.width * picture.height <= 8 * _MOST_INFLATED * size
