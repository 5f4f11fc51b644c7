"""Animations and video files that carry their provenance, and the contact sheets beside them."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aigc_fast.data.animations import ffmpeg
from aigc_fast.data.notes import one_line
from aigc_fast.data.pictures import MAX_PIXELS
from aigc_fast.data.pillow import DAMAGED, decode, opened, reading
from aigc_fast.errors import UserError
from aigc_fast.files import atomic
from aigc_fast.generation.grid import image_grid, to_uint8
from aigc_fast.generation.provenance import (
    RECORD,
    Provenance,
    from_record,
    png_chunks,
    read_provenance,
    software_of,
    to_record,
    write_png,
)

LABEL = "AI-generated video"
MAX_FPS = 1000.0

_GIF_MAX_FPS = 50.0
"""Beyond it, viewers slow GIFs down to 10 frames a second."""
_MAX_COLUMNS = 20
_OURS = f"{RECORD} "
# Beyond what a comment takes: what follows is no comment of ours.
_MAX_COMMENT = 1 << 20
_TO_COMMENT = (b"moov", b"udta", b"meta", b"ilst", b"\xa9cmt", b"data")


def clip_grid(clips: Tensor, columns: int | None = None) -> Tensor:
    """Arranges clips in a grid as one clip, like `image_grid`.

    Args:
        clips: (N, T, C, H, W), N and T at least 1.
        columns: clips per row; None for a square.

    Returns:
        (T, C, height, width).
    """
    return torch.stack([image_grid(frames, columns) for frames in clips.transpose(0, 1)])


def contact_sheet(clips: Tensor, columns: int = _MAX_COLUMNS) -> Tensor:
    """Shows clips as an image: a row for each, with its frames from left to right.

    Args:
        clips: (N, T, C, H, W), N and T at least 1.
        columns: the greatest number of frames to show, evenly chosen.

    Returns:
        An image (C, height, width).
    """
    length = clips.shape[1]
    chosen = torch.linspace(0, length - 1, min(length, columns)).round().long()
    return image_grid(clips[:, chosen].flatten(0, 1), len(chosen))


def write_video(
    path: str | os.PathLike[str], frames: Tensor, fps: float, provenance: Provenance, *, scale: int = 1
) -> Path:
    """Writes a clip with its provenance in the file's own metadata; whole, or not at all.

    The extension chooses the format: .apng or .png an APNG with text chunks as those of `write_png`, .gif a GIF with a
    comment, .mp4 H.264 with a comment in the container's metadata, if imageio-ffmpeg is installed. The comment is
    "aigc_fast " and a JSON record.

    Args:
        path: the file to write; its folder must exist.
        frames: (T, C, H, W) in [-1, 1], C = 1 or 3.
        fps: frames per second, above 0 and at most 1,000; at most 50 for a GIF, which counts in hundredths of a second.
        provenance: what to record.
        scale: each pixel becomes a square of this side.

    Returns:
        The path of the file.

    Raises:
        UserError: for another extension, a rate that the format does not support, a file that can't be written, or an
            MP4 without imageio-ffmpeg.
        ValueError: for frames of another shape.
    """
    target = Path(path)
    check_video(target, fps)
    if frames.dim() != 4 or not frames.numel():
        raise ValueError(f"frames: expected (T, C, H, W) and not empty, got {tuple(frames.shape)}")
    pictures = [_scaled(Image.fromarray(to_uint8(frame)), scale) for frame in frames]
    with atomic(target) as temporary:
        _WRITERS[target.suffix.lower()](temporary, pictures, fps, provenance)
    return target


def check_video(path: Path, fps: float) -> None:
    """Refuses, by UserError, a file name or a rate that `write_video` does not write."""
    suffix = path.suffix.lower()
    if suffix not in _WRITERS:
        raise UserError(f"{path}: expected the name of an APNG, GIF or MP4 file")
    most = _GIF_MAX_FPS if suffix == ".gif" else MAX_FPS
    if not 0 < fps <= most:
        raise UserError(f"fps={fps}: expected above 0 and at most {most:g} for {suffix}")
    if suffix == ".mp4":
        ffmpeg(path)


def _scaled(picture: Image.Image, scale: int) -> Image.Image:
    size = picture.width * scale, picture.height * scale
    return picture if scale == 1 else picture.resize(size, Image.Resampling.NEAREST)


def _write_apng(path: Path, pictures: list[Image.Image], fps: float, provenance: Provenance) -> None:
    _save(path, "PNG", pictures, 1000 / fps, pnginfo=png_chunks(provenance, LABEL))


def _write_gif(path: Path, pictures: list[Image.Image], fps: float, provenance: Provenance) -> None:
    comment = (_OURS + to_record(provenance)).encode()
    _save(path, "GIF", pictures, round(100 / fps) * 10, comment=comment, optimize=False)


def _save(path: Path, form: str, pictures: list[Image.Image], milliseconds: float, **options: object) -> None:
    first, *others = pictures
    first.save(path, form, save_all=True, append_images=others, duration=milliseconds, loop=0, **options)


def _write_mp4(path: Path, pictures: list[Image.Image], fps: float, provenance: Provenance) -> None:
    metadata = {"title": LABEL, "comment": _OURS + to_record(provenance), "encoder": software_of(provenance)}
    tags = [word for name, value in metadata.items() for word in ("-metadata", f"{name}={value}")]
    frames = [_even(np.asarray(picture.convert("RGB"))) for picture in pictures]
    height, width = frames[0].shape[:2]
    options = {"fps": fps, "codec": "libx264", "quality": 8, "macro_block_size": 2, "pix_fmt_in": "rgb24"}
    writer = ffmpeg(path).write_frames(
        str(path), (width, height), output_params=["-f", "mp4", "-movflags", "+faststart", *tags], **options
    )
    try:
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write {path}: {one_line(error)}") from None
    finally:
        writer.close()


def _even(frame: np.ndarray) -> np.ndarray:
    """With even sides, which H.264 takes: the last row and column once more."""
    height, width = frame.shape[:2]
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


_WRITERS: dict[str, Callable[[Path, list[Image.Image], float, Provenance], None]] = {
    ".apng": _write_apng,
    ".png": _write_apng,
    ".gif": _write_gif,
    ".mp4": _write_mp4,
}


def read_video_provenance(path: str | os.PathLike[str]) -> Provenance:
    """Reads what `write_video` recorded.

    Args:
        path: an APNG, GIF or MP4 file.

    Returns:
        The record.

    Raises:
        UserError: if the file is not an APNG, GIF or MP4, or has no record of this package.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".gif", ".mp4"):
        return read_provenance(path)
    try:
        comment = _comment_of_gif(path) if suffix == ".gif" else _comment_of_mp4(path)
    except DAMAGED as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or one_line(error)}") from None
    text = comment.decode(errors="replace")
    return from_record(text.removeprefix(_OURS) if text.startswith(_OURS) else None, path)


def _comment_of_gif(path: str | os.PathLike[str]) -> bytes:
    with reading(MAX_PIXELS) as said, opened(path, formats=["GIF"]) as picture:
        decode(picture, said)
        return picture.info.get("comment", b"")


def _comment_of_mp4(path: str | os.PathLike[str]) -> bytes:
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(0)
        if file.read(8)[4:] != b"ftyp":
            raise UserError(f"{path}: damaged, or no MP4 file")
        file.seek(0)
        for name in _TO_COMMENT:
            end = next((stop for found, stop in _boxes(file, end) if found == name), 0)
            # A box of metadata begins with its version and flags, one of data with its type and language.
            file.seek({b"meta": 4, b"data": 8}.get(name, 0), os.SEEK_CUR)
        return file.read(max(0, min(end - file.tell(), _MAX_COMMENT)))


def _boxes(file: BinaryIO, end: int) -> Iterator[tuple[bytes, int]]:
    """Name and end of each box that follows, the file standing at its content (ISO/IEC 14496-12)."""
    while file.tell() + 8 <= end:
        start = file.tell()
        size, name = struct.unpack(">I4s", file.read(8))
        if size == 1:
            (size,) = struct.unpack(">Q", file.read(8))
        stop = end if size == 0 else min(start + size, end)
        if stop < file.tell():
            return
        yield name, stop
        file.seek(stop)


def write_clips(
    path: str | os.PathLike[str], frames: Tensor, sheet: Tensor, fps: float, provenance: Provenance, *, scale: int = 1
) -> tuple[Path, Path]:
    """Writes a clip, and its contact sheet as a PNG beside it, each with its provenance.

    Args:
        path: as for `write_video`; the PNG has its name with the suffix .png.
        frames: as for `write_video`.
        sheet: the image of the PNG, as from `contact_sheet`.
        fps: as for `write_video`.
        provenance: what to record in both.
        scale: as for `write_video`, of both.

    Returns:
        The paths of both.

    Raises:
        UserError, ValueError: as `write_video`.
    """
    video = write_video(path, frames, fps, provenance, scale=scale)
    return video, write_png(video.with_suffix(".png"), sheet, provenance, scale=scale)
