"""Video: animations, what models foretell of clips that they have not seen, and how near that comes to the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aigc_fast import data
from aigc_fast.data import VideoDataset
from aigc_fast.data.animations import moves
from aigc_fast.data.videos import DEFAULT_FPS, DEFAULT_FRAMES, MAX_FRAMES, MOST_DIGITS, as_floats, first_frames
from aigc_fast.errors import UserError
from aigc_fast.generation import Provenance, clip_grid, contact_sheet, read_video_provenance, write_clips
from aigc_fast.generation.video import MAX_FPS, check_video
from aigc_fast.media.images import CHANNELS, READING, SIZE
from aigc_fast.media.kinds import FILM, SHARD_SIZE, SHARDS, SINGLE
from aigc_fast.media.medium import ItemFeed, Medium, check_unmoved, trained_on
from aigc_fast.metrics import VideoReport, evaluate_videos
from aigc_fast.models import VideoModel
from aigc_fast.models.base import Labels, evaluating
from aigc_fast.settings import Setting

if TYPE_CHECKING:
    from aigc_fast.training import TrainingConfig

_SHOWN = 5
_PREDICTED = 64
"""Held-out clips of which predictions are measured, at most."""
# Of the training clips' usual motion: what differs less is alike.
_ALIKE = 0.1
_LEVEL = 2 / 255  # of grey, in [-1, 1]


@dataclass(frozen=True)
class Clips:
    """Clips of one length.

    Attributes:
        frames: (N, T, channels, height, width) in [-1, 1].
        fps: frames a second.
    """

    frames: Tensor
    fps: float = DEFAULT_FPS

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[Piece]:
        return (Piece(clip, contact_sheet(clip[None]), self.fps) for clip in self.frames)


@dataclass(frozen=True)
class Piece:
    """What is written to one file.

    Attributes:
        frames: (T, channels, height, width).
        sheet: its contact sheet, (channels, height, width).
        fps: frames a second.
    """

    frames: Tensor
    sheet: Tensor
    fps: float


class VideoFeed(ItemFeed):
    """Clips.

    Args:
        model: to train.
        dataset: clips of the model's shape.
        config: whose `shift` must be 0.

    Raises:
        UserError: when there is a `shift`.
    """

    def __init__(self, model: VideoModel, dataset: VideoDataset, config: TrainingConfig) -> None:
        check_unmoved(model, config)
        super().__init__(model, dataset, config)

    def batch(self, indices: Tensor) -> Tensor:
        """Clips (n, T, channels, height, width) in [-1, 1]."""
        return self.dataset.batch(indices).to(self.model.device, self.model.dtype)

    def write_samples(self, model: VideoModel, seed: int, path: Path, provenance: Provenance) -> Tensor:
        """Above, held-out clips; below each what the model foretells after the first frames; at last what it makes of
        nothing. See `Feed.write_samples`."""
        truth, foretold = foretell(model, self.dataset, _SHOWN, seed)
        drawn = VIDEO.draw(model, len(truth), seed).frames
        rows = torch.cat([truth, foretold, drawn.to(truth)])
        sheet = contact_sheet(rows)
        write_clips(
            path.with_suffix(VIDEO.suffixes[0]), clip_grid(rows, len(truth)), sheet, self.dataset.fps, provenance
        )
        return sheet


def foretell(model: VideoModel, dataset: VideoDataset, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Held-out clips, and the same after whose first frames, as many as the model is given, it goes on by itself.

    Args:
        model: of the data's shape.
        dataset: whose clips to take.
        count: how many at most.
        seed: of what is drawn.

    Returns:
        (N, T, channels, height, width) in [-1, 1], each, on the CPU.
    """
    truth = as_floats(dataset.held_out[:count])
    given = truth[:, : model.given]
    conditional = model.num_classes is not None and dataset.held_out_labels is not None
    labels = dataset.held_out_labels[:count] if conditional else None
    found = _continued(model, given, truth.shape[1] - model.given, labels, torch.Generator().manual_seed(seed))
    return truth, torch.cat([given, found.cpu().to(truth)], dim=1)


def _continued(
    model: VideoModel, given: Tensor, frames: int, labels: Tensor | None, generator: torch.Generator
) -> Tensor:
    size = model.decoded_at_once
    parts = [
        model.predict(
            part, frames, labels=None if labels is None else labels[i * size : (i + 1) * size], generator=generator
        )
        for i, part in enumerate(given.split(size))
    ]
    return torch.cat(parts)


def _two_futures(model: VideoModel, given: Tensor) -> tuple[Tensor, Tensor]:
    frames, generator = model.frames - given.shape[1], torch.Generator().manual_seed(0)
    first, second = (_continued(model, given, frames, None, generator) for _ in range(2))
    return first, second


class Video(Medium):
    """See `Medium`; items are `Clips`."""

    name = "video"
    unit = VideoDataset.unit
    model = VideoModel
    suffixes = (".apng", ".gif", ".mp4")
    formats = "APNG, GIF or MP4"
    beside = (".png",)
    files = "for video an animation, a video file, or a folder of them or of folders of frames"
    embedded = "the digits that move"
    reading_settings = (
        *READING,
        Setting(
            "max_frames", int, "The most frames that are read of a file (video).", default=str(MAX_FRAMES), least=2
        ),
    )
    data_settings = (
        SIZE,
        CHANNELS,
        *reading_settings,
        Setting("frames", int, "Frames of a clip (video).", default=str(DEFAULT_FRAMES), least=2, shapes_model=True),
        Setting(
            "digits",
            int,
            "How many digits move in the clips of the package (video).",
            default="1",
            least=1,
            most=MOST_DIGITS,
        ),
    )
    drawing_settings = (
        Setting("fps", float, "Frames a second.", default="the training clips'", least=0, most=MAX_FPS),
        Setting("frames", int, "Frames of each clip.", default="as the model was trained", least=1),
        Setting(
            "start",
            str,
            "Go on from the first frames of this picture, animation, video file or folder of frames: in --count ways "
            "by a latent core, in one by a ConvLSTM.",
            metavar="PATH",
        ),
    )
    kinds = MappingProxyType({FILM: 6, SINGLE: 4, SHARDS: SHARD_SIZE})
    evaluated = 100
    rows = (
        (
            "Fréchet distance",
            "frechet",
            "{:.2f}",
            "0; {frechet_of_training:.2f} between two halves of the training clips",
        ),
        ("Motion, a frame", "motion", "{:.3f}", "{motion_of_training:.3f} in the training clips"),
        ("Frames that stand still", "still", "{:.0%}", "{still_of_training:.0%}"),
        (
            "PSNR of predicted frames",
            "psnr",
            "{:.1f} dB",
            "above {psnr_of_copies:.1f} dB, of the last given frame repeated",
        ),
        ("SSIM of predicted frames", "ssim", "{:.3f}", "1; above {ssim_of_copies:.3f}"),
        ("Error of the centre of brightness", "drift", "{:.2f} pixels", "0; below {drift_of_copies:.2f}"),
        ("Error of its step, a frame", "displacement", "{:.2f} pixels", "0; below {displacement_of_copies:.2f}"),
        ("Difference of two predictions", "variety", "{:.3f}", "above 0, where all are alike"),
    )

    def load(self, path: Path | None, **settings: Any) -> VideoDataset:
        """See `Medium.load`."""
        return data.load_videos(path, **settings)

    def load_for(self, model: VideoModel, path: Path | None, **reading: Any) -> VideoDataset:
        """See `Medium.load_for`."""
        channels, height, width = model.frame_shape
        if height != width:
            raise UserError(f"{model.name}: makes frames of {width} × {height} pixels; only square ones can be read")
        digits = trained_on(model).get("digits") if path is None else None
        shape = {"size": height, "channels": channels, "frames": model.frames}
        return data.load_videos(path, **shape, **reading, digits=digits if isinstance(digits, int) else None)

    def load_like(self, training: VideoDataset, folder: Path, **reading: Any) -> VideoDataset:
        """See `Medium.load_like`."""
        _, frames, channels, height, _ = training.frames.shape
        return data.load_videos(folder, size=height, channels=channels, frames=frames, **reading)

    def is_item(self, path: Path) -> bool:
        """See `Medium.is_item`."""
        return moves(path)

    def items(self, dataset: VideoDataset) -> Clips:
        """See `Medium.items`: those that are held out, too."""
        return Clips(torch.cat([dataset.batch(), as_floats(dataset.held_out)]), dataset.fps)

    def feed(self, model: VideoModel, dataset: VideoDataset, config: TrainingConfig) -> VideoFeed:
        """See `Medium.feed`."""
        return VideoFeed(model, dataset, config)

    def draw(
        self,
        model: VideoModel,
        count: int,
        seed: int,
        labels: Labels | None = None,
        show: Callable[[str], None] | None = None,
        *,
        fps: float | None = None,
        frames: int | None = None,
        start: str | None = None,
    ) -> Clips:
        """Clips of nothing, or of a class; or as many ways in which the frames of a file go on. See `Medium.draw`."""
        generator = torch.Generator().manual_seed(seed)
        rate = _rate_of(model) if fps is None else fps
        if start is not None:
            given = first_frames(Path(start), model.frame_shape, model.given)[None].expand(count, -1, -1, -1, -1)
            more = max(1, (frames or model.frames) - given.shape[1])
            classes = None if labels is None else torch.as_tensor(labels).expand(count)
            found = _continued(model, given, more, classes, generator)
            return Clips(torch.cat([given.to(found), found], dim=1), rate)
        if labels is None and model.num_classes is not None:
            labels = torch.arange(count) % model.num_classes
        classes, size = model.check_labels(labels, count), model.decoded_at_once
        noise = model.prior(count, generator=generator, frames=frames)
        with evaluating(model):
            parts = [
                model.decode(part, None if classes is None else classes[i * size : (i + 1) * size], frames)
                for i, part in enumerate(noise.split(size))
            ]
        return Clips(torch.cat(parts), rate)

    def draw_each(
        self, model: VideoModel, seeds: Sequence[int], labels: Sequence[int] | None, **settings: Any
    ) -> Iterator[Piece]:
        """See `Medium.draw_each`."""
        for place, seed in enumerate(seeds):
            label = None if labels is None else [labels[place]]
            yield next(iter(self.draw(model, 1, seed, label, **settings)))

    def joined(self, model: VideoModel, items: Clips, columns: int | None) -> Piece:
        """See `Medium.joined`: side by side, but only one where all look the same, as the only future does."""
        frames = items.frames[:1] if (items.frames - items.frames[:1]).abs().max() < _LEVEL / 2 else items.frames
        return Piece(clip_grid(frames, columns), contact_sheet(frames), items.fps)

    def check_target(self, path: Path, settings: Any) -> None:
        """See `Medium.check_target`."""
        check_video(path, settings.get("fps", DEFAULT_FPS))

    def write(self, path: Path, piece: Piece, model: VideoModel, provenance: Provenance, scale: int) -> None:
        """See `Medium.write`: with the contact sheet."""
        write_clips(path, piece.frames, piece.sheet, piece.fps, provenance, scale=scale)

    def read_provenance(self, path: Path) -> Provenance:
        """See `Medium.read_provenance`."""
        return read_video_provenance(path)

    def measure(self, items: Clips, training: VideoDataset, model: VideoModel | None) -> VideoReport:
        """See `Medium.measure`: and of a model's predictions of the held-out clips."""
        report = evaluate_videos(items.frames.cpu(), training.batch())
        if model is None or not len(training.held_out):
            return report
        truth, foretold = foretell(model, training, _PREDICTED, seed=0)
        report = report.with_predictions(foretold[:, model.given :], truth[:, model.given :], truth[:, model.given - 1])
        return report.with_futures(*_two_futures(model, truth[:, :1])) if model.draws_futures else report

    def remarks(self, report: VideoReport) -> list[str]:
        """See `Medium.remarks`."""
        told = []
        for name, values in (
            ("PSNR, dB", report.psnr_by_frame),
            ("Error of the centre of brightness, pixels", report.drift_by_frame),
            ("Error of its step, pixels", report.displacement_by_frame),
        ):
            if values:
                told.append(f"{name}, by predicted frame:  {'  '.join(f'{value:.1f}' for value in values)}")
        if report.still > max(0.5, 2 * report.still_of_training):
            told.append(f"{report.still:.0%} of the frames stand still")
        if report.variety is not None and report.variety < _ALIKE * report.motion_of_training:
            told.append("Futures of the same frame are all alike: its latent vectors say nothing; try a smaller --beta")
        return told


def _rate_of(model: VideoModel) -> float:
    rate = trained_on(model).get("fps")
    return rate if isinstance(rate, int | float) and 0 < rate <= MAX_FPS else DEFAULT_FPS


VIDEO = Video()
