"""All video metrics in one report: how like the training clips, how much moves, and how near to the truth."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from aigc_fast.checks import check_finite, check_floating
from aigc_fast.metrics.classifier import MOST_OF_PIXELS
from aigc_fast.metrics.frechet import frechet_distance
from aigc_fast.metrics.video_classifier import VideoClassifier, load_video_classifier

_RANGE = 2.0
# Of a noise of a hundredth of a grey level: equal frames have a figure, too.
_LEAST_ERROR = (0.01 * _RANGE / 255) ** 2
_WINDOW, _DEVIATION = 11, 1.5
_K1, _K2 = 0.01, 0.03
# Of the training clips' usual motion: what moves less stands still.
_STILL = 0.1
_MOST = 1000
# Sums of products of two such numbers are finite in float64.
_MOST_OF_FRAMES = 1e147


@dataclass(frozen=True)
class VideoReport:
    """The result of `evaluate_videos`.

    Attributes:
        count: number of generated clips.
        training_count: number of training clips they were compared with.
        frechet: Fréchet distance of their features to those of the training clips; smaller is better.
        frechet_of_training: the same between the two halves of the training set: about the best possible.
        motion: mean absolute difference of a pixel from frame to frame, pixels in [-1, 1].
        motion_of_training: the same for the training clips.
        still: share of the steps from frame to frame with less than a tenth of the training clips' motion.
        still_of_training: the same for the training clips.
        psnr: of a model's predictions of held-out clips, in dB; None where none were measured.
        ssim: likewise.
        psnr_of_copies: of repetitions of the last given frame, in dB.
        ssim_of_copies: likewise.
        displacement: distance between the step of the centre of brightness from frame to frame and its true step, in
            pixels.
        displacement_of_copies: of repetitions of the last given frame.
        drift: distance between the centre of brightness of a predicted frame and that of the true one, in pixels.
        drift_of_copies: of repetitions of the last given frame.
        variety: mean absolute difference of a pixel between two continuations of the same frame; None for a model that
            predicts only one.
        psnr_by_frame: of the first, second, ... predicted frame.
        ssim_by_frame: likewise.
        displacement_by_frame: likewise.
        drift_by_frame: likewise.
    """

    count: int
    training_count: int
    frechet: float
    frechet_of_training: float
    motion: float
    motion_of_training: float
    still: float
    still_of_training: float
    psnr: float | None = None
    ssim: float | None = None
    displacement: float | None = None
    drift: float | None = None
    psnr_of_copies: float | None = None
    ssim_of_copies: float | None = None
    displacement_of_copies: float | None = None
    drift_of_copies: float | None = None
    variety: float | None = None
    psnr_by_frame: tuple[float, ...] = ()
    ssim_by_frame: tuple[float, ...] = ()
    displacement_by_frame: tuple[float, ...] = ()
    drift_by_frame: tuple[float, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The attributes as a JSON-able dictionary."""
        return asdict(self)

    def with_predictions(self, foretold: Tensor, truth: Tensor, last: Tensor) -> VideoReport:
        """The report, with how near predictions come to what really came.

        Args:
            foretold: (N, T, C, H, W) in [-1, 1].
            truth: likewise.
            last: (N, C, H, W), the last frames that were given.
        """
        found: dict[str, Any] = {}
        copies = last[:, None].expand_as(truth)
        measures = {"psnr": psnr, "ssim": ssim, "displacement": partial(displacement, last=last), "drift": drift}
        for name, measure in measures.items():
            by_frame = measure(foretold, truth).mean(0)
            found[name], found[f"{name}_by_frame"] = by_frame.mean().item(), tuple(by_frame.tolist())
            found[f"{name}_of_copies"] = measure(copies, truth).mean().item()
        return dataclasses.replace(self, **found)

    def with_futures(self, first: Tensor, second: Tensor) -> VideoReport:
        """The report, with how far two ways of going on from the same frames are apart, (N, T, C, H, W) each."""
        return dataclasses.replace(self, variety=(first - second).abs().mean().item())


def evaluate_videos(generated: Tensor, training: Tensor, *, classifier: VideoClassifier | None = None) -> VideoReport:
    """Measures generated clips against the training clips.

    Args:
        generated: (N, T, C, H, W) in [-1, 1], floating-point, N and T at least 2.
        training: (M, T', C, H, W) likewise, M at least 4; of more than 1,000 as many are taken. The Fréchet distance is
            that between clips of both lengths as they are.
        classifier: whose features to use; default the one that ships with the package, trained on digits that move.
            Figures on other clips compare models on the same data, but mean less.

    Returns:
        The report, without predictions.

    Raises:
        TypeError: if an argument is not a Tensor.
        ValueError: for other shapes or dtypes, too few clips, or pixels that are not finite.
    """
    check_floating(generated=generated, training=training)
    for name, clips, least in (("generated", generated, 2), ("training", training, 4)):
        if clips.dim() != 5 or clips.shape[1] < 2 or len(clips) < least or not clips.shape[2:].numel():
            raise ValueError(
                f"{name}: expected at least {least} clips (N, T, C, H, W) of 2 frames and more with pixels, "
                f"got shape {tuple(clips.shape)}"
            )
    if generated.shape[2:] != training.shape[2:]:
        raise ValueError(
            f"generated: expected frames of shape {tuple(training.shape[2:])} as in training, "
            f"got {tuple(generated.shape[2:])}"
        )
    check_finite(MOST_OF_PIXELS, generated=generated, training=training)
    classifier, training = classifier or load_video_classifier(), training[:: -(-len(training) // _MOST)]
    real, fake = classifier.features_of(training), classifier.features_of(generated)
    moved, moved_of_training = motion(generated), motion(training)
    least = _STILL * moved_of_training.median()
    return VideoReport(
        count=len(generated),
        training_count=len(training),
        frechet=frechet_distance(real, fake),
        frechet_of_training=frechet_distance(real[::2], real[1::2]),
        motion=moved.mean().item(),
        motion_of_training=moved_of_training.mean().item(),
        still=(moved <= least).double().mean().item(),
        still_of_training=(moved_of_training <= least).double().mean().item(),
    )


def motion(clips: Tensor) -> Tensor:
    """(N, T - 1): mean absolute difference of a pixel from each frame to the next, of clips (N, T, C, H, W)."""
    return clips.diff(dim=1).abs().flatten(2).mean(2)


def psnr(frames: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each frame, in dB; that of equal frames is as of a hundredth of a grey level.

    Args:
        frames: (..., C, H, W) in [-1, 1], floating-point.
        reference: of the same shape.

    Returns:
        (...), float64.

    Raises:
        TypeError: if an argument is not a Tensor.
        ValueError: for other shapes or dtypes, or pixels that are not finite.
    """
    _check_frames(frames, reference)
    error = (frames.double() - reference.double()).square().mean((-3, -2, -1))
    return 10 * torch.log10(_RANGE**2 / error.clamp(min=_LEAST_ERROR))


def ssim(frames: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of each frame, the mean over channels and all places where the window lies inside.

    A Gaussian window 11×11 of deviation 1.5, or as large as the frame, of odd sides; the biased variances that it
    weights.

    Args:
        frames: (..., C, H, W) in [-1, 1], floating-point.
        reference: of the same shape.

    Returns:
        (...), float64, at most 1.

    Raises:
        TypeError: if an argument is not a Tensor.
        ValueError: for other shapes or dtypes, or pixels that are not finite.

    Method: Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural
    similarity", 2004.
    """
    _check_frames(frames, reference)
    shape = frames.shape
    x, y = (part.reshape(-1, 1, *shape[-2:]).double() for part in (frames, reference))
    mean_x, mean_y, xx, yy, xy = _blurred(torch.cat([x, y, x * x, y * y, x * y])).chunk(5)
    variance_x, variance_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    c1, c2 = (_K1 * _RANGE) ** 2, (_K2 * _RANGE) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    return similarity.mean((-3, -2, -1)).view(shape[:-2]).mean(-1)


def drift(frames: Tensor, reference: Tensor) -> Tensor:
    """How far the centre of what is bright in each frame is from that of another one, in pixels.

    Args:
        frames: (..., C, H, W) in [-1, 1], floating-point.
        reference: of the same shape.

    Returns:
        (...), float64. Of a frame of one grey level the middle is taken.

    Raises:
        TypeError: if an argument is not a Tensor.
        ValueError: for other shapes or dtypes, or pixels that are not finite.
    """
    _check_frames(frames, reference)
    return torch.linalg.vector_norm(centre(frames) - centre(reference), dim=-1)


def displacement(frames: Tensor, reference: Tensor, last: Tensor) -> Tensor:
    """How far the way that the centre of what is bright goes from frame to frame is from its way in other clips, in
    pixels.

    Args:
        frames: (N, T, C, H, W) in [-1, 1], floating-point.
        reference: of the same shape.
        last: (N, C, H, W), the frames that both go on from.

    Returns:
        (N, T), float64.

    Raises:
        TypeError: if an argument is not a Tensor.
        ValueError: for other shapes or dtypes, or pixels that are not finite.
    """
    _check_frames(frames, reference)
    if frames.dim() != 5:
        raise ValueError(f"frames: expected (N, T, C, H, W), got shape {tuple(frames.shape)}")
    check_floating(last=last)
    if last.shape != (len(frames), *frames.shape[2:]):
        raise ValueError(f"last: expected one of frames {tuple(frames.shape)} for each, got shape {tuple(last.shape)}")
    check_finite(_MOST_OF_FRAMES, last=last)
    ways = (torch.cat([last[:, None], each], dim=1) for each in (frames, reference))
    found, wanted = (centre(each).diff(dim=1) for each in ways)
    return torch.linalg.vector_norm(found - wanted, dim=-1)


def centre(frames: Tensor) -> Tensor:
    """(..., 2): row and column of the centre of what is brighter than half way between a frame's darkest and its
    brightest pixel, in pixels, of frames (..., C, H, W)."""
    grey = frames.double().mean(-3)
    bright = (grey - (grey.amax((-2, -1), keepdim=True) + grey.amin((-2, -1), keepdim=True)) / 2).clamp(min=0)
    total = bright.sum((-2, -1))
    found = []
    for dim, side in enumerate(grey.shape[-2:]):
        offset = torch.arange(side, dtype=grey.dtype, device=grey.device) - (side - 1) / 2
        found.append((bright.sum(-1 - dim) * offset).sum(-1) / total.where(total > 0, 1.0) + (side - 1) / 2)
    return torch.stack(found, -1)


def _blurred(images: Tensor) -> Tensor:
    for dim in (-2, -1):
        size = min(_WINDOW, images.shape[dim] - 1 + images.shape[dim] % 2)
        places = torch.arange(size, dtype=images.dtype, device=images.device) - size // 2
        window = torch.exp(-(places**2) / (2 * _DEVIATION**2))
        window = (window / window.sum()).view((-1, 1) if dim == -2 else (1, -1))
        images = nn.functional.conv2d(images, window[None, None])
    return images


def _check_frames(frames: Tensor, reference: Tensor) -> None:
    check_floating(frames=frames, reference=reference)
    if frames.dim() < 3 or not frames.shape[-3:].numel():
        raise ValueError(f"frames: expected (..., C, H, W) with pixels, got shape {tuple(frames.shape)}")
    if frames.shape != reference.shape:
        raise ValueError(f"reference: expected frames' shape {tuple(frames.shape)}, got {tuple(reference.shape)}")
    check_finite(_MOST_OF_FRAMES, frames=frames, reference=reference)
