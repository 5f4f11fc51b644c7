"""What models make and learn from: a module for each medium, with everything that is the medium's and not a model's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name

from aigc_fast.generation import Provenance
from aigc_fast.media.kinds import Kind, Wanted
from aigc_fast.media.medium import Feed, Medium
from aigc_fast.models import MODELS, Model

__all__ = ["Feed", "Kind", "Medium", "Wanted", "all_media", "medium_of", "provenance_readers"]


def medium_of(model: Model | type[Model]) -> Medium:
    """The medium that a model declares."""
    return resolve_name(model.medium)


def all_media() -> dict[str, Medium]:
    """The media of all models, by their names, in the models' order."""
    return {medium.name: medium for medium in map(medium_of, MODELS.values())}


def provenance_readers() -> dict[str, Callable[[Path], Provenance]]:
    """What reads the record of a generated file, by its suffix in lower case."""
    return {suffix: medium.read_provenance for medium in all_media().values() for suffix in medium.suffixes}
