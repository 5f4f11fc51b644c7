"""Runs what commands look at from outside: a model's training step, or somebody's script."""

from __future__ import annotations

import runpy
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from aigc_fast.errors import UserError
from aigc_fast.media import medium_of
from aigc_fast.models import MODELS, create
from aigc_fast.training import default_config
from aigc_fast.training.feed import feed_of
from aigc_fast.training.trainer import make_trainer


class Stepping:
    """A model of ours with its defaults, as it is trained on the data that comes with the package.

    Args:
        name: the model's.
        device: where it computes.
    """

    def __init__(self, name: str, device: str | torch.device = "cpu") -> None:
        self._medium = medium_of(MODELS[name])
        dataset = self._medium.load(None)
        model = create(name, **dataset.shape).to(device)
        self._config = default_config(model)
        self._trainer = make_trainer(model, self._config)
        self._feed = feed_of(model, dataset, self._config)
        self._rows = torch.arange(min(self._config.batch_size, len(dataset)))

    def step(self) -> None:
        """A step of training."""
        self._trainer.step(self._feed.batch(self._rows))

    def draw(self) -> None:
        """Draws from it."""
        with self._trainer.sampling() as trained:
            self._medium.draw(trained, self._config.batch_size, seed=0)


def script_of(subject: str) -> Path | None:
    """The script that a command's argument names, None where it is a model's name.

    Raises:
        UserError: when it is neither.
    """
    if subject in MODELS:
        return None
    script = Path(subject)
    if not script.is_file():
        raise UserError(f"{subject}: is neither a model ({', '.join(MODELS)}) nor a script")
    return script.resolve()


@contextmanager
def _as_program(script: Path, arguments: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    try:
        yield
    finally:
        sys.argv = before
        sys.path.remove(str(script.parent))


def run_script(script: Path, arguments: list[str]) -> None:
    """Runs a script as Python would.

    Raises:
        UserError: when it ends with another code than 0, raises, or is no Python.
    """
    with _as_program(script, arguments):
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as stop:
            if stop.code not in (None, 0):
                raise UserError(f"{script}: stopped with {stop.code}") from None
        except SyntaxError as error:
            raise UserError(f"{error.filename or script}: line {error.lineno or 1} is no Python: {error.msg}") from None
        except Exception as error:
            raise UserError(f"{_place(script, error)}: {type(error).__name__}: {error}") from error


def _place(script: Path, error: Exception) -> str:
    """Where the script was when it came to the error; the script alone where it did not begin."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(script)]
    return f"{script}: line {lines[-1]}" if lines else str(script)
