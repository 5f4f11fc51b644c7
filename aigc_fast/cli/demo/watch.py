"""What the demo trains on video, and the animations and figures that come of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from aigc_fast.cli.demo.learn import SEED, trained
from aigc_fast.data import VideoDataset
from aigc_fast.generation import clip_grid, contact_sheet, provenance_of, write_clips
from aigc_fast.media.video import VIDEO, foretell
from aigc_fast.metrics import VideoReport
from aigc_fast.training import TrainingResult

VIDEOS = ("foretold", "drawn")
"""What is shown; the files are called video-VIDEO.apng, and .png for the frames."""
MEASURED = 60
SHOWN, ROWS = 8, 6
BATCH, RATE = 8, 3e-3
SCALE = 2


@dataclass(frozen=True)
class Watched:
    """A trained generator of video and what it gave.

    Attributes:
        result: the run's.
        videos: APNG files by what they show, each with its frames as a PNG beside it.
        report: the metrics.
    """

    result: TrainingResult
    videos: dict[str, Path]
    report: VideoReport


def watch(
    dataset: VideoDataset,
    steps: int,
    folder: Path,
    console: Console | None,
    device: torch.device,
    config: Mapping[str, Any],
) -> Watched:
    """Trains a generator of video, lets it foretell and draw, and measures it.

    Args:
        dataset: what it learns from.
        steps: training steps.
        folder: gets the animations, and the run in a folder of the model's name.
        console: where the progress bar goes.
        device: where it is trained.
        config: of the model.
    """
    half = max(1, steps // 2)
    training = {"batch_size": BATCH, "learning_rate": RATE, "schedule_steps": half, "halving": half, "warmup": half}
    result = trained("video", dataset, steps, folder, console, config, training, device)
    model = result.model
    truth, foretold = foretell(model, dataset, SHOWN, SEED)
    drawn = VIDEO.draw(model, 2 * SHOWN, SEED).frames
    # A clip, and what was foretold of it below.
    pairs = torch.stack([truth, foretold], dim=1).flatten(0, 1)
    pieces = {"foretold": (torch.cat([truth, foretold]), pairs), "drawn": (drawn, drawn)}
    videos = {}
    for name, (clips, rows) in pieces.items():
        record = provenance_of(model, SEED, video=name, command="aigc-fast demo")
        path, film, sheet = folder / f"video-{name}.apng", clip_grid(clips, SHOWN), contact_sheet(rows[:ROWS])
        videos[name], _ = write_clips(path, film, sheet, dataset.fps, record, scale=SCALE)
    return Watched(result, videos, VIDEO.measure(VIDEO.draw(model, MEASURED, SEED), dataset, model))
