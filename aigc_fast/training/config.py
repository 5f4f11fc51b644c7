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
    """Settings of every model's training; `default_config` sets those that suit a model.

    Attributes:
        epochs: number of passes over the data.
        steps: number of batches, in place of `epochs`; None for whole epochs.
        batch_size: items of a batch, or positions in the text; a smaller data set is one batch.
        seed: of the order of the data, the noise and the samples, 0 to 2⁶³ − 1.
        shift: the greatest random shift of each image in pixels; 0 for none, and for sounds and text.
        log_interval: number of steps between two rows of the log, which hold the means over them.
        sample_interval: number of steps between two files of samples; 0 for none.
        checkpoint_interval: number of steps between two checkpoints; 0 for one at the end only.
        keep_checkpoints: how many of the newest checkpoints to keep.
        tensorboard: whether to write losses and sample images for TensorBoard as well.

    Raises:
        TypeError: if a value is of another type; the message names it.
        UserError: if a value is out of range.
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
        """Defaults that depend on other settings.

        Args:
            settings: the chosen ones, by name.

        Returns:
            Values for settings that were not chosen.
        """
        return {}
