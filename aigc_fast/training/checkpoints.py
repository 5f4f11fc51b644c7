"""Checkpoints: everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aigc_fast.errors import UserError
from aigc_fast.files import remove, remove_folder
from aigc_fast.models.storage import read_tensors, write_tensors
from aigc_fast.training.log import Averages
from aigc_fast.training.parts import SUFFIX, check_parts, laid_like, read_parts, write_parts
from aigc_fast.training.trainer import Trainer

_NAME = re.compile(r"step-\d{8,}\.safetensors")
_PARTS = "parts"
_OF_ADAM = ("step", "exp_avg", "exp_avg_sq")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step stands in its folder."""
    return folder / f"step-{step:08d}.safetensors"


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))


def parts_of(checkpoint: Path) -> Path:
    """The folder beside a checkpoint that holds what several processes have in parts."""
    return checkpoint.with_suffix(SUFFIX)


def write_parts_of_checkpoint(folder: Path, trainer: Trainer) -> dict[str, str]:
    """Writes weights and optimizers' state where the processes have them in parts; called by all, before
    `write_checkpoint` by one: what has no checkpoint beside it is not there.

    Returns:
        The files' checksums by their names; none where each process has the whole.

    Raises:
        UserError: when the folder can't be written to.
        RankLostError: when a process has ended.
    """
    if not trainer.is_sharded:
        return {}
    return write_parts(parts_of(checkpoint_path(folder, trainer.step_count)), _state(trainer), trainer.ranks)


def write_checkpoint(
    folder: Path, trainer: Trainer, record: Mapping[str, Any], keep: int, parts: Mapping[str, str]
) -> Path:
    """Writes weights, optimizers' and random generators' state and the step; then drops all but the newest `keep`.

    Checkpoints of later steps go too: they are from before the run was taken back to an earlier one.

    Args:
        folder: where the run keeps its checkpoints.
        trainer: what to save.
        record: JSON-able facts to save beside.
        keep: how many checkpoints stay.
        parts: what `write_parts_of_checkpoint` gave.

    Raises:
        UserError: when the folder can't be written to.
    """
    path = checkpoint_path(folder, trainer.step_count)
    tensors = ({} if parts else _state(trainer)) | random_state(trainer.model.device)
    write_tensors(path, tensors, {**record, **({_PARTS: dict(parts)} if parts else {}), "step": trainer.step_count})
    found = checkpoints_in(folder)
    end = found.index(path) + 1
    for old in found[: max(end - keep, 0)] + found[end:]:
        remove(old)
    for left in folder.glob(f"step-*{SUFFIX}"):
        if not left.with_suffix(path.suffix).exists():
            remove_folder(left)
    return path


def _state(trainer: Trainer) -> dict[str, Tensor]:
    """Weights and optimizers' state."""
    tensors = _weights(trainer)
    for name, optimizer in trainer.optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer.{name}.{index}.{key}": value for key, value in state.items()})
    return tensors


def _weights(trainer: Trainer) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value for name, module in trainer.modules.items() for key, value in module.state_dict().items()
    }


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Of PyTorch's default generators, the CPU's and the device's."""
    state = {"random.cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[f"random.{device.type}"] = torch.get_device_module(device).get_rng_state(*_index(device))
    return state


def set_random_state(tensors: Mapping[str, Tensor], device: torch.device, step: int) -> None:
    """Puts PyTorch's default generators where `random_state` found them, or, where it did not, elsewhere."""
    torch.set_rng_state(tensors["random.cpu"])
    if device.type == "cpu":
        return
    generators = torch.get_device_module(device)
    state = tensors.get(f"random.{device.type}")
    if state is None:
        # From a checkpoint of another device: not the noise of the first steps again.
        generators.manual_seed(torch.initial_seed() + step)
    else:
        generators.set_rng_state(state, *_index(device))


def _index(device: torch.device) -> tuple[torch.device, ...]:
    # Apple's has one device, and functions that take none.
    return () if device.type == "mps" else (device,)


@contextmanager
def forked_generators(device: torch.device) -> Iterator[None]:
    """Leaves PyTorch's default generators, the CPU's and the device's, as they were before the block."""
    state = random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device, 0)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the record of a checkpoint.

    Raises:
        UserError: when the file is missing, damaged or no checkpoint.
    """
    tensors, record = read_tensors(path)
    step = record.get("step")
    if "random.cpu" not in tensors or not isinstance(step, int) or step < 0:
        raise UserError(f"{path}: the file is a model's, not a checkpoint's")
    for part in ("config", "data", "training"):
        if not isinstance(record.get(part), dict):
            raise UserError(f"{path}: the checkpoint is damaged: it lacks its {part}")
    if not Averages.fits(record.get("averages"), step):
        raise UserError(f"{path}: the checkpoint is damaged: its averages are none of {step} steps")
    if _PARTS in record:
        check_parts(parts_of(path), record[_PARTS])
    return tensors, record


def read_newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """The newest checkpoint of a folder, its tensors and its record.

    Raises:
        UserError: when there is none, or it is damaged; the message then names the newest that is intact.
    """
    found = checkpoints_in(folder)
    if not found:
        raise UserError(f"{folder}: holds no checkpoint to resume from: leave --resume out to begin")
    path = found[-1]
    try:
        return path, *read_checkpoint(path)
    except UserError as error:
        intact = next((older for older in found[-2::-1] if _is_intact(older)), None)
        raise UserError(str(error) + (f"; {intact} is intact" if intact else "; no other is intact")) from None


def _is_intact(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except UserError:
        return False
    return True


def restore_checkpoint(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any], trainer: Trainer) -> None:
    """Puts a trainer and the random generators into a checkpoint's state; called by all processes.

    Args:
        path, tensors, record: what `read_checkpoint` read, and where.
        trainer: as it was made.

    Raises:
        UserError: when the tensors do not fit the trainer's model and optimizers.
    """
    step = record["step"]
    try:
        if _PARTS in record:
            tensors = {**tensors, **read_parts(parts_of(path), _state_after(trainer, step), trainer.ranks)}
        elif trainer.is_sharded:
            like = _state_after(trainer, step)
            tensors = {name: laid_like(value, like[name]) if name in like else value for name, value in tensors.items()}
        for name, module in trainer.modules.items():
            module.load_state_dict(_module_state(_under(f"{name}.", tensors), module))
        for name, optimizer in trainer.optimizers.items():
            moved = step >= trainer.first_step(name)
            state = _optimizer_state(_under(f"optimizer.{name}.", tensors), optimizer, moved)
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        set_random_state(tensors, trainer.model.device, step)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: the checkpoint does not fit the model: {error}") from None
    trainer.step_count = step


def _state_after(trainer: Trainer, step: int) -> dict[str, Tensor]:
    """Tensors that lie as the trainer's state after so many steps."""
    like = _weights(trainer)
    for name, optimizer in trainer.optimizers.items():
        for index, parameter in enumerate(_moved(optimizer, step >= trainer.first_step(name))):
            of_adam = {"step": torch.zeros(()), "exp_avg": parameter.detach(), "exp_avg_sq": parameter.detach()}
            like.update({f"optimizer.{name}.{index}.{key}": value for key, value in of_adam.items()})
    return like


def _moved(optimizer: torch.optim.Optimizer, moved: bool) -> list[Tensor]:
    """The parameters that the optimizer has moved."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]] if moved else []


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _module_state(state: Mapping[str, Tensor], module: nn.Module) -> Mapping[str, Tensor]:
    for name, value in module.state_dict().items():
        if name in state and state[name].dtype != value.dtype:
            raise ValueError(f"{name}: expected {value.dtype}, got {state[name].dtype}")
    return state


def _optimizer_state(
    flat: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, moved: bool
) -> dict[int, dict[str, Tensor]]:
    """Adam's state of each parameter by its index; none before the optimizer has moved the parameters."""
    parameters = _moved(optimizer, moved)
    if len(flat) != len(_OF_ADAM) * len(parameters):
        raise ValueError(f"optimizer state: expected {len(_OF_ADAM) * len(parameters)} tensors, got {len(flat)}")
    state: dict[int, dict[str, Tensor]] = {}
    for index, parameter in enumerate(parameters):
        state[index] = {key: flat[f"{index}.{key}"] for key in _OF_ADAM}
        for key, value in state[index].items():
            shape, dtype = (torch.Size(), torch.float32) if key == "step" else (parameter.shape, parameter.dtype)
            if (value.shape, value.dtype) != (shape, dtype):
                raise ValueError(f"optimizer state {index}.{key}: expected {tuple(shape)}, {dtype}")
    return state
