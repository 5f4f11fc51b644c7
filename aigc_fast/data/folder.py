"""A folder of files, whose subfolders are classes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from aigc_fast.data.notes import Notes, text_of
from aigc_fast.errors import UserError
from aigc_fast.wording import counted

_OF_PROGRAMS = re.compile(
    r"\..*|~\$.*|.*~|#.*#|.*:zone\.identifier|__macosx|__pycache__|(eh)?thumbs\.db(:.*)?|desktop\.ini|picasa\.ini|icon\r"
    r"|[@#](eadir|recycle|snapshot|tmp)|lost\+found|found\.\d{3}|\$recycle\.bin|system volume information"
    r"|network trash folder|temporary items"
)
"""What editors, file managers and file systems leave behind, in lower case."""
_PART = re.compile(
    r"(.*[_\W])?(train|training|test|testing|val|valid|validation|dev|eval|evaluation)[_\W]?(set|data|images|\d+)?"
)
"""What the parts of a data set are called."""


def find_files(
    folder: Path, suffixes: tuple[str, ...], notes: Notes | None = None, kind: str = "picture"
) -> list[tuple[Path, str | None]]:
    """The files of a folder that end in one of `suffixes`, in any case, with their classes, in natural order.

    Each subfolder with such files, at any depth, is a class; unless more of them lie right in the folder, which have
    none. What file managers leave behind and hidden files are passed over.

    Args:
        folder: where to look; links are followed.
        suffixes: in lower case.
        notes: gets what is left out.
        kind: what such files are called, in the singular.

    Raises:
        UserError: when the subfolders are not classes but parts of a data set, or the one subfolder is what holds the
            classes.
        OSError: when a folder can't be read.
    """
    notes = notes or Notes(folder)
    files, subfolders = entries(folder)
    here, others = _parted(files, suffixes)
    below = {subfolder: _parted(files_below(subfolder, folder), suffixes) for subfolder in subfolders}
    classes = {subfolder: found for subfolder, (found, _) in below.items() if found}
    others += [path for _, rest in below.values() for path in rest]
    inside = [(path, text_of(subfolder.name)) for subfolder, found in classes.items() for path in found]
    if len(here) > len(inside):
        _leave_out(notes, f"left out, in subfolders beside {kind}s without a class", [path for path, _ in inside])
        inside = [(path, None) for path in here]
    else:
        check_classes(folder, classes, kind)
        _leave_out(notes, "left out, beside the class folders", here)
        for subfolder in subfolders if inside else ():
            if subfolder not in classes:
                notes.add(f"without {kind}s", subfolder, unit="folders")
    if inside:
        _leave_out(notes, f"left out, no {kind}s by their names", others)
    return inside


def files_below(folder: Path, within: Path | None = None) -> list[Path]:
    """All files of a folder and its subfolders, in natural order, without those that programs leave behind.

    Links are followed, but not to a folder that they lie in, nor to `within`.

    Raises:
        OSError: when a folder can't be read.
    """
    found, waiting = [], [(folder, frozenset(() if within is None else [_identity(within)]))]
    while waiting:
        here, above = waiting.pop()
        if (identity := _identity(here)) not in above:
            files, subfolders = entries(here)
            found += files
            waiting += [(subfolder, above | {identity}) for subfolder in subfolders]
    return sorted(found, key=natural)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _leave_out(notes: Notes, why: str, paths: list[Path]) -> None:
    for path in paths:
        notes.add(why, path)


def check_classes(folder: Path, classes: dict[Path, list[Path]], kind: str) -> None:
    """Raises UserError where the subfolders with files are something else than classes."""
    parts = [subfolder for subfolder in classes if _PART.fullmatch(subfolder.name.casefold())]
    if len(parts) > 1 or (parts and len(classes) == 1):
        likely = next((part for part in parts if "train" in part.name.casefold()), parts[0])
        raise UserError(
            f"{folder}: expected classes as subfolders, got parts of a data set "
            f"({', '.join(part.name for part in parts)}): try {likely}"
        )
    if len(classes) == 1:
        (wrapper,) = classes
        inner = _class_folders(wrapper, classes[wrapper])
        if len(inner) > 1:
            likely = inner[0].parent
            raise UserError(
                f"{folder}: expected classes as subfolders, got {wrapper.name} alone, which holds "
                f"{counted(len(inner), 'folders')} of {kind}s: try {likely}"
            )


def _class_folders(folder: Path, files: list[Path]) -> list[Path]:
    """The subfolders, of the first folder from here down in which files part, that hold them all; none if it has files
    itself."""
    while True:
        heads = list(dict.fromkeys(path.relative_to(folder).parts[0] for path in files))
        if any(path.parent == folder for path in files):
            return []
        if len(heads) > 1:
            return [folder / head for head in heads]
        folder /= heads[0]


def _parted(files: list[Path], suffixes: tuple[str, ...]) -> tuple[list[Path], list[Path]]:
    """Those that end in one of the suffixes, and the others."""
    return _split(files, lambda path: path.suffix.lower() in suffixes and path.is_file())


def _split(paths: Iterable[Path], wanted: Callable[[Path], bool]) -> tuple[list[Path], list[Path]]:
    parts: tuple[list[Path], list[Path]] = [], []
    for path in paths:
        parts[not wanted(path)].append(path)
    return parts


def entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """(files, subfolders) of a folder, in natural order, without what programs leave behind.

    Raises:
        OSError: when the folder can't be read.
    """
    named = sorted((path for path in folder.iterdir() if not _left_by_programs(path.name)), key=natural)
    subfolders, files = _split(named, Path.is_dir)
    return files, subfolders


def _left_by_programs(name: str) -> bool:
    return _OF_PROGRAMS.fullmatch(name.casefold()) is not None


def indexed(classes: list[str | None]) -> tuple[Tensor | None, tuple[str, ...]]:
    """(labels, class_names) of the class of each item by name: int64 (N,) and the names in natural order.

    Without classes, when they are None: (None, ()).
    """
    names = tuple(sorted({name for name in classes if name is not None}, key=natural))
    if not names:
        return None, ()
    places = {name: index for index, name in enumerate(names)}
    return torch.tensor([places[name] for name in classes]), names


def natural(name: str | os.PathLike[str]) -> tuple[list[str | int], str]:
    """A key that sorts names as people do: numbers in them by their value, letters of either case together."""
    text = os.fspath(name)
    pieces = re.split(r"([0-9]+)", text.casefold())
    return [int(piece) if index % 2 else piece for index, piece in enumerate(pieces)], text
