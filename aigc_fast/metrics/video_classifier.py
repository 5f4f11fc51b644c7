"""The small network whose features video metrics are measured on: it sees what moves, and how."""

from __future__ import annotations

import functools
from importlib.resources import as_file, files
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from aigc_fast.checks import check_floating, integer
from aigc_fast.data import VideoDataset, moving_digits

SIZE = 32
LEAST_FRAMES = 2
FEATURES = 48
DIGITS = 10
KINDS = ("moves", "stands still", "jumps")
WEIGHTS = "motion_classifier.safetensors"

_BATCH = 64
_CLIP = 10
_WIDTHS = (12, 24, 32)


class VideoClassifier(nn.Module):
    """Three convolutions over space and time and two linear layers on 32×32 grey frames; other frames are averaged to
    grey and resized. What it sees of a clip is the mean over its length."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third = _WIDTHS
        self.trunk = nn.Sequential(
            nn.Conv3d(1, first, (2, 5, 5), (1, 2, 2), (0, 2, 2)),
            nn.ReLU(),
            nn.Conv3d(first, second, 3, (1, 2, 2), 1),
            nn.ReLU(),
            nn.Conv3d(second, third, 3, (1, 2, 2), 1),
            nn.ReLU(),
        )
        self.last = nn.Linear(third * 16, FEATURES)
        # Which digits there are, what the clip does, and how fast they go down and to the right, and at all.
        self.head = nn.Linear(FEATURES, DIGITS + len(KINDS) + 3)

    def features(self, clips: Tensor) -> Tensor:
        """The features of clips: the last layer before the head, before its ReLU.

        Args:
            clips: (N, T, C, H, W) in [-1, 1], floating-point, T at least 2.

        Returns:
            (N, 48).
        """
        check_floating(clips=clips)
        if clips.dim() != 5 or clips.shape[1] < LEAST_FRAMES:
            raise ValueError(f"clips: expected (N, T, C, H, W), T at least 2, got shape {tuple(clips.shape)}")
        grey = clips.float().mean(dim=2)
        if grey.shape[2:] != (SIZE, SIZE):
            grey = nn.functional.interpolate(grey, (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)
        return self.last(self.trunk(grey[:, None]).mean(dim=2).flatten(1))

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the digits (N, 10), logits of the kinds (N, 3), and velocity and speed (N, 3) in pixels of 32."""
        found = self.head(self.features(clips).relu())
        return found[:, :DIGITS], found[:, DIGITS : DIGITS + len(KINDS)], found[:, DIGITS + len(KINDS) :]

    def features_of(self, clips: Tensor) -> Tensor:
        """`features` of any number of clips, batch by batch, without gradients; arguments and results as there."""
        with torch.no_grad():
            return torch.cat([self.features(part) for part in clips.split(_BATCH)])


def train_video_classifier(*, steps: int = 2400, seed: int = 0) -> VideoClassifier:
    """Trains the network from scratch, on clips of one and of two digits that move, stand still, or jump about.

    The weights that ship with the package are `train_video_classifier().state_dict()`.

    Args:
        steps: of 32 clips.
        seed: fixes weights, order and noise.

    Returns:
        The network in eval mode.

    Raises:
        TypeError, ValueError: for a number that is no positive integer.
    """
    steps = integer("steps", steps, 1)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VideoClassifier()
    sets = [moving_digits(3000, digits=digits, size=SIZE, frames=_CLIP, seed=seed + 1) for digits in (1, 2)]
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=steps)
    for step in range(steps):
        clips, digits, kinds, velocity = _batch(sets[step % 2], generator)
        found_digits, found_kinds, found_velocity = model(clips + 0.05 * torch.randn(clips.shape, generator=generator))
        # Which digit it is takes longest to learn.
        loss = 10 * nn.functional.binary_cross_entropy_with_logits(found_digits, digits)
        loss = loss + nn.functional.cross_entropy(found_kinds, kinds, label_smoothing=0.05)
        known = (kinds != KINDS.index("jumps")).float()[:, None]
        loss = loss + 0.2 * ((found_velocity - velocity).square() * known).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def _batch(dataset: VideoDataset, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clips, which digits they show (N, 10), what they do (N,), and how fast (N, 3)."""
    chosen = torch.randint(len(dataset), (32,), generator=generator)
    clips, names = dataset.batch(chosen), dataset.class_names
    digits = torch.zeros(len(chosen), DIGITS)
    for row, label in enumerate(dataset.labels[chosen].tolist()):
        digits[row, [int(digit) for digit in names[label].split("+")]] = 1.0
    kinds = (torch.arange(len(chosen)) % 8 - 5).clamp(min=0)
    steps = torch.diff(dataset.paths[chosen].float(), dim=1)
    velocity = torch.cat([steps.mean((1, 2)), steps.norm(dim=-1).mean((1, 2))[:, None]], dim=1)
    velocity[kinds == 1] = 0.0
    order = torch.rand(len(chosen), clips.shape[1], generator=generator).argsort(1)
    order = torch.where((kinds == 2)[:, None], order, torch.arange(clips.shape[1]))
    order = torch.where((kinds == 1)[:, None], order[:, :1], order)
    return clips[torch.arange(len(chosen))[:, None], order], digits, kinds, velocity


@functools.cache
def load_video_classifier() -> VideoClassifier:
    """The network that ships with the package, trained on digits that move; in eval mode, without gradients."""
    model = VideoClassifier()
    with as_file(files("aigc_fast.metrics") / WEIGHTS) as path:
        model.load_state_dict(load_file(Path(path)))
    return model.eval().requires_grad_(False)
