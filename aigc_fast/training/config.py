"""Settings of a training run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields
from inspect import formatannotation
from typing import Any

from aigc_fast.checks import check_text
from aigc_fast.errors import UserError
from aigc_fast.runtime.arguments import check_flags, number, whole


def require(holds: bool, name: str, value: object, expected: str) -> None:
    """Refuses a setting that does not hold, by UserError."""
    if not holds:
        raise UserError(f"{name}={value!r}: expected {expected}")


_KINDS: dict[str, Callable[[str, Any], Any]] = {
    "int": whole,
    "float": number,
    "str": lambda name, value: check_text(**{name: value}),
    "bool": lambda name, value: check_flags(**{name: value}),
}


def _check_kind(setting: Field[Any], value: Any) -> None:
    """Refuses, by TypeError, a number, text or flag that is not of its setting's annotation; others are not judged."""
    annotation = setting.type if isinstance(setting.type, str) else formatannotation(setting.type)
    kind, *others = annotation.split(" | ")
    if kind in _KINDS and not (value is None and "None" in others):
        _KINDS[kind](setting.name, value)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What every model's training takes.

    Attributes:
        epochs: passes over the data.
        steps: batches in all, instead of epochs.
        batch_size: images or sounds a batch, places in the text; a data set that is smaller is one batch.
        seed: of the order of the data, the noise and the samples.
        shift: each image is moved at random by up to so many pixels; 0 for sounds and text.
        log_interval: steps between two rows of the log, each the mean of its steps.
        sample_interval: steps between two files of samples; 0 for none.
        checkpoint_interval: steps between two checkpoints; 0 for one at the end alone.
        keep_checkpoints: how many checkpoints stay; older ones go.
        tensorboard: also writes losses and pictures of samples for TensorBoard.

    Raises:
        TypeError: for a value of another kind.
        UserError: for a value out of range.
    """

    epochs: int = 50
    steps: int | None = None
    batch_size: int = 64
    seed: int = 42
    shift: int = 0
    log_interval: int = 10
    sample_interval: int = 100
    checkpoint_interval: int = 500
    keep_checkpoints: int = 3
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for setting in fields(self):
            _check_kind(setting, getattr(self, setting.name))
        for name in ("epochs", "batch_size", "log_interval", "keep_checkpoints"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("shift", "sample_interval", "checkpoint_interval"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(self.steps is None or self.steps >= 1, "steps", self.steps, "at least 1")
        require(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2⁶³ − 1")

    @classmethod
    def suiting(cls, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Defaults that go with what was chosen, where those of the fields do not.

        Args:
            settings: what was chosen, by the fields' names.
        """
        return {}
