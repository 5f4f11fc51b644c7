"""What training, generation and evaluation ask of a medium."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from aigc_fast.data import Dataset
from aigc_fast.errors import UserError
from aigc_fast.generation import Provenance, draw
from aigc_fast.generation.latent import decode_all
from aigc_fast.media.kinds import Kind
from aigc_fast.models import Model
from aigc_fast.models.base import Labels
from aigc_fast.runtime.ranks import Ranks
from aigc_fast.runtime.rows import Rows, Split, laid_out
from aigc_fast.settings import Setting
from aigc_fast.wording import counted

if TYPE_CHECKING:
    from aigc_fast.training import TrainingConfig


class Batch(NamedTuple):
    """What a step trains on, or this process's part of it.

    Attributes:
        inputs: as the model's trainer takes them.
        labels: int64 (N,), of a conditional model.
        split: what part of the batch it is; None for the whole.
    """

    inputs: Any
    labels: Tensor | None = None
    split: Split | None = None


class Feed(ABC):
    """A data set as a model's training needs it.

    Args:
        model: to train.
        dataset: that suits it.
        config: of the training.

    Attributes:
        unit: what a step trains on, in the plural.
        step_size: how many of them it trains on.
        epoch_steps: steps of one pass over the data.
        measure_interval: steps between two measurements of data that is held out; 0 where none is.
        notes: what was left out of the data because it does not suit the model, in lines for people.
        ranks: the processes that share a step's batch.
    """

    measure_interval: int = 0
    notes: tuple[str, ...] = ()

    def __init__(self, model: Model, dataset: Dataset, config: TrainingConfig) -> None:
        self.model, self.dataset, self.config = model, dataset, config
        self.unit = dataset.unit
        self.ranks = Ranks()

    @property
    @abstractmethod
    def step_size(self) -> int: ...

    @property
    @abstractmethod
    def epoch_steps(self) -> int: ...

    @abstractmethod
    def batches(self, step: int) -> Iterator[Batch]:
        """Inputs and labels as the model's trainer takes them, in its dtype on its device, from a step on without end.

        What a step gets depends on the seed and the step alone; of several processes each gets a part of it.
        """

    def measure(self, model: Model) -> Mapping[str, float]:
        """Figures of a model on the data that is held out, by name."""
        return {}

    @abstractmethod
    def write_samples(self, model: Model, seed: int, path: Path, provenance: Provenance) -> Tensor | str:
        """Draws samples and writes them.

        Args:
            model: to draw from.
            seed: of the draw.
            path: of the files, without their suffix.
            provenance: recorded in each file.

        Returns:
            A picture of them, (C, H, W) in [-1, 1], or a text.
        """

    def _part(self, total: int) -> tuple[range, Split | None]:
        """Which of the rows of a step's batch are this process's, and what part of it they are."""
        here = self.ranks.share(total)
        return here, None if self.ranks.count == 1 else Split(len(here) / total, (Rows(here, total),))

    def _generator(self, epoch: int) -> torch.Generator:
        """Of the order in which a pass goes over the data."""
        return torch.Generator().manual_seed((self.config.seed + 0x9E3779B9 * (epoch + 1)) % 2**63)


class ItemFeed(Feed):
    """Items in batches, each pass over the data in another order.

    Args:
        model: to train.
        dataset: items of its shape.
        config: of the training; a data set smaller than its `batch_size` is one batch.

    Raises:
        UserError: when the model needs larger batches.
    """

    def __init__(self, model: Model, dataset: Dataset, config: TrainingConfig) -> None:
        super().__init__(model, dataset, config)
        self.ranks.check(self.step_size, f"{dataset.unit} of a batch (--batch-size)")
        if self.step_size < model.least_batch:
            given = f"batch_size={config.batch_size}, of {counted(len(dataset), dataset.unit)}"
            raise UserError(f"{given}: {model.name} trains on batches of at least {model.least_batch}")

    @property
    def step_size(self) -> int:
        """See `Feed`: the batch's."""
        return min(self.config.batch_size, len(self.dataset))

    @property
    def epoch_steps(self) -> int:
        """See `Feed`."""
        return len(self.dataset) // self.step_size

    def batches(self, step: int) -> Iterator[Batch]:
        """See `Feed.batches`."""
        order, epoch = None, None
        here, split = self._part(self.step_size)
        for number in count(step):
            now, position = divmod(number, self.epoch_steps)
            if now != epoch:
                epoch, order = now, torch.randperm(len(self.dataset), generator=self._generator(now))
            first = position * self.step_size
            indices = order[first + here.start : first + here.stop]
            conditional = self.model.num_classes is not None
            labels = self.dataset.batch_labels(indices).to(self.model.device) if conditional else None
            with laid_out(*(split.rows if split else ())):
                inputs = self.batch(indices)
            yield Batch(inputs, labels, split)

    @abstractmethod
    def batch(self, indices: Tensor) -> Any:
        """What the model's trainer takes of the items at `indices` (n,), in the model's dtype on its device."""


def trained_on(model: Model) -> dict[str, Any]:
    """What a model's file keeps of the data that it was trained on, see `Dataset.record`; empty where it keeps none."""
    known = getattr(model, "metadata", {}).get("data")
    return known if isinstance(known, dict) else {}


def check_unmoved(model: Model, config: TrainingConfig) -> None:
    """Refuses, by UserError, a `shift` where there are no images to move."""
    if config.shift:
        raise UserError(f"shift={config.shift}: it moves images; expected 0 for {model.name}")


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
        beside: suffixes that files have, in place of their own, that are written beside them.
        files: what holds training data, in words.
        embedded: the training data that comes with the package, in words.
        data_settings: what `load` takes besides the path.
        reading_settings: those of them that any model's data takes, whatever the model's shape.
        training_settings: those of `TrainingConfig` that are the medium's.
        drawing_settings: what is asked for when items are drawn, besides what every medium has.
        measuring_settings: what is asked for when items are drawn to be measured.
        batch_unit: what a batch is made of, in the plural; None where it is items.
        kinds: what can be made, and how many by default; the first is made unless asked otherwise.
        pictured: whether items can be seen beside others, in one picture.
        arrangement: which of the options it has by which items are put into one file.
        streamed: whether items come in parts of text, to be shown as they are made.
        companion: whether files of it stand beside those of other media to tell of them.
        evaluated: how many items are drawn to be measured.
        rows: name, attribute of the report, its format, and what would be ideal, of each line of an evaluation.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    model: ClassVar[type[Model]]
    suffixes: ClassVar[tuple[str, ...]]
    beside: ClassVar[tuple[str, ...]] = ()
    files: ClassVar[str]
    embedded: ClassVar[str]
    data_settings: ClassVar[tuple[Setting, ...]] = ()
    reading_settings: ClassVar[tuple[Setting, ...]] = ()
    batch_unit: ClassVar[str | None] = None
    training_settings: ClassVar[tuple[Setting, ...]] = ()
    drawing_settings: ClassVar[tuple[Setting, ...]] = ()
    measuring_settings: ClassVar[tuple[Setting, ...]] = ()
    kinds: ClassVar[Mapping[Kind, int]]
    pictured: ClassVar[bool] = False
    arrangement: ClassVar[tuple[str, ...]] = ("columns", "scale")
    streamed: ClassVar[bool] = False
    companion: ClassVar[bool] = False
    evaluated: ClassVar[int]
    rows: ClassVar[tuple[tuple[str, str, str, str], ...]]

    @property
    def formats(self) -> str:
        """What files that are written are called, in words."""
        return self.suffixes[0][1:].upper()

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

    def draw(
        self,
        model: Any,
        count: int,
        seed: int,
        labels: Labels | None = None,
        show: Callable[[str], None] | None = None,
        **settings: Any,
    ) -> Any:
        """Items that depend on the model, the seed and the settings alone; see `generation.draw`.

        Args:
            model: of the medium.
            count: how many.
            seed: of the draw.
            labels: the classes, for a conditional model.
            show: takes the parts of items that come in parts, as they are made.
            **settings: some of `drawing_settings`.
        """
        return draw(model, count, seed=seed, labels=labels)

    def draw_each(self, model: Any, seeds: Sequence[int], labels: Sequence[int] | None, **settings: Any) -> Any:
        """Items each of which depends on the model, its own seed, its label and the settings alone.

        Args:
            model: of the medium.
            seeds: of each item.
            labels: their classes, for a conditional model.
            **settings: some of `drawing_settings`.
        """
        z = [model.prior(1, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return decode_all(model, torch.cat(z), labels)

    def draw_to_measure(
        self, model: Any, training: Dataset, count: int, seed: int, labels: Labels | None, **settings: Any
    ) -> Any:
        """Items as `measure` takes them beside the training data.

        Args:
            model, count, seed, labels: as for `draw`.
            training: data of the model's shape.
            **settings: some of `measuring_settings`.
        """
        return self.draw(model, count, seed, labels)

    def pace(self, model: Any) -> str:
        """How fast the model drew last, to be told behind what was written; empty where nobody asks."""
        return ""

    @abstractmethod
    def joined(self, model: Model, items: Any, columns: int | None) -> Any:
        """Items in one piece to write."""

    def check_target(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Checks, before any work is done, that `write` can write such a file.

        Args:
            path: the file.
            settings: those of `drawing_settings` that were given.

        Raises:
            UserError: when it can't.
        """
        return

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
    def measure(self, items: Any, training: Dataset, model: Model | None) -> Report:
        """Figures of items, against the training data, and of the model that they are from, if they are.

        Raises:
            ValueError: for too few items, or of another shape.
        """

    def remarks(self, report: Report) -> list[str]:
        """What else a report tells people."""
        return []

    def beside_nearest(self, items: Any, training: Dataset) -> Tensor:
        """A picture (C, H, W) of items above their nearest ones in the training data, of what is `pictured`."""
        raise NotImplementedError
