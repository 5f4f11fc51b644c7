"""Settings that media and families offer, and commands turn into options."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """A setting by its name as an argument; the option is called likewise.

    Attributes:
        name: of the argument of a model, a configuration or a loader of data.
        kind: of its value; bool is a flag, off unless given.
        help: one sentence.
        default: what holds where it is not given, in words; None tells nothing, or what the configuration says.
        least: the smallest number.
        most: the largest number.
        metavar: what the value is called.
        shapes_model: whether it changes the model that is built, rather than how it is trained or how data is read.
    """

    name: str
    kind: type
    help: str
    default: str | None = None
    least: float | None = None
    most: float | None = None
    metavar: str | None = None
    shapes_model: bool = False
