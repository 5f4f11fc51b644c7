"""What training, generation and evaluation ask of a medium."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor

from aigc_fast.data import Dataset
from aigc_fast.generation import Provenance, draw
from aigc_fast.media.kinds import Kind
from aigc_fast.models import Model
from aigc_fast.models.base import Labels
from aigc_fast.settings import Setting

if TYPE_CHECKING:
    from aigc_fast.training import TrainingConfig


class Feed(ABC):
    """A data set as a model's training needs it."""

    @abstractmethod
    def batch(self, indices: Tensor) -> Any:
        """What the model's trainer takes of the items at `indices` (n,), in the model's dtype on its device."""

    @abstractmethod
    def write_samples(self, model: Model, seed: int, path: Path, provenance: Provenance) -> Tensor:
        """Draws samples and writes them.

        Args:
            model: to draw from.
            seed: of the draw.
            path: of the files, without their suffix.
            provenance: recorded in each file.

        Returns:
            A picture of them, (C, H, W) in [-1, 1].
        """


class Report(Protocol):
    """The figures of an evaluation."""

    count: int
    training_count: int

    def as_dict(self) -> dict[str, Any]:
        """The figures as a JSON-able dictionary."""


class Medium(ABC):
    """A medium: how its data is read, its items are drawn and written, and what is measured of them.

    Attributes:
        name: the word that the command line uses.
        unit: what items are called, in the plural; a data set's likewise.
        model: what all models of the medium are.
        suffixes: of the files that are written, in lower case; the first is a new one's.
        files: what holds training data, in words.
        embedded: the training data that comes with the package, in words.
        data_settings: what `load` takes besides the path.
        reading_settings: those of them that any model's data takes, whatever the model's shape.
        training_settings: those of `TrainingConfig` that are the medium's.
        kinds: what can be made, and how many by default; the first is made unless asked otherwise.
        pictured: whether items can be seen beside others, in one picture.
        evaluated: how many items are drawn to be measured.
        rows: name, attribute of the report, its format, and what would be ideal, of each line of an evaluation.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    model: ClassVar[type[Model]]
    suffixes: ClassVar[tuple[str, ...]]
    files: ClassVar[str]
    embedded: ClassVar[str]
    data_settings: ClassVar[tuple[Setting, ...]] = ()
    reading_settings: ClassVar[tuple[Setting, ...]] = ()
    training_settings: ClassVar[tuple[Setting, ...]] = ()
    kinds: ClassVar[Mapping[Kind, int]]
    pictured: ClassVar[bool] = False
    evaluated: ClassVar[int]
    rows: ClassVar[tuple[tuple[str, str, str, str], ...]]

    @abstractmethod
    def load(self, path: Path | None, **settings: Any) -> Dataset:
        """Training data; None for what comes with the package."""

    @abstractmethod
    def load_for(self, model: Model, path: Path | None, **reading: Any) -> Dataset:
        """Training data of the shape that a model makes.

        Raises:
            UserError: when there is none.
        """

    @abstractmethod
    def load_like(self, training: Dataset, folder: Path, **reading: Any) -> Dataset:
        """What a folder holds, in the form of the training data."""

    @abstractmethod
    def is_item(self, path: Path) -> bool:
        """Whether a file is named as one that `load` reads."""

    @abstractmethod
    def items(self, dataset: Dataset) -> Any:
        """All items of a data set, as models make them."""

    @abstractmethod
    def feed(self, model: Model, dataset: Dataset, config: TrainingConfig) -> Feed:
        """A data set that suits the model as its training needs it."""

    def draw(self, model: Any, count: int, seed: int, labels: Labels | None = None) -> Any:
        """Items that depend on the model and the seed alone; see `generation.draw`."""
        return draw(model, count, seed=seed, labels=labels)

    @abstractmethod
    def joined(self, model: Model, items: Any, columns: int | None) -> Any:
        """Items in one piece to write."""

    @abstractmethod
    def write(self, path: Path, piece: Any, model: Model, provenance: Provenance, scale: int) -> None:
        """Writes an item, or several joined, with a picture beside it where it is none itself."""

    @abstractmethod
    def read_provenance(self, path: Path) -> Provenance:
        """What `write` recorded.

        Raises:
            UserError: when the file carries no record of this package.
        """

    @abstractmethod
    def measure(self, items: Any, training: Dataset) -> Report:
        """Figures of items, against the training data.

        Raises:
            ValueError: on too few items, or of another shape.
        """

    def remarks(self, report: Report) -> list[str]:
        """What else a report tells people."""
        return []

    def beside_nearest(self, items: Any, training: Dataset) -> Tensor:
        """A picture (C, H, W) of items above their nearest ones in the training data, of what is `pictured`."""
        raise NotImplementedError
