"""What Pillow and the libraries under it raise, say and allow."""

from __future__ import annotations

import logging
import os
import struct
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from PIL import Image

TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)
"""What Pillow raises within `overheard` on an image of too many pixels."""
DAMAGED = (
    *(OSError, EOFError, SyntaxError, ValueError, RuntimeError),
    *(TypeError, AttributeError, KeyError, IndexError, struct.error),
    *TOO_LARGE,
)
"""What Pillow raises on damaged images; it lets through what its parsers of metadata run into."""

# Without a handler Python would write to stderr what Pillow logs and raises besides.
logging.getLogger("PIL").addHandler(logging.NullHandler())

# Warnings, their filters, Pillow's limit and stderr are the process's: two threads that put them back in another order
# than they took them would change them for good.
_ONE_AT_A_TIME = threading.Lock()
_STDERR = 2


@contextmanager
def overheard(max_pixels: int) -> Iterator[list[str]]:
    """Reads images of `max_pixels` and less, silently.

    Yields:
        What Pillow warned of, complete when the block ends, and what was added by `libtiff_overheard`.
    """
    said: list[str] = []
    with _ONE_AT_A_TIME, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            yield said
        finally:
            Image.MAX_IMAGE_PIXELS = limit
        said += [str(warning.message) for warning in caught]


@contextmanager
def libtiff_overheard(said: list[str]) -> Iterator[None]:
    """Adds the lines that libraries write to stderr to `said`: libtiff has no other way to warn."""
    with tempfile.TemporaryFile() as file:
        try:
            stderr = os.dup(_STDERR)
        except OSError:
            # Closed, as in daemons: nobody would see the lines.
            yield
            return
        os.dup2(file.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(stderr, _STDERR)
            os.close(stderr)
        file.seek(0)
        said += file.read().decode(errors="replace").splitlines()


def load(picture: Image.Image, said: list[str]) -> None:
    """Decodes an opened picture within `overheard`; warnings go to `said`."""
    with libtiff_overheard(said) if picture.format == "TIFF" else nullcontext():
        picture.load()
