"""What the demo trains on sounds, and the sounds and figures that come of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from aigc_fast.cli.demo.learn import SEED, trained
from aigc_fast.data import SoundDataset
from aigc_fast.generation import Provenance, draw, interpolate, provenance_of, sound_sequence, write_sound
from aigc_fast.metrics import SoundReport, evaluate_sounds
from aigc_fast.training import TrainingResult

SOUNDS = ("original", "resynthesis", "samples", "others", "walk")
"""What is let hear; the files are called vocoder-SOUND.wav, and .png for the spectrogram."""
MEASURED = 48
STEPS_OF_WALK = 6


@dataclass(frozen=True)
class Heard:
    """A trained vocoder and what it gave.

    Attributes:
        result: the run's.
        sounds: WAV files by what they let hear, each with its spectrogram as a PNG beside it.
        report: the metrics.
    """

    result: TrainingResult
    sounds: dict[str, Path]
    report: SoundReport


def listen(dataset: SoundDataset, steps: int, folder: Path, console: Console | None, device: torch.device) -> Heard:
    """Trains a vocoder, lets it sound and measures it.

    Args:
        dataset: what it learns from; with classes.
        steps: training steps.
        folder: gets the sounds, and the run in a folder of the model's name.
        console: where the progress bar goes.
        device: where it is trained.
    """
    config, training = {"num_classes": dataset.num_classes}, {"warmup": max(1, steps // 2)}
    result = trained("vocoder", dataset, steps, folder, console, config, training, device)
    vocoder = result.model.vocoder
    originals = torch.stack([dataset.audio[dataset.labels == label][0] for label in range(dataset.num_classes)])
    resynthesised = vocoder.resynthesise(originals.to(device), generator=torch.Generator().manual_seed(SEED))
    walk = interpolate(result.model, STEPS_OF_WALK, seed=SEED, labels=0)
    pieces: dict[str, tuple[Tensor, Provenance]] = {
        "original": (originals, Provenance(dataset.name, None)),
        "resynthesis": (resynthesised, provenance_of(vocoder, SEED)),
        "samples": (draw(result.model, dataset.num_classes, seed=SEED), provenance_of(result.model, SEED)),
        "others": (draw(result.model, dataset.num_classes, seed=SEED + 1), provenance_of(result.model, SEED + 1)),
        "walk": (walk, provenance_of(result.model, SEED)),
    }
    sounds = {}
    for name in SOUNDS:
        audio, record = pieces[name]
        sequence = sound_sequence(audio, dataset.sample_rate)
        sounds[name], _ = write_sound(folder / f"vocoder-{name}.wav", sequence, dataset.sample_rate, record)
    generated = draw(result.model, MEASURED, seed=SEED).cpu()
    return Heard(result, sounds, evaluate_sounds(generated, dataset.audio))
