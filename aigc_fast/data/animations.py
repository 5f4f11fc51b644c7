"""Files of moving pictures: GIF, APNG and WebP, folders of frames, and video files where their reader is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from aigc_fast.data.folder import check_classes, entries
from aigc_fast.data.notes import Notes, one_line, text_of
from aigc_fast.data.pictures import opaque, picture_suffixes, upright
from aigc_fast.data.pillow import DAMAGED, TOO_LARGE, decode, opened, reading
from aigc_fast.errors import UserError
from aigc_fast.wording import counted

ANIMATED_SUFFIXES = (".gif", ".apng", ".webp")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")

_MAYBE_ANIMATED = ".png"
_LAST_OF_GIF = b";"


class Source(NamedTuple):
    """Where a clip's frames are: a file, or a folder and the files in it.

    Attributes:
        path: the file or folder.
        stills: the pictures of a folder of frames, in their order; None for a file.
    """

    path: Path
    stills: tuple[Path, ...] | None = None


@dataclass(frozen=True)
class Recorded:
    """What a source holds.

    Attributes:
        frames: uint8 (T, channels, size, size).
        fps: frames a second; None where the source does not say.
    """

    frames: Tensor
    fps: float | None


def find_clips(folder: Path, notes: Notes) -> list[tuple[Source, str | None]]:
    """The clips of a folder with their classes, in natural order.

    A clip is an animation, a video file, or a folder of two pictures or more and nothing else that moves. Each
    subfolder that holds clips, at any depth, and is none itself, is a class; unless more of them lie right in the
    folder, which have none.

    Args:
        folder: where to look; links are followed.
        notes: gets what is left out.

    Raises:
        UserError: when the subfolders are not classes but parts of a data set.
        OSError: when a folder can't be read.
    """
    here, others = _scanned(folder)
    classes: dict[Path, list[Source]] = {}
    for subfolder in entries(folder)[1]:
        found, beside = _below(subfolder, frozenset([_identity(folder)]))
        others += beside
        if [source.path for source in found] == [subfolder]:
            here += found
        elif found:
            classes[subfolder] = found
    if not here and not classes and len(pictures := _pictures(others)) > 1:
        here, others = [Source(folder, pictures)], [path for path in others if path not in pictures]
    inside = [(source, text_of(subfolder.name)) for subfolder, found in classes.items() for source in found]
    if len(here) > len(inside):
        _leave_out(notes, "left out, in subfolders beside clips without a class", [one.path for one, _ in inside])
        inside = [(source, None) for source in here]
    else:
        check_classes(folder, {subfolder: [one.path for one in found] for subfolder, found in classes.items()}, "clip")
        _leave_out(notes, "left out, beside the class folders", [source.path for source in here])
    if inside:
        _leave_out(notes, "left out, no clips", others)
    return inside


def _leave_out(notes: Notes, why: str, paths: list[Path]) -> None:
    for path in paths:
        notes.add(why, path)


def _scanned(folder: Path) -> tuple[list[Source], list[Path]]:
    """The animations and video files right in a folder, and its other files."""
    files, _ = entries(folder)
    moving = [path for path in files if moves(path)]
    return [Source(path) for path in moving], [path for path in files if path not in moving]


def _below(folder: Path, above: frozenset[tuple[int, int]]) -> tuple[list[Source], list[Path]]:
    """The clips of a folder and its subfolders, and all other files."""
    if (identity := _identity(folder)) in above:
        return [], []
    found, others = _scanned(folder)
    for subfolder in entries(folder)[1]:
        deeper, beside = _below(subfolder, above | {identity})
        found, others = found + deeper, others + beside
    pictures = _pictures([path for path in others if path.parent == folder])
    if not found and len(pictures) > 1:
        return [Source(folder, pictures)], [path for path in others if path not in pictures]
    return found, others


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _pictures(files: list[Path]) -> tuple[Path, ...]:
    return tuple(path for path in files if path.suffix.lower() in picture_suffixes())


def moves(path: Path) -> bool:
    """Whether a file is a video's by its name, or an animation's, of PNG files by what is in it."""
    suffix = path.suffix.lower()
    if suffix != _MAYBE_ANIMATED:
        return suffix in (*ANIMATED_SUFFIXES, *VIDEO_SUFFIXES) and path.is_file()
    try:
        with reading(2**62), opened(path) as picture:
            return bool(getattr(picture, "is_animated", False))
    except DAMAGED:
        return False


def read_source(
    source: Source, size: int, channels: int, *, background: str, max_pixels: int, max_frames: int, notes: Notes
) -> Recorded:
    """The frames of a clip, each cropped to the middle square and scaled as it comes, so that no more than one is held
    whole.

    Args:
        source: of `find_clips`.
        size: side of the result in pixels.
        channels: 1 for grey, 3 for colour.
        background: a colour, for what is transparent.
        max_pixels: the most that a frame may have.
        max_frames: the most that are read.
        notes: gets what was done to it.

    Returns:
        The frames; none of a folder whose pictures are of several sizes.

    Raises:
        UserError: when a file is damaged, no animation, too large, or of a format whose reader is not installed.
    """
    with _problems_told(source.path, max_pixels) as said:
        reader = _FrameReader(source, size, channels, background, notes, said)
        if source.stills is not None:
            frames, fps = reader.of_folder(max_frames)
        elif source.path.suffix.lower() in VIDEO_SUFFIXES:
            frames, fps = reader.of_video(max_frames)
        else:
            frames, fps = reader.of_animation(max_frames)
    if said:
        notes.add("read in spite of a warning", source.path, one_line(said[0]))
    array = np.stack(frames) if frames else np.empty((0, size, size, channels), np.uint8)
    array = array.reshape(len(frames), size, size, channels).transpose(0, 3, 1, 2)
    return Recorded(torch.from_numpy(np.ascontiguousarray(array)), fps)


@contextmanager
def _problems_told(path: Path, max_pixels: int) -> Iterator[list[str]]:
    try:
        with reading(max_pixels) as said:
            yield said
    except UserError:
        raise
    except TOO_LARGE:
        raise UserError(f"{path}: expected frames of at most {max_pixels} pixels (max_pixels), got more") from None
    except (MemoryError, OverflowError):
        raise UserError(f"{path}: does not fit into memory") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: cannot be read as an animation: it begins as none that Pillow knows") from None
    except DAMAGED as error:
        raise UserError(f"{path}: cannot be read to its end: {one_line(error)}") from None


class _FrameReader:
    def __init__(
        self, source: Source, size: int, channels: int, background: str, notes: Notes, said: list[str]
    ) -> None:
        self.source, self.size, self.background, self.notes, self.said = source, size, background, notes, said
        self.mode = "L" if channels == 1 else "RGB"
        self.is_seen_through = False

    def of_animation(self, most: int) -> tuple[list[np.ndarray], float | None]:
        frames, lengths = [], []
        with opened(self.source.path) as picture:
            for index in range(getattr(picture, "n_frames", 1)):
                if index >= most:
                    break
                picture.seek(index)
                frame = self._upright(picture)
                frames.append(self._fitted(frame))
                lengths.append(float(picture.info.get("duration", 0) or 0))
            total = getattr(picture, "n_frames", 1)
            self._note_size(frame.size)
            is_gif = picture.format == "GIF"
        self._tell(total, most)
        if is_gif and not _ends(self.source.path):
            raise UserError(f"{self.source.path}: cannot be read to its end: the GIF is cut off")
        return self._in_pace(frames, lengths, most)

    def _in_pace(self, frames: list[np.ndarray], lengths: list[float], most: int) -> tuple[list[np.ndarray], float]:
        """The frames, those that last longer than the shortest again and again."""
        shortest = min(lengths, default=0)
        if shortest <= 0:
            return frames, None
        times = [round(length / shortest) for length in lengths]
        if max(times) > 1:
            self.notes.add("whose frames last unequally long, of which the longer were repeated", self.source.path)
            frames = [frame for frame, count in zip(frames, times, strict=True) for _ in range(count)][:most]
        return frames, 1000 / shortest

    def of_folder(self, most: int) -> tuple[list[np.ndarray], None]:
        frames, sizes = [], {}
        for path in self.source.stills[:most]:
            with opened(path) as picture:
                frame = self._upright(picture)
                sizes[frame.size] = True
                if len(sizes) > 1:
                    break
                frames.append(self._fitted(frame))
        if len(sizes) > 1:
            first, other = sizes
            told = " and ".join(f"{width} × {height}" for width, height in (first, other))
            self.notes.add("of frames of several sizes, left out", self.source.path, told)
            return [], None
        self._note_size(next(iter(sizes)))
        self._tell(len(self.source.stills), most)
        return frames, None

    def of_video(self, most: int) -> tuple[list[np.ndarray], float | None]:
        reader = ffmpeg(self.source.path).read_frames(str(self.source.path))
        try:
            facts, frames = next(reader), []
            for count, content in enumerate(reader):
                if count >= most:
                    self._tell(count + 1, most)
                    break
                frames.append(self._fitted(Image.frombuffer("RGB", facts["size"], content)))
        except (OSError, RuntimeError, LookupError, StopIteration) as error:
            raise UserError(f"{self.source.path}: cannot be read as a video: {_last_line(error)}") from None
        finally:
            reader.close()
        self._note_size(facts["size"])
        return frames, float(facts["fps"]) or None

    def _upright(self, picture: Image.Image) -> Image.Image:
        decode(picture, self.said)
        return upright(picture)

    def _fitted(self, picture: Image.Image) -> np.ndarray:
        if picture.mode[0] in "IF":
            raise UserError(f"{self.source.path}: expected frames of 8 bits, got mode {picture.mode}")
        flat, seen_through = opaque(picture, self.background)
        if seen_through and not self.is_seen_through:
            self.is_seen_through = True
            self.notes.add(f"with transparency, put on a background of {self.background}", self.source.path)
        return np.asarray(ImageOps.fit(flat.convert(self.mode), (self.size, self.size), Image.Resampling.LANCZOS))

    def _note_size(self, sides: tuple[int, int]) -> None:
        width, height = sides
        if (width, height) != (self.size, self.size):
            crop = "" if width == height else "cropped to the middle square and "
            what = f"{crop}scaled to {self.size} × {self.size} pixels (size)"
            self.notes.add(what, self.source.path, f"{width} × {height}")

    def _tell(self, total: int, most: int) -> None:
        if total > most:
            self.notes.add(f"longer than {counted(most, 'frames')} (max_frames), the rest left out", self.source.path)


def _ends(path: Path) -> bool:
    """Whether a GIF has its last byte; zeros may follow."""
    with path.open("rb") as file:
        file.seek(-min(4096, path.stat().st_size), 2)
        return file.read().rstrip(b"\0\r\n").endswith(_LAST_OF_GIF)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(lines[-1]) if lines else "it holds no frames"


def ffmpeg(path: Path) -> ModuleType:
    """The reader and writer of video files.

    Raises:
        UserError: when it is not installed.
    """
    try:
        import imageio_ffmpeg
    except ImportError:
        raise UserError(
            f"{path}: video files take imageio-ffmpeg, which is not installed: pip install 'aigc-fast[video]'"
        ) from None
    return imageio_ffmpeg
