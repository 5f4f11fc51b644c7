"""Images or sounds along chosen paths through a model's latent space."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast.models.base import Labels, LatentModel

_MAX_COLUMNS = 16


def decode_all(model: LatentModel, z: Tensor, labels: Labels | None = None) -> Tensor:
    """Items of many latents, batch by batch.

    Args:
        model: any model of images or sounds.
        z: (N, latent_dim).
        labels: one class for all, N classes, or weights of the classes (N, num_classes); None gives a conditional
            model's classes in turn.

    Returns:
        N items: images (N, C, H, W) in [-1, 1], or sounds (N, T).

    Raises:
        ValueError: when labels or z do not fit the model.
    """
    if labels is None and model.num_classes is not None:
        labels = torch.arange(len(z)) % model.num_classes
    classes = model.check_labels(labels, len(z))
    size = model.decoded_at_once
    parts = [
        model.sample(len(part), z=part, labels=None if classes is None else classes[i * size : (i + 1) * size])
        for i, part in enumerate(z.split(size))
    ]
    return torch.cat(parts)


def class_columns(model: LatentModel, default: int) -> int:
    """The number of columns with which each class of a conditional model has its own.

    Args:
        model: any model.
        default: the number for an unconditional model, and for one of more than 16 classes.

    Returns:
        The number of columns.
    """
    classes = model.num_classes or default
    return classes if classes <= _MAX_COLUMNS else default


def _seeded_latents(model: LatentModel, count: int, seed: int) -> Tensor:
    return model.prior(count, generator=torch.Generator().manual_seed(seed))


def draw(model: LatentModel, count: int, *, seed: int, labels: Labels | None = None) -> Tensor:
    """Samples items that depend only on the model and the seed.

    Args:
        model: any model of images, sounds or clips.
        count: how many.
        seed: the same seed gives the same items; item i is, to rounding, the same for any `count` above i.
        labels: one class for all or `count` classes, for a conditional model; None takes its classes in turn.

    Returns:
        `count` items, as the model's `decode` returns them.

    Raises:
        ValueError: if the labels do not match the model.
    """
    return decode_all(model, _seeded_latents(model, count, seed), labels)


def slerp(start: Tensor, end: Tensor, fraction: Tensor) -> Tensor:
    """Spherical interpolation, which keeps the norm that a normal latent has (White 2016, arXiv:1609.04468).

    Args:
        start: (D,).
        end: (D,).
        fraction: (S,), 0 at `start` and 1 at `end`.

    Returns:
        (S, D).
    """
    cosine = torch.nn.functional.cosine_similarity(start, end, dim=0).clamp(-1, 1)
    angle = torch.acos(cosine)
    fraction = fraction.to(start)[:, None]
    along = (torch.sin((1 - fraction) * angle) * start + torch.sin(fraction * angle) * end) / angle.sin()
    return torch.where(angle.sin().abs() < 1e-4, start + fraction * (end - start), along)


def interpolate(
    model: LatentModel,
    steps: int = 10,
    *,
    rows: int = 1,
    seed: int = 0,
    labels: Labels | None = None,
    to_labels: Labels | None = None,
) -> Tensor:
    """Interpolates between two random latent vectors in each row and, with `to_labels`, between two classes as well.

    Args:
        model: any model of images, sounds or clips.
        steps: items from one end to the other, including both; at least 2.
        rows: number of interpolations.
        seed: of the ends.
        labels: for a conditional model, the class of all items, or one class for each; with `to_labels` the class at
            the beginning of every row, or one for each row.
        to_labels: the class at the end of every row, or one for each row; None for no change.

    Returns:
        rows · steps items, row by row.

    Raises:
        ValueError: when `steps` is below 2 or `rows` below 1, or the labels do not fit the model.
    """
    if steps < 2 or rows < 1:
        raise ValueError(f"steps={steps}, rows={rows}: expected at least 2 steps and 1 row")
    ends = _seeded_latents(model, 2 * rows, seed)
    fraction = torch.linspace(0, 1, steps)
    z = torch.cat([slerp(ends[2 * row], ends[2 * row + 1], fraction) for row in range(rows)])
    return decode_all(model, z, labels if to_labels is None else _between(model, labels, to_labels, rows, fraction))


def _between(model: LatentModel, labels: Labels | None, to_labels: Labels, rows: int, fraction: Tensor) -> Tensor:
    """Weights of the classes (rows·steps, num_classes): of one class at first, of the other at last."""
    nothing = torch.empty(rows, 0, dtype=model.dtype, device=model.device)
    end, start = (model.with_classes(nothing, model.check_labels(ends, rows))[:, None] for ends in (to_labels, labels))
    return torch.lerp(start, end, fraction.to(start)[:, None]).flatten(0, 1)


def latent_manifold(model: LatentModel, side: int = 15, *, edge: float = 0.03, labels: Labels | None = None) -> Tensor:
    """Decodes a grid over a two-dimensional latent space, whose steps are equally probable (Kingma and Welling, 2014,
    figure 4).

    Args:
        model: any model of images or sounds whose `latent_dim` is 2.
        side: items per row and column.
        edge: the probability outside the grid on each side, in (0, 0.5).
        labels: the class of all items, or one class for each, for a conditional model.

    Returns:
        side² items, row by row; the first latent grows to the right, the second upwards.

    Raises:
        ValueError: when the latent is not 2-d or an argument is out of range.
    """
    if model.latent_dim != 2:
        raise ValueError(f"the latent manifold needs a model with 2 latent dimensions, this one has {model.latent_dim}")
    if side < 1 or not 0 < edge < 0.5:
        raise ValueError(f"side={side}, edge={edge}: expected side >= 1 and 0 < edge < 0.5")
    steps = torch.special.ndtri(torch.linspace(edge, 1 - edge, side, dtype=torch.float64)).float()
    second, first = torch.meshgrid(steps.flip(0), steps, indexing="ij")
    z = torch.stack([first.flatten(), second.flatten()], dim=1)
    return decode_all(model, z, labels)
