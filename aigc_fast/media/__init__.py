"""What models make and learn from: a module for each medium, with everything that is the medium's and not a model's."""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name

from aigc_fast.errors import UserError
from aigc_fast.generation import Provenance
from aigc_fast.media.kinds import Kind, Wanted
from aigc_fast.media.medium import Feed, ItemFeed, Medium
from aigc_fast.models import MODELS, Model

__all__ = ["Feed", "ItemFeed", "Kind", "Medium", "Wanted", "all_media", "medium_of", "read_provenance"]


def medium_of(model: Model | type[Model]) -> Medium:
    """The medium that a model declares."""
    return resolve_name(model.medium)


def all_media() -> dict[str, Medium]:
    """The media of all models, by their names, in the models' order."""
    return {medium.name: medium for medium in map(medium_of, MODELS.values())}


def read_provenance(path: Path) -> Provenance:
    """The record of a generated file, by the medium whose files are called likewise; as an image's where none are.

    Raises:
        UserError: when the file carries no record of this package.
    """
    media = list(all_media().values())
    named = [medium for medium in media if path.name.lower().endswith(medium.suffixes)]
    beside = [medium for medium in media if path.name.lower().endswith(medium.beside)]
    if not (named or beside) and not path.is_file():
        raise UserError(f"{path}: {'expected a file, got a folder' if path.is_dir() else 'no such file'}")
    try:
        return next(iter(named + beside + media)).read_provenance(path)
    except UserError:
        if named or beside:
            raise
        known = ", ".join(dict.fromkeys(suffix for medium in media for suffix in medium.suffixes))
        raise UserError(f"{path}: expected a generated file, which ends in {known}") from None
