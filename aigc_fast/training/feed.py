"""From a data set to what a model's training takes."""

from __future__ import annotations

from aigc_fast.data import Dataset
from aigc_fast.errors import UserError
from aigc_fast.media import Feed, medium_of
from aigc_fast.models import Model
from aigc_fast.training.config import TrainingConfig


def feed_of(model: Model, dataset: Dataset, config: TrainingConfig) -> Feed:
    """The data set as the model's medium feeds it to training.

    Raises:
        UserError: when the data set is of another medium, its items of another shape than the model's, or its classes
            not as many.
    """
    if dataset.unit != medium_of(model).unit:
        raise UserError(f"{dataset.name}: holds {dataset.unit}, which {model.name} does not make")
    for name, value in dataset.shape.items():
        if not hasattr(model, name):
            raise UserError(f"{dataset.name}: holds {dataset.unit}, which {model.name} does not make")
        if getattr(model, name) != value:
            raise UserError(f"{dataset.name}: {name} is {value}, {model.name} was built for {getattr(model, name)}")
    if model.num_classes is not None and model.num_classes != dataset.num_classes:
        raise UserError(
            f"{dataset.name}: has {dataset.num_classes or 'no'} classes, {model.name} was built for {model.num_classes}"
        )
    return medium_of(model).feed(model, dataset, config)
