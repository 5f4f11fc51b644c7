"""The folder of a run: what stands in it, and how a new run takes an old one's place."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from aigc_fast.errors import UserError
from aigc_fast.files import atomic, make_folder, move, remove, remove_folder
from aigc_fast.media import all_media, read_provenance
from aigc_fast.models.storage import read_metadata
from aigc_fast.training.parts import SUFFIX, holds_parts

MODEL_FILE, LOG_FILE = "model.safetensors", "log.jsonl"
STAGING = ".aigc_fast-new"

_CHECKPOINTS, _SAMPLES, _TENSORBOARD = "checkpoints", "samples", "tensorboard"
_MARKER = "takes-place-of.json"
_OF_STEP = re.compile(
    rf"(?:{_CHECKPOINTS}/step-(\d{{8,}})(?:\.safetensors|{re.escape(SUFFIX)})|{_SAMPLES}/step-(\d{{8,}})((?:\.\w+)+))"
)
_WHOLE = (MODEL_FILE, LOG_FILE)


class RunFolder:
    """Where a run's files are, and whose they are.

    A new run in a folder that holds another one writes into a folder inside, until it has a checkpoint: up to there the
    old run is whole. Then its files take the old ones' places. What a process that is killed meanwhile leaves is
    brought to its end by the next one that goes on with the run or replaces it.

    Args:
        path: the folder, which need not exist.

    Attributes:
        path: where the user finds the run.
        work: where the run writes now: `path`, or the folder inside.
    """

    def __init__(self, path: Path) -> None:
        self.path = self.work = path
        self._inside = path / STAGING
        self._replaced: list[str] = []

    @property
    def model(self) -> Path:
        """The model file."""
        return self.work / MODEL_FILE

    @property
    def log(self) -> Path:
        """The file of the log's rows."""
        return self.work / LOG_FILE

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.work / _CHECKPOINTS

    @property
    def samples(self) -> Path:
        """The folder of the samples."""
        return self.work / _SAMPLES

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's files."""
        return self.work / _TENSORBOARD

    def standing(self) -> list[str]:
        """The files in `path` that a run would write or has written, by their names in it.

        Parts without their checkpoint, which a process that was killed may leave, are in nobody's way.
        """
        candidates = [*_WHOLE, *_names_in(self.path, f"{_CHECKPOINTS}/step-*", f"{_SAMPLES}/step-*")]
        found = [name for name in candidates if _is_of_run(name) and os.path.lexists(self.path / name)]
        return [name for name in found if not _is_left_over(self.path / name)]

    def check_free(self, overwrite: bool) -> None:
        """Checks that a new run may begin here.

        Raises:
            UserError: when a file stands in the way, or with `overwrite` one that this package did not write.
        """
        standing = self.standing()
        if not overwrite and (standing or self._marker.exists()):
            raise UserError(self._taken(standing))
        for name in standing:
            if not _is_ours(self.path / name):
                raise UserError(
                    f"{self.path / name}: aigc_fast did not write this file, and does not replace it: move it away, or "
                    "choose another --out"
                )

    def _taken(self, standing: list[str]) -> str:
        if MODEL_FILE in standing or self._marker.exists() or any(_is_checkpoint(name) for name in standing):
            return (
                f"{self.path}: holds a run already: --resume latest goes on with it, --overwrite replaces it, or "
                "choose another --out"
            )
        return f"{self.path / standing[0]}: is there already: --overwrite replaces it, or choose another --out"

    def holds(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is one of the run in this folder."""
        return checkpoint.resolve().parent == (self.path / _CHECKPOINTS).resolve()

    def begin(self, kept: int = -1) -> None:
        """Makes the folders.

        Args:
            kept: the step that a run of this folder goes on from; later files give way to its first checkpoint. −1 for
                a new run, to which all do.

        Raises:
            UserError: when they can't be made or written to.
        """
        later = [name for name in self.standing() if _step(name) > kept]
        for folder in (self.path, self.path / _CHECKPOINTS, self.path / _SAMPLES):
            make_folder(folder)
        shutil.rmtree(self._inside, ignore_errors=True)
        if any(kept < 0 or _is_checkpoint(name) for name in later):
            self.work = self._inside
            self._replaced = [name for name in later if kept < 0 or name not in _WHOLE]
            for folder in (self.work, self.checkpoints, self.samples):
                make_folder(folder)

    def take_place(self) -> None:
        """Puts the run, which has a checkpoint now, into the old one's place; nothing where it is there already.

        Raises:
            UserError: when files can't be moved or removed; `complete` will go on then.
        """
        if self.work == self.path:
            return
        new = self._staged()
        with atomic(self._marker) as temporary:
            temporary.write_text(json.dumps([name for name in self._replaced if name not in new]), encoding="utf-8")
        self.complete()
        self.work = self.path

    def complete(self) -> None:
        """Brings to its end what `take_place` began, here or in a process that was killed.

        Raises:
            UserError: when files can't be moved or removed.
        """
        if not self._marker.exists():
            return
        for name in self._given_way():
            (remove_folder if name.endswith(SUFFIX) else remove)(self.path / name)
        for name in self._staged():
            if name.endswith(SUFFIX):
                remove_folder(self.path / name)
            move(self._inside / name, make_folder((self.path / name).parent) / Path(name).name)
        remove(self._marker)
        shutil.rmtree(self._inside, ignore_errors=True)

    def close(self) -> None:
        """Drops what a run leaves that ended without a checkpoint, where another run stands."""
        if self.work != self.path and not self._marker.exists():
            shutil.rmtree(self._inside, ignore_errors=True)

    def begun(self) -> tuple[bool, list[str]]:
        """What `begin` found, for `follow`."""
        return self.work == self._inside, self._replaced

    def follow(self, inside: bool, replaced: list[str]) -> None:
        """Takes over what `begin` found in another process."""
        self.work, self._replaced = self._inside if inside else self.path, replaced

    @property
    def _marker(self) -> Path:
        return self._inside / _MARKER

    def _given_way(self) -> list[str]:
        try:
            names = json.loads(self._marker.read_text(encoding="utf-8"))
            return [name for name in names if _is_of_run(name)]
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{self._marker}: damaged ({error}): move {self._inside} away") from None

    def _staged(self) -> list[str]:
        """What is in the folder inside, checkpoints last: as long as one is there, the run can be resumed."""
        kinds = f"{_SAMPLES}/step-*", f"{_TENSORBOARD}/*", *_WHOLE, f"{_CHECKPOINTS}/step-*{SUFFIX}"
        names = _names_in(self._inside, *kinds, f"{_CHECKPOINTS}/step-*.safetensors")
        return [name for name in names if name.startswith(_TENSORBOARD) or _is_of_run(name)]


def _names_in(folder: Path, *patterns: str) -> list[str]:
    return [path.relative_to(folder).as_posix() for pattern in patterns for path in sorted(folder.glob(pattern))]


def _is_of_run(name: str) -> bool:
    found = _OF_STEP.fullmatch(name)
    samples = [suffix for medium in all_media().values() for suffix in (medium.suffixes[0], *medium.beside)]
    return name in _WHOLE or (found is not None and found[3] in (None, *samples))


def _is_left_over(path: Path) -> bool:
    return path.suffix == SUFFIX and not path.with_suffix(".safetensors").exists() and holds_parts(path)


def _is_checkpoint(name: str) -> bool:
    return name.startswith(_CHECKPOINTS)


def _step(name: str) -> int | float:
    """The step that a file is of; that of the whole run's files is beyond all."""
    found = _OF_STEP.fullmatch(name)
    return float("inf") if found is None else int(found[1] or found[2])


def _is_ours(path: Path) -> bool:
    """Whether this package wrote the file, or the folder of parts, by what stands in it."""
    if path.suffix == SUFFIX:
        return holds_parts(path)
    read = {".safetensors": read_metadata, ".jsonl": read_rows}
    try:
        read.get(path.suffix, read_provenance)(path)
    except (UserError, OSError):
        return False
    return True


def read_rows(path: Path) -> list[dict[str, int | float]]:
    """The rows of a log.

    Raises:
        UserError: when the file holds something else.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        if lines and lines[-1].startswith('{"step": ') and not lines[-1].endswith("}"):
            lines.pop()  # cut where a run was killed
        rows = [json.loads(line) for line in lines]
        for row in rows:
            _check_row(row)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: the log is damaged ({error}); move it away to go on without its rows") from None
    return rows


def _check_row(row: dict[str, int | float]) -> None:
    if not isinstance(row["step"], int) or not all(isinstance(value, int | float) for value in row.values()):
        raise TypeError("a row holds something else than numbers")
