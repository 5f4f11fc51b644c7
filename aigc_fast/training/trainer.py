"""What trains a model of a family: one step, and what suits it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pkgutil import resolve_name
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from aigc_fast.errors import UserError
from aigc_fast.models import Model, create
from aigc_fast.runtime.ranks import Ranks, losses_told
from aigc_fast.runtime.rows import Split, laid_out
from aigc_fast.settings import Setting
from aigc_fast.training.batch_norm import over_ranks
from aigc_fast.training.config import TrainingConfig
from aigc_fast.training.parts import share_out, whole

SHARE = "share"
"""In a group of an optimizer's parameters: by what its learning rate is multiplied."""


class Trainer(ABC):
    """What changes from step to step, and the step.

    Args:
        model: of the trainer's family.
        config: a `config_type`.

    Attributes:
        config_type: the family's settings.
        settings: those that the command line offers for this family alone, of the training and of its models.
        model: the model in training.
        modules: everything with weights or buffers to keep in a checkpoint, by name.
        optimizers: by name.
        step_count: steps done.
        total_steps: steps that will have been done at the end; None where nobody has said.
        ranks: the processes that train together.
        is_sharded: whether each of them has a part of the weights and of the optimizers' state alone.
        shown: names of the values that a progress bar has room for.
    """

    config_type: ClassVar[type[TrainingConfig]]
    settings: ClassVar[tuple[Setting, ...]] = ()
    shown: ClassVar[tuple[str, ...]]

    def __init__(self, model: Model, config: TrainingConfig) -> None:
        self.model, self.config = model, config
        self.modules: dict[str, nn.Module] = {"model": model}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.step_count = 0
        self.total_steps = config.steps
        self.ranks = Ranks()
        self.is_sharded = False
        self._before: list[tuple[Tensor, Tensor]] = []

    def _share_out(self) -> None:
        """Leaves each process its part of the model, which is the first one's; before optimizers are made."""
        self.ranks.spread(self.model.state_dict().values())
        share_out(self.model, self.ranks)
        self.is_sharded = True

    def step(self, inputs: Any, labels: Tensor | None = None, split: Split | None = None) -> dict[str, float]:
        """Trains on one batch.

        Args:
            inputs: a batch: images (N, C, H, W) or clips (N, T, C, H, W) in [-1, 1], sounds (N, T), parts of texts.
            labels: int64 (N,), for a conditional model.
            split: this process's part of the batch, where several processes train together; None for the whole batch.

        Returns:
            Losses and other measures of the whole batch, by name.

        Raises:
            RankLostError: if another process has ended. Where `step_count` has grown, the step was done.
        """
        self.model.train()
        self.ranks.set_part(split)
        self._before = []
        self._remember(buffer for module in self.modules.values() for buffer in module.buffers())
        rows = split.rows if split else ()
        with losses_told(), over_ranks(self.modules.values(), self.ranks), laid_out(*rows):
            values = self._step(inputs, labels)
        self.step_count += 1
        return self.ranks.means(values)

    def take_back(self) -> None:
        """Undoes the part of a step that was done before it failed."""
        with torch.no_grad():
            for tensor, before in reversed(self._before):
                tensor.copy_(before)

    def _remember(self, tensors: Iterable[Tensor]) -> None:
        if self.ranks.count > 1:
            self._before += [(tensor, tensor.detach().clone()) for tensor in tensors]

    def _descend(
        self, loss: Tensor, name: str = "model", *, rate: float | None = None, clip: float | None = None
    ) -> Tensor | None:
        """Takes an optimizer's step.

        Args:
            loss: the mean over the part of the batch that is here.
            name: the optimizer's.
            rate: its learning rate from now on, of which groups have their `SHARE`; None leaves it.
            clip: the largest norm of the model's gradient; a longer one is shortened to it.

        Returns:
            The norm of the gradient, where there is a `clip`.
        """
        optimizer = self.optimizers[name]
        if rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get(SHARE, 1.0)
        optimizer.zero_grad()
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if self.is_sharded:
            # Which takes the mean over the processes, as if their parts were alike.
            (loss * (self.ranks.weight * self.ranks.count)).backward()
        else:
            loss.backward()
            self.ranks.reduce_gradients(parameters)
        norm = None if clip is None else whole(nn.utils.clip_grad_norm_(self.model.parameters(), clip))
        if len(self.optimizers) > 1:
            # Another optimizer's step may fail after this one.
            self._remember(parameters)
            self._remember(value for state in optimizer.state.values() for value in state.values())
        optimizer.step()
        return norm

    def first_step(self, optimizer: str) -> int:
        """The first step, counted from 1, in which an optimizer changes its weights."""
        return 1

    @abstractmethod
    def _step(self, inputs: Any, labels: Tensor | None) -> Mapping[str, Tensor | float]: ...

    @contextmanager
    def sampling(self) -> Iterator[Model]:
        """Within the block, the model as it should be sampled and saved; if it is trained in parts, only the first
        process has it, but all must make the call.
        """
        yield self._whole() if self.is_sharded else self.model

    def _whole(self) -> Model:
        with losses_told():
            weights = {name: whole(value.detach()) for name, value in self.model.state_dict().items()}
        if not self.ranks.is_first:
            return self.model
        with torch.device("meta"):
            model = create(self.model.name, **self.model.config)
        model.load_state_dict(weights, assign=True)
        return model

    def finish(self) -> None:
        """Ends training: leaves the model as it should be sampled, in eval mode."""
        self.model.eval()


def adam(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], rate: float, betas: tuple[float, float]
) -> torch.optim.Adam:
    """Adam in one kernel."""
    return torch.optim.Adam(parameters, lr=rate, betas=betas, fused=True)


def trainer_of(model: Model | type[Model]) -> type[Trainer]:
    """The trainer that a model declares."""
    return resolve_name(model.trainer)


def default_config(model: Model | type[Model], **settings: Any) -> TrainingConfig:
    """The settings that suit a model and, for a GAN, its loss.

    Args:
        model: a model or its class.
        **settings: values for fields of its trainer's `config_type`, such as `steps` or `learning_rate`; None keeps the
            default.

    Returns:
        A configuration of the model's family, for `train`.

    Raises:
        TypeError: if a value is of another type.
        UserError: for a setting that the model's training does not have, or a value out of range.
    """
    config = trainer_of(model).config_type
    chosen = {name: value for name, value in settings.items() if value is not None}
    known = {field.name for field in fields(config)}
    for name in chosen:
        if name not in known:
            raise UserError(f"{name}: training of {model.name} has no such setting")
    return config(**{**model.training_settings, **config.suiting(chosen), **chosen})


def make_trainer(model: Model, config: TrainingConfig) -> Trainer:
    """Makes the trainer of a model's family, for a training loop of your own.

    Args:
        model: the model to train, in place.
        config: as from `default_config`.

    Returns:
        The trainer, whose `step` trains on one batch.

    Raises:
        TypeError: if model and configuration are of different families.
    """
    trainer = trainer_of(model)
    if not isinstance(config, trainer.config_type):
        raise TypeError(f"config: {type(config).__name__} does not suit a {type(model).__name__}; see default_config")
    return trainer(model, config)
