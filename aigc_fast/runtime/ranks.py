"""The processes that do one piece of work together: which of them this is, and how they agree."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from aigc_fast.errors import UserError
from aigc_fast.runtime.rows import Split

_Result = TypeVar("_Result")

_BUCKET = 25 << 20
"""Bytes of gradients that are summed by one call, as `DistributedDataParallel` has it."""

_works = itertools.count()


class RankLostError(Exception):
    """Another of the processes has ended: what was under way between them cannot come to its end."""


class Ranks:
    """The processes that do one piece of work together; without `torch.distributed`, this one alone.

    All of them make the same calls in the same order. Between two steps their models, optimizers and generators are
    the same.

    Attributes:
        index: of this process, from 0.
        count: how many there are.
        weight: of what this process has of the step under way, among all.
    """

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.index, self.count = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        self.weight = 1 / self.count
        self._work = next(_works)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.index == 0

    def share(self, total: int) -> range:
        """Which of so many things are this process's."""
        return range(total * self.index // self.count, total * (self.index + 1) // self.count)

    def check(self, total: int, things: str) -> None:
        """Refuses, by UserError, less than one thing for each process."""
        if total < self.count:
            raise UserError(f"{self.count} processes share {total} {things}: expected at least one for each")

    def set_part(self, split: Split | None) -> None:
        """Says what this process has of the step that begins; None where all have the whole."""
        self.weight = 1 / self.count if split is None else split.weight

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes of tensors of one shape, without a gradient."""
        if self.count == 1:
            return tensor
        found = tensor.detach().clone()
        with _told():
            dist.all_reduce(found)
        return found

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the whole batch, of the mean over each process's part; the gradient is this part's."""
        if self.count == 1:
            return value
        return value + (self.sum(value.detach() * self.weight) - value.detach())

    def means(self, values: Mapping[str, Tensor | float]) -> dict[str, float]:
        """Means over the whole batch of those values that are tensors; the others are the same everywhere."""
        tensors = {name: value.detach().float() for name, value in values.items() if isinstance(value, Tensor)}
        if self.count > 1 and tensors:
            found = self.sum(torch.stack([value.flatten()[0] for value in tensors.values()]) * self.weight)
            tensors = dict(zip(tensors, found, strict=True))
        return {name: float(tensors.get(name, value)) for name, value in values.items()}

    def total(self, here: int) -> int:
        """The sum of what the processes have each."""
        return here if self.count == 1 else int(self.sum(torch.tensor(here, device=_device())))

    def whole(self, part: Tensor, total: int, dim: int = 0) -> Tensor:
        """What each process has its `share` of, without a gradient.

        Args:
            part: this process's share along `dim`.
            total: size along `dim` of the whole.
            dim: a dimension.
        """
        if self.count == 1:
            return part
        shape = list(part.shape)
        shape[dim] = total
        found, here = part.new_zeros(shape), self.share(total)
        found.narrow(dim, here.start, len(here)).copy_(part.detach())
        return self.sum(found)

    def reduce_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Makes of each part's gradients those of the whole batch's mean."""
        if self.count == 1:
            return
        parameters = [parameter for parameter in parameters if parameter.requires_grad]
        works = [
            (bucket, *self._summed([_gradient(parameter).flatten() for parameter in bucket], self.weight))
            for bucket in _buckets(parameters)
        ]
        # One part may need no gradient while another does, and to optimizers no gradient is not the same as 0.
        has = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.float32)
        present = self.sum(has.to(parameters[0].device)).tolist()
        is_there = {id(parameter): count > 0 for parameter, count in zip(parameters, present, strict=True)}
        for bucket, flat, work in works:
            with _told():
                work.wait()
            parts = flat.split([parameter.numel() for parameter in bucket])
            for parameter, part in zip(bucket, parts, strict=True):
                if is_there[id(parameter)]:
                    parameter.grad = part.view_as(parameter)

    def _summed(self, parts: Sequence[Tensor], weight: float) -> tuple[Tensor, Any]:
        flat = torch.cat(parts).mul_(weight)
        with _told():
            return flat, dist.all_reduce(flat, async_op=True)

    def any(self, here: bool) -> bool:
        """Whether it holds in any of the processes."""
        return bool(here) if self.count == 1 else bool(self.sum(torch.tensor(float(here), device=_device())))

    def from_first(self, action: Callable[[], _Result]) -> _Result:
        """What the first process finds, in all of them.

        Raises:
            UserError: in all of them, where it does in the first.
        """
        if self.count == 1:
            return action()
        outcome: list[Any] = [None, None]
        if self.is_first:
            try:
                outcome[0] = action()
            except UserError as error:
                outcome[1] = str(error)
        with _told():
            dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise UserError(outcome[1])
        return outcome[0]

    def from_all(self, value: _Result) -> list[_Result]:
        """What each process has, by their numbers."""
        found = [value] * self.count
        if self.count > 1:
            with _told():
                dist.all_gather_object(found, value)
        return found

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Gives the first process's tensors to all."""
        if self.count == 1:
            return
        with torch.no_grad(), _told():
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def claims(self, task: str) -> bool:
        """Whether this process is the first of all that asks for a task which one of them is to do.

        It works where others have ended, too, as long as the store of `torch.distributed` lives, which is torchrun's.
        """
        if self.count == 1:
            return True
        try:
            store = dist.distributed_c10d._get_default_store()
            return store.add(f"aigc_fast/{self._work}/{task}", 1) == 1
        except RuntimeError:
            return False


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _buckets(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters, last ones first, in lists of one dtype and device."""
    bucket: list[Tensor] = []
    size = 0
    for parameter in reversed(parameters):
        if bucket and (size + parameter.nbytes > _BUCKET or _kind(parameter) != _kind(bucket[0])):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.nbytes
    if bucket:
        yield bucket


def _kind(tensor: Tensor) -> tuple[torch.dtype, torch.device]:
    return tensor.dtype, tensor.device


def _device() -> torch.device:
    """Where small tensors go that the processes exchange."""
    return torch.device("cpu" if "gloo" in dist.get_backend_config() else torch.cuda.current_device())


@contextmanager
def _told() -> Iterator[None]:
    """Tells of what the processes do together: it fails where one of them has ended."""
    try:
        yield
    except RuntimeError as error:
        raise RankLostError(str(error).partition("\n")[0]) from error


@contextmanager
def losses_told() -> Iterator[None]:
    """Tells, of what computes and talks to other processes as well, where one of them has ended.

    Raises:
        RankLostError: in place of what PyTorch raises then.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise RankLostError(str(error).partition("\n")[0]) from error


def is_launched() -> bool:
    """Whether a launcher as torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def launched() -> tuple[int, int]:
    """Number of this process, and of all, as a launcher such as torchrun says; (0, 1) without one."""
    return (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if is_launched() else (0, 1)


def own_device(device: torch.device) -> torch.device:
    """The device on which this process computes: of several cards, each of the processes that were launched has one.

    Raises:
        UserError: if there are fewer cards than processes on this machine.
    """
    if device.type != "cuda" or not is_launched():
        return device
    place = int(os.environ.get("LOCAL_RANK", "0"))
    if place >= torch.cuda.device_count():
        raise UserError(
            f"process {place} of this machine finds {torch.cuda.device_count()} cards: expected one for each; "
            "--device cpu needs none"
        )
    torch.cuda.set_device(place)
    return torch.device("cuda", place)


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Joins the processes that a launcher such as torchrun started, for the length of the block.

    Args:
        device: to compute on; of several cards each process takes its own.

    Returns:
        The process's device.

    Raises:
        UserError: if there are fewer cards than processes on this machine.
    """
    if not is_launched() or dist.is_initialized():
        yield device
        return
    device = own_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()
