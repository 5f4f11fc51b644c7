"""Picture files of every format and depth: upright, on a background, cropped, scaled and as bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageColor, ImageOps, UnidentifiedImageError

from aigc_fast.data.notes import Notes, one_line
from aigc_fast.data.pillow import DAMAGED, TOO_LARGE, decode, opened, reading
from aigc_fast.errors import UserError
from aigc_fast.runtime.arguments import whole

MAX_PIXELS = 500_000_000
BACKGROUND = "white"

_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff", ".avif"),
    *(".pbm", ".pgm", ".ppm", ".pnm", ".pfm", ".jp2", ".j2k", ".tga", ".qoi", ".ico"),
)
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
_GREY_MODES = ("1", "L", "LA", "La")
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
# Two pictures in one for two eyes, or a camera's preview: not a film.
_STEREO = "MPO"
_WHITES = (255, 1023, 4095, 16383, 65535)
"""What white is, of 8 to 16 bits."""


@cache
def picture_suffixes() -> tuple[str, ...]:
    """The names' ends, in lower case, of pictures that the installed Pillow reads."""
    known = Image.registered_extensions()
    return tuple(suffix for suffix in _SUFFIXES if suffix in known)


def colour_of(background: str) -> tuple[int, int, int]:
    """Red, green and blue of a colour that `PIL.ImageColor` knows.

    Raises:
        TypeError: on what is no text.
        UserError: on another word, or a colour with transparency.
    """
    if not isinstance(background, str):
        raise TypeError(f"background is {type(background).__name__}: expected a str")
    try:
        colour = ImageColor.getrgb(background)
    except ValueError:
        colour = ()
    if len(colour) != 3:
        raise UserError(f"background={background!r}: expected a colour, as white, black or #ff8800")
    return colour


def check_channels(channels: int | None) -> None:
    """Refuses what is neither None nor 1, of grey, or 3, of colour: by TypeError what is no integer, else by
    UserError."""
    if channels is not None and whole("channels", channels) not in (1, 3):
        raise UserError(f"channels={channels}: expected 1 or 3")


def composited(pixels: np.ndarray, background: str) -> np.ndarray:
    """uint8 (N, 3, H, W) of uint8 (N, 4, H, W), red, green, blue and alpha, on a background."""
    alpha = pixels[:, 3:].astype(np.float32) / 255
    below = np.array(colour_of(background), np.float32)[:, None, None]
    return np.round(pixels[:, :3] * alpha + below * (1 - alpha)).astype(np.uint8)


@dataclass(frozen=True)
class _Picture:
    """A square picture of mode L or RGB; or of F, with whatever `white` is, to be decided by all of them.

    Attributes:
        picture: the middle of the file's.
        highest: the brightest pixel of the file's.
        depth: "integers" or "floats" where the mode is F, None for bytes.
    """

    picture: Image.Image
    highest: float = 255
    depth: str | None = None


def read_pictures(
    files: list[Path],
    size: int,
    channels: int | None,
    *,
    background: str = BACKGROUND,
    max_pixels: int = MAX_PIXELS,
    notes: Notes,
) -> np.ndarray:
    """Reads picture files as one array: upright, cropped to the middle square and scaled to `size`.

    What white is of pixels that are floats, or integers of more than 8 bits, the brightest pixel of all such files
    says: 1 for floats up to 1, or else the most that 8, 10, 12, 14 or 16 bits hold.

    Args:
        files: at least one.
        size: side of the result in pixels.
        channels: 1 for grey, 3 for colour, None for grey when every file is grey.
        background: a colour, for what is transparent.
        max_pixels: the most that a file may have.
        notes: gets what was done to which file.

    Returns:
        uint8 (N, channels, size, size).

    Raises:
        UserError: when a file is damaged, no picture or too large, or the background is no colour.
    """
    colour_of(background)
    read = [_read(path, size, background, max_pixels, notes) for path in files]
    whites = {depth: _white_of(depth, files, read, notes) for depth in ("integers", "floats")}
    pictures = [_as_bytes(one.picture, whites[one.depth]) if one.depth else one.picture for one in read]
    if channels is None:
        channels = 1 if all(picture.mode == "L" for picture in pictures) else 3
    arrays = [np.asarray(picture.convert("L" if channels == 1 else "RGB")) for picture in pictures]
    return np.stack(arrays).reshape(len(arrays), size, size, channels).transpose(0, 3, 1, 2)


def _read(path: Path, size: int, background: str, max_pixels: int, notes: Notes) -> _Picture:
    try:
        with reading(max_pixels) as said, opened(path) as picture:
            if picture.format != _STEREO and getattr(picture, "is_animated", False):
                notes.add("of several pictures, of which the first was read", path)
            decode(picture, said)
            # Pillow's reader of TIFF has turned it by now, and has no orientation left.
            whole = _plain(upright(picture), background, path, notes)
    except TOO_LARGE:
        raise UserError(f"{path}: expected at most {max_pixels} pixels (max_pixels), got more") from None
    except MemoryError:
        raise UserError(f"{path}: does not fit into memory") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: cannot be read as an image: it begins as none that Pillow knows") from None
    except DAMAGED as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cannot be read as an image: {one_line(error)}") from None
    if said:
        notes.add("read in spite of a warning", path, one_line(said[0]))
    width, height = whole.picture.size
    if (width, height) != (size, size):
        crop = "" if width == height else "cropped to the middle square and "
        notes.add(f"{crop}scaled to {size} × {size} pixels (size)", path, f"{width} × {height}")
    square = ImageOps.fit(whole.picture, (size, size), Image.Resampling.LANCZOS)
    return _Picture(square, whole.highest, whole.depth)


def upright(picture: Image.Image) -> Image.Image:
    """A decoded picture, turned as its metadata says."""
    # Pillow's exif_transpose also writes the metadata again, which fails on damage that does not touch the picture.
    turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation))
    return picture if turn is None else picture.transpose(turn)


def _plain(picture: Image.Image, background: str, path: Path, notes: Notes) -> _Picture:
    """The picture in mode L, RGB or F, without transparency."""
    if picture.mode[0] in "IF":
        return _deep(picture, background, path, notes)
    flat, seen_through = opaque(picture, background)
    if seen_through:
        notes.add(f"with transparency, put on a background of {background}", path)
    return _Picture(flat)


def opaque(picture: Image.Image, background: str) -> tuple[Image.Image, bool]:
    """A picture of bytes in mode L or RGB, and whether some of the background shows through it."""
    mode = "L" if picture.mode in _GREY_MODES else "RGB"
    if not _has_alpha(picture):
        return picture.convert(mode), False
    seen = picture.convert("RGBA")
    if seen.getchannel("A").getextrema()[0] == 255:
        return seen.convert(mode), False
    colour = colour_of(background)
    flat = Image.alpha_composite(Image.new("RGBA", seen.size, colour), seen)
    return flat.convert(mode if len(set(colour)) == 1 else "RGB"), True


def _has_alpha(picture: Image.Image) -> bool:
    if picture.mode in _WITH_ALPHA or "transparency" in picture.info:
        return True
    return picture.mode == "P" and picture.palette.mode.endswith("A")


def _deep(picture: Image.Image, background: str, path: Path, notes: Notes) -> _Picture:
    pixels = np.asarray(picture).astype(np.float32)
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        # Only PNG has it, and only there 16 bits are sure.
        alpha = Image.fromarray(((pixels != transparent) * 255).astype(np.uint8))
        grey = _as_bytes(Image.fromarray(pixels), _WHITES[-1])
        return _plain(Image.merge("LA", (grey, alpha)), background, path, notes)
    lowest, highest = float(pixels.min()), float(pixels.max())
    if not 0 <= lowest <= highest <= _WHITES[-1]:
        raise UserError(f"{path}: expected pixels from 0 to {_WHITES[-1]}, got {lowest:g} to {highest:g}")
    return _Picture(Image.fromarray(pixels), highest, "floats" if picture.mode[0] == "F" else "integers")


def _white_of(depth: str, files: list[Path], read: list[_Picture], notes: Notes) -> int:
    deep = {path: one for path, one in zip(files, read, strict=True) if one.depth == depth}
    if not deep:
        return _WHITES[0]
    highest = max(one.highest for one in deep.values())
    white = next(level for level in ((1, *_WHITES) if depth == "floats" else _WHITES) if highest <= level)
    for path, one in deep.items():
        notes.add(f"of {depth}, {white} taken for white", path, f"up to {one.highest:g}")
    return white


def _as_bytes(picture: Image.Image, white: int) -> Image.Image:
    """Mode L of mode F."""
    return Image.fromarray(np.round(np.asarray(picture) * (255 / white)).clip(0, 255).astype(np.uint8))
