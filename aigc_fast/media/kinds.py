"""Kinds of things that can be made of a medium, and how models with latent vectors make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any

from torch import Tensor

from aigc_fast.generation import interpolate, latent_manifold
from aigc_fast.models import LatentModel, Model


@dataclass(frozen=True)
class Wanted:
    """What is to be made.

    Attributes:
        kind: grid, sequence, ...
        count: how many.
        columns: images per row, or steps of each walk; None for a square.
        label: the class, None for all in turn.
        to_label: the class in which walks end, one for all or one for each; None where they stay in theirs.
        options: what was given that changes it, by the options' names.
        settings: those of the medium's `drawing_settings` that were given, by their names.
        show: takes the parts of an item that is shown as it is made.
    """

    kind: Kind
    count: int
    columns: int | None
    label: int | list[int] | None
    to_label: int | list[int] | None
    options: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    show: Callable[[str], None] | None = None


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of things to make.

    Attributes:
        name: the word that the command line uses.
        help: what it is.
        draw: the items of what is wanted of a model, with a seed.
        each: how many of each class there are by default; 0 where that does not depend on the classes.
    """

    name: str
    help: str
    draw: Callable[[Model, Wanted, int], Any]
    each: int = 0


def _draw(model: Model, wanted: Wanted, seed: int) -> Any:
    medium = resolve_name(model.medium)
    return medium.draw(model, wanted.count, seed, wanted.label, wanted.show, **wanted.settings)


def _walk(model: LatentModel, wanted: Wanted, seed: int) -> Tensor:
    ends = {"labels": wanted.label, "to_labels": wanted.to_label}
    return interpolate(model, wanted.columns, rows=wanted.count, seed=seed, **ends)


def _map(model: LatentModel, wanted: Wanted, seed: int) -> Tensor:
    return latent_manifold(model, wanted.count, labels=wanted.label)


SHARD_SIZE = 1000
"""Items of a shard, and how many are made in shards, unless it is said."""

GRID = Kind("grid", "one PNG of many images, a class in each column", _draw, each=8)
SEQUENCE = Kind("sequence", "one WAV of many sounds", _draw, each=1)
FILM = Kind("film", "one animation of many clips side by side", _draw, each=1)
PASSAGE = Kind("passage", "one text", _draw)
ANSWERS = Kind("answers", "one text of answers, a line each", _draw)
SHARDS = Kind("shards", "tar files of many, each by its own seed, and their index", _draw)
SINGLE = Kind("single", "one file each", _draw)
INTERPOLATION = Kind(
    "interpolation",
    "walks between random latents, and from each class to the next or from --class to --to-class",
    _walk,
)
MANIFOLD = Kind("manifold", "the map of a 2-d latent (conv-vae)", _map)
