"""Clips to train on: digits that move and bounce, which the package makes itself, or files of moving pictures."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aigc_fast import functional
from aigc_fast.checks import as_path, check_seed, integer
from aigc_fast.data.animations import (
    ANIMATED_SUFFIXES,
    VIDEO_SUFFIXES,
    Recorded,
    Source,
    find_clips,
    moves,
    read_source,
)
from aigc_fast.data.dataset import Dataset
from aigc_fast.data.folder import entries, files_below, indexed
from aigc_fast.data.notes import Notes, some, text_of
from aigc_fast.data.pictures import BACKGROUND, MAX_PIXELS, check_channels, colour_of, picture_suffixes
from aigc_fast.data.readers import digits as still_digits
from aigc_fast.errors import UserError
from aigc_fast.runtime.arguments import whole
from aigc_fast.wording import counted, sized

DEFAULT_SIZE = 32
DEFAULT_FRAMES = 15
DEFAULT_FPS = 10.0
HELD_OUT = 0.1
"""The share of the clips that training does not see."""

CLIPS = 2000
MOST_DIGITS = 2
MAX_FRAMES = 2000
"""The most frames that are read of a file."""

# Of all clips together.
_MOST_BYTES = 4 << 30

# Of the frames' side: how large a digit is, and how far it goes in a step.
_DIGIT, _SLOWEST, _FASTEST = 0.4375, 0.035, 0.09
_FAINT = 24


@dataclass(frozen=True)
class VideoDataset(Dataset):
    """Clips of one length and size, stored as bytes, and held-out ones that training does not see; see `Dataset`.

    Attributes:
        frames: uint8 (N, T, channels, height, width).
        labels: int64 (N,), or None without classes.
        class_names: the names of the classes, in the labels' order; empty without classes.
        held_out: uint8 (M, T, channels, height, width).
        held_out_labels: int64 (M,), or None without classes.
        fps: frames per second.
        name: where the clips come from, for logs and provenance.
        notes: what was left out, changed or corrected when they were read, in lines to show.
        digits: number of moving digits in each clip; None for other clips.
        paths: positions of the digits of `frames`, (N, T, digits, 2): row and column of their centre in pixels; None
            for other clips.
        held_out_paths: the same for `held_out`.
    """

    unit = "clips"
    frames: Tensor
    labels: Tensor | None
    class_names: tuple[str, ...]
    held_out: Tensor
    held_out_labels: Tensor | None
    fps: float
    name: str
    notes: tuple[str, ...] = ()
    digits: int | None = None
    paths: Tensor | None = None
    held_out_paths: Tensor | None = None

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def shape(self) -> dict[str, Any]:
        """`{"frame_shape": (channels, height, width), "frames": of each clip}`."""
        return {"frame_shape": tuple(self.frames.shape[2:]), "frames": self.frames.shape[1]}

    @property
    def suited(self) -> dict[str, Any]:
        """`{"things": number of moving digits}`, if that is known."""
        return {} if self.digits is None else {"things": self.digits}

    def _form(self) -> str:
        _, length, channels, height, width = self.frames.shape
        return f"{length} frames of {width} × {height} pixels in {'grey' if channels == 1 else 'colour'}"

    def record(self) -> dict[str, Any]:
        """See `Dataset.record`."""
        return {**super().record(), "fps": self.fps, "digits": self.digits}

    def _content(self) -> Tensor:
        return self.frames

    def batch(self, indices: Tensor | slice = slice(None)) -> Tensor:
        """Some clips, as models take them.

        Args:
            indices: int64 (n,), or a slice; all by default.

        Returns:
            float32 (n, T, channels, height, width) in [-1, 1].
        """
        return as_floats(self.frames[indices])


def as_floats(frames: Tensor) -> Tensor:
    """Bytes as float32 in [-1, 1]."""
    return frames.float() / 127.5 - 1


def load_videos(
    path: str | os.PathLike[str] | None = None,
    *,
    size: int = DEFAULT_SIZE,
    channels: int | None = None,
    frames: int = DEFAULT_FRAMES,
    digits: int | None = None,
    background: str = BACKGROUND,
    max_pixels: int = MAX_PIXELS,
    max_frames: int = MAX_FRAMES,
) -> VideoDataset:
    """Loads training clips.

    Args:
        path: None for `moving_digits`; an animation (GIF, APNG, WebP) or, if imageio-ffmpeg is installed, a video file;
            or a folder of these and of folders of frames, whose subfolders are classes. Each is cut into clips; the
            remainder at its end is left out. A tenth of the clips is held out.
        size: side of the frames in pixels, to which the square in the middle of each frame is scaled.
        channels: 1 for grey, 3 for colour; None for those of the frames.
        frames: number of frames of a clip, at least 2.
        digits: number of moving digits in each clip of `moving_digits`, 1 or 2; None for 1.
        background: the colour behind transparent frames, by a name or code that `PIL.ImageColor` knows.
        max_pixels: the greatest number of pixels of a frame.
        max_frames: the greatest number of frames to read from a file.

    Returns:
        The clips; `notes` says what was left out, scaled, repeated or put on the background.

    Raises:
        TypeError: if an argument is of another type; the message names it.
        UserError: if the data is missing, damaged, too short, too large or of another layout, or an argument is out of
            range.
    """
    sizes = ("size", size, 1), ("frames", frames, 2), ("max_frames", max_frames, 2), ("max_pixels", max_pixels, 1)
    for name, value, least in sizes:
        integer(name, value, least)
    check_channels(channels)
    colour_of(background)
    if path is None:
        return moving_digits(digits=1 if digits is None else digits, size=size, frames=frames, channels=channels or 1)
    if digits is not None:
        raise UserError(f"digits={digits}: {path} holds other clips than digits that the package moves")
    path = as_path("path", path)
    notes = Notes(path if path.is_dir() else path.parent)
    reading = {"background": background, "max_pixels": max_pixels, "max_frames": max_frames, "notes": notes}
    try:
        sources = _sources(path, notes)
        recorded = _read(sources, size, channels, frames, reading)
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from None
    return _dataset(path, sources, recorded, frames, notes)


def _sources(path: Path, notes: Notes) -> list[tuple[Source, str | None]]:
    if path.is_dir():
        found = find_clips(path, notes)
        if not found:
            there = [text_of(file.relative_to(path)) for file in files_below(path)]
            but = f", but {counted(len(there), 'files')}: {some(there)}" if there else ""
            raise UserError(f"{path}: holds no clips ({_known()}, or folders of frames){but}")
        return found
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    if not moves(path):
        raise UserError(f"{path}: expected an animation or a video ({_known()}), or a folder of them")
    return [(Source(path), None)]


def _known() -> str:
    return ", ".join((*ANIMATED_SUFFIXES, *VIDEO_SUFFIXES))


def _read(
    sources: list[tuple[Source, str | None]], size: int, channels: int | None, frames: int, reading: dict[str, Any]
) -> list[Recorded]:
    """What each source holds, in as many channels as are asked for, or as there are in any."""
    recorded, held = [], 0
    for source, _ in sources:
        found = read_source(source, size, channels or 3, **reading)
        if channels is None and _is_grey(found.frames):
            found = Recorded(found.frames[:, :1].clone(), found.fps)
        held += found.frames.numel()
        if held > _MOST_BYTES:
            raise UserError(
                f"{source.path}: with it, clips take more than {sized(_MOST_BYTES)}: expected fewer of them, a smaller "
                "size (--size), or fewer frames of each (--max-frames)"
            )
        recorded.append(found)
    most = max((one.frames.shape[1] for one in recorded if len(one.frames) >= frames), default=1)
    return [Recorded(one.frames.expand(-1, max(most, one.frames.shape[1]), -1, -1), one.fps) for one in recorded]


def _is_grey(frames: Tensor) -> bool:
    return bool((frames[:, :1] == frames).all())


def _dataset(
    path: Path, sources: list[tuple[Source, str | None]], recorded: list[Recorded], frames: int, notes: Notes
) -> VideoDataset:
    clips, classes, rates = [], [], []
    for (source, label), found in zip(sources, recorded, strict=True):
        count, rest = divmod(len(found.frames), frames)
        if len(found.frames) == 1:
            notes.add("of one frame, left out", source.path)
        elif 0 < len(found.frames) < frames:
            notes.add(f"shorter than a clip of {frames} frames, left out", source.path, str(len(found.frames)))
        elif rest:
            notes.add("whose last frames do not fill a clip and were left out", source.path, str(rest))
        clips += found.frames[: count * frames].unflatten(0, (count, frames)) if count else []
        classes += [label] * count
        rates += [found.fps] * bool(count and found.fps)
    if len(clips) < 2:
        longest = max(len(found.frames) for found in recorded)
        raise UserError(
            f"{path}: expected at least 2 clips of {frames} frames, got {len(clips)}; the longest of "
            f"{counted(len(sources), 'sources')} has {counted(longest, 'frames')}: try a smaller --frames"
        )
    labels, names = indexed(classes)
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(0))
    held = order[: max(1, round(HELD_OUT * len(clips)))].sort().values
    seen = order[len(held) :].sort().values
    stacked = torch.stack(clips)
    labelled = [None if labels is None else labels[part] for part in (seen, held)]
    fps = sorted(rates)[len(rates) // 2] if rates else DEFAULT_FPS
    return VideoDataset(
        stacked[seen], labelled[0], names, stacked[held], labelled[1], fps, text_of(path.name), notes.lines
    )


def first_frames(path: Path, frame_shape: tuple[int, int, int], most: int) -> Tensor:
    """What a clip can begin with.

    Args:
        path: a picture, an animation, a video file, or a folder of frames.
        frame_shape: (channels, side, side) of the result.
        most: how many frames are read at most.

    Returns:
        (T, channels, side, side) in [-1, 1], T at least 1.

    Raises:
        UserError: when there are none, or they can't be read.
    """
    channels, height, width = frame_shape
    if height != width:
        raise UserError(f"{path}: frames of {width} × {height} pixels can't be read, only square ones")
    notes = Notes(path.parent)
    if path.is_dir():
        source = Source(path, tuple(file for file in entries(path)[0] if file.suffix.lower() in picture_suffixes()))
        if not source.stills:
            raise UserError(f"{path}: holds no pictures")
    elif path.is_file():
        source = Source(path)
    else:
        raise UserError(f"{path}: no such file or folder")
    reading = {"background": BACKGROUND, "max_pixels": MAX_PIXELS, "max_frames": most, "notes": notes}
    frames = read_source(source, height, channels, **reading).frames
    if not len(frames):
        raise UserError(f"{path}: expected frames of one size, got several")
    return as_floats(frames)


def moving_digits(
    count: int = CLIPS,
    *,
    digits: int = 1,
    size: int = DEFAULT_SIZE,
    frames: int = DEFAULT_FRAMES,
    channels: int = 1,
    seed: int = 0,
) -> VideoDataset:
    """Clips of handwritten digits that move by whole pixels at a steady pace and bounce off the borders when they touch
    them; the same for the same arguments.

    The digits are those of `aigc_fast.data.digits`; a tenth of them occurs only in held-out clips. Classes are the
    digits or, with two of them, their pairs, such as 3+8.

    Args:
        count: number of clips to train on; a tenth as many are held out.
        digits: number of moving digits in each clip, 1 or 2.
        size: side of the frames in pixels, at least 16.
        frames: number of frames of a clip, at least 2.
        channels: 1 for grey, 3 for colour.
        seed: of the choice of digits and their paths.

    Returns:
        The clips, with the positions of the digits.

    Raises:
        TypeError: if an argument is not an integer; the message names it.
        UserError: if an argument is out of range.

    Method: Srivastava, Mansimov and Salakhutdinov, "Unsupervised Learning of Video Representations using LSTMs", 2015.
    """
    for name, value, least in (("count", count, 1), ("size", size, 16), ("frames", frames, 2)):
        integer(name, value, least)
    check_channels(channels)
    check_seed(seed)
    if not 1 <= whole("digits", digits) <= MOST_DIGITS:
        raise UserError(f"digits={digits}: expected 1 to {MOST_DIGITS}")
    stills = still_digits(round(_DIGIT * size))
    images, extents = _cropped(stills.images[:, 0])
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    held, known = order.split([len(order) // 10, len(order) - len(order) // 10])
    names = _class_names(digits)
    parts = []
    for pool, number in ((known, count), (held, max(1, count // 10))):
        chosen = pool[torch.randint(len(pool), (number, digits), generator=generator)]
        corners = _paths(size - extents[chosen], frames, size, generator)
        clips = _drawn(images[chosen], corners, size)
        if channels == 3:
            clips = clips.expand(-1, -1, 3, -1, -1).contiguous()
        middles = corners + (extents[chosen] - 1)[:, None] / 2
        parts.append((clips, _labels(stills.labels[chosen], names), middles))
    (clips, labels, paths), (held_out, held_out_labels, held_out_paths) = parts
    what = "moving digits" if digits == 1 else "pairs of moving digits"
    facts = {"digits": digits, "paths": paths, "held_out_paths": held_out_paths}
    return VideoDataset(clips, labels, names, held_out, held_out_labels, DEFAULT_FPS, what, **facts)


def _class_names(digits: int) -> tuple[str, ...]:
    return tuple("+".join(map(str, pair)) for pair in combinations_with_replacement(range(10), digits))


def _labels(classes: Tensor, names: tuple[str, ...]) -> Tensor:
    places = {name: index for index, name in enumerate(names)}
    return torch.tensor([places["+".join(map(str, sorted(row)))] for row in classes.tolist()])


def _cropped(images: Tensor) -> tuple[Tensor, Tensor]:
    """Digits (N, side, side) in the upper left corner, without what is hardly to be seen around, and their height and
    width, (N, 2)."""
    inked, extents = images > _FAINT, []
    for dim in (1, 2):
        there = inked.any(3 - dim)
        places = torch.arange(images.shape[dim])
        first = places.where(there, images.shape[dim]).amin(1)
        extent = places.where(there, -1).amax(1) - first + 1
        moved = (first[:, None] + places) % images.shape[dim]
        index = moved[:, :, None] if dim == 1 else moved[:, None, :]
        images = images.gather(dim, index.expand_as(images)) * (places < extent[:, None]).unsqueeze(3 - dim)
        extents.append(extent)
    return images, torch.stack(extents, dim=1)


def _paths(room: Tensor, frames: int, size: int, generator: torch.Generator) -> Tensor:
    """The digits' upper left corners in whole pixels, (N, frames, digits, 2), each within 0 to its `room`
    (N, digits, 2)."""
    begin, turn, pace = functional.rand(3, *room.shape, generator=generator)
    angle = 2 * math.pi * turn[..., :1]
    speed = size * (_SLOWEST + (_FASTEST - _SLOWEST) * pace[..., :1])
    velocity = (speed * torch.cat([angle.sin(), angle.cos()], -1)).round().long()
    straight = (begin * (room + 1)).long()[:, None] + velocity[:, None] * torch.arange(frames)[:, None, None]
    # Folded at both borders.
    along = straight.remainder(2 * room[:, None])
    return torch.minimum(along, 2 * room[:, None] - along)


def _drawn(images: Tensor, corners: Tensor, size: int) -> Tensor:
    """Frames (N, T, 1, size, size) of digits (N, digits, side, side) with their corners at (N, T, digits, 2)."""
    number, length, digits, _ = corners.shape
    side = images.shape[-1]
    # Digits are smaller than their pictures, which may stand out at the lower and the right border.
    frames = images.new_zeros(number, length, size + side, size + side)
    clip = torch.arange(number)[:, None, None, None]
    time = torch.arange(length)[:, None, None]
    for digit in range(digits):
        rows = corners[:, :, digit, 0, None, None] + torch.arange(side)[:, None]
        columns = corners[:, :, digit, 1, None, None] + torch.arange(side)
        place = clip, time, rows, columns
        frames[place] = torch.maximum(frames[place], images[:, None, digit])
    return frames[:, :, None, :size, :size].contiguous()
