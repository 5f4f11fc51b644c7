"""What Pillow and the libraries under it raise, say and allow."""

from __future__ import annotations

import logging
import os
import struct
import warnings
from collections.abc import Iterator
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

# Deflate makes at most so many bytes of one.
_MOST_INFLATED = 1032

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


def decode(picture: Image.Image, said: list[str]) -> None:
    """Decodes an opened picture within `reading`."""
    if picture.format == "PNG" and not _may_hold(picture):
        raise OSError("image file is truncated")
    # libtiff has no other way to warn.
    with stderr_overheard(said) if picture.format == "TIFF" else nullcontext():
        picture.load()


def _may_hold(picture: Image.Image) -> bool:
    """Whether a PNG is as large as its pixels, of a bit and more, need; Pillow takes memory for them, and fills it."""
    try:
        size = os.stat(picture.filename).st_size
    except (OSError, AttributeError):
        return True
    return picture.width * picture.height <= 8 * _MOST_INFLATED * size
