"""Models whose weights lie in parts in the processes that train them, and checkpoints in as many parts.

The parts are FSDP2's (`torch.distributed.fsdp.fully_shard`; Zhao et al., "PyTorch FSDP: experiences on scaling fully
sharded data parallel", 2023), written by `torch.distributed.checkpoint` as safetensors: nothing in them is pickled.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn

from aigc_fast.errors import UserError
from aigc_fast.files import checksum, make_folder, remove_folder
from aigc_fast.runtime.ranks import RankLostError, Ranks

SUFFIX = ".parts"
_UNREADABLE = SafetensorError, OSError, AssertionError, LookupError, TypeError, AttributeError
_FILE = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")


def can_write_parts() -> bool:
    """Whether this PyTorch writes checkpoints in parts without pickling anything."""
    if not dist.is_available():
        return False
    import torch.distributed.checkpoint as checkpoints

    return hasattr(checkpoints, "HuggingFaceStorageReader")


def share_out(model: nn.Module, ranks: Ranks) -> None:
    """Leaves this process its part of each weight; for a step, the layers that lists hold are whole one at a time.

    Args:
        model: the same in all processes.
        ranks: the processes.

    Raises:
        UserError: if this PyTorch can't write checkpoints of it.
    """
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import init_device_mesh

    if not can_write_parts():
        raise UserError(f"sharded: torch {torch.__version__} can't write its checkpoints: pip install -U torch")
    mesh = init_device_mesh(next(model.parameters()).device.type, (ranks.count,))
    layers = chain(*(module for module in model.modules() if isinstance(module, nn.ModuleList)))
    for module in (*layers, model):
        fully_shard(module, mesh=mesh)


def is_part(tensor: Tensor) -> bool:
    """Whether a tensor lies in parts in several processes."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def own(tensor: Tensor) -> Tensor:
    """What this process has of a tensor."""
    return tensor.to_local() if is_part(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process has a part; called by all of them."""
    return tensor.full_tensor() if is_part(tensor) else tensor


def laid_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as another one lies, called by all processes."""
    if not is_part(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def write_parts(place: Path, state: Mapping[str, Tensor], ranks: Ranks) -> dict[str, str]:
    """Writes a state into a folder, each process what it has; called by all of them.

    Args:
        place: the folder, which is made anew.
        state: tensors by name.
        ranks: the processes.

    Returns:
        The files' checksums by their names.

    Raises:
        UserError: when one of them can't write.
        RankLostError: when one of them has ended.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save

    ranks.from_first(lambda: _made_anew(place))
    with _failures_told(place):
        save(_apart(state), storage_writer=HuggingFaceStorageWriter(str(place), save_distributed=True))
    written = place.glob(f"shard-{ranks.index + 1:05d}-*")
    return dict(chain(*(found.items() for found in ranks.from_all({path.name: checksum(path) for path in written}))))


def _made_anew(place: Path) -> None:
    remove_folder(place)
    make_folder(place)


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, of several in one memory, which safetensors does not take, all but one copied."""
    kept, taken = {}, set()
    for name, tensor in state.items():
        start = own(tensor).untyped_storage().data_ptr()
        kept[name] = tensor.clone() if start in taken else tensor
        taken.add(start)
    return kept


@contextmanager
def _failures_told(place: Path) -> Iterator[None]:
    from torch.distributed.checkpoint import CheckpointException

    try:
        yield
    except CheckpointException as error:
        found = next((each for each, _ in error.failures.values() if isinstance(each, OSError)), None)
        if found is None:
            raise RankLostError(str(error).partition("\n")[0]) from error
        raise UserError(f"cannot write {place}: {found.strerror or found}") from None
    except RuntimeError as error:
        raise RankLostError(str(error).partition("\n")[0]) from error


def read_parts(place: Path, like: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """A state that `write_parts` wrote, as these tensors lie, however many processes wrote it; called by all.

    Raises:
        ValueError: when the files are no such state's.
    """
    from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, load

    found = {name: torch.zeros_like(tensor) for name, tensor in like.items()}
    try:
        reader = HuggingFaceStorageReader(str(place))
        _check_fits(reader.read_metadata().state_dict_metadata, like)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            load(found, storage_reader=reader, no_dist=ranks.count == 1)
    except (CheckpointException, *_UNREADABLE) as error:
        raise ValueError(str(error).partition("\n")[0]) from None
    return found


def _check_fits(there: Mapping[str, Any], like: Mapping[str, Tensor]) -> None:
    if there.keys() != like.keys():
        raise ValueError(f"expected {len(like)} tensors, got {len(there)}, or others")
    for name, tensor in like.items():
        shape, dtype = tuple(there[name].size), there[name].properties.dtype
        if (shape, dtype) != (tuple(tensor.shape), tensor.dtype):
            raise ValueError(f"{name}: expected {tuple(tensor.shape)}, {tensor.dtype}, got {shape}, {dtype}")


def check_parts(place: Path, checksums: Any) -> None:
    """Checks that a folder holds what `write_parts` left there.

    Args:
        place: the folder.
        checksums: what a file says that these are.

    Raises:
        UserError: when it does not.
    """
    if not isinstance(checksums, dict) or not checksums or not all(map(_FILE.fullmatch, checksums)):
        raise UserError(f"{place}: damaged: its checkpoint lacks the names of its files")
    there = {path.name: path for path in place.glob("*")}
    for name in sorted(checksums.keys() | there.keys()):
        if name not in there:
            raise UserError(f"{place / name}: no such file")
        if name not in checksums:
            raise UserError(f"{place / name}: is not of the checkpoint")
        try:
            matches = checksum(there[name]) == checksums[name]
        except OSError as error:
            raise UserError(f"{place / name}: cannot be read: {error.strerror}") from None
        if not matches:
            raise UserError(f"{place / name}: the file is damaged: its checksum does not match")


def holds_parts(place: Path) -> bool:
    """Whether a folder holds parts alone, or nothing."""
    return place.is_dir() and all(_FILE.fullmatch(path.name) for path in place.iterdir())
