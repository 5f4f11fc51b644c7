"""The models by name, and models in files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from aigc_fast.errors import UserError
from aigc_fast.models.base import Model
from aigc_fast.models.storage import read_tensors, write_tensors

MODELS: dict[str, type[Model]] = {}
"""Every model class by the name that files and the command line use; `register` adds to it."""

_WEIGHTS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def register(*models: type[Model]) -> None:
    """Makes model classes known by their names, so that `create`, `load` and the command line find them."""
    MODELS.update({model.name: model for model in models})


def create(name: str, **config: Any) -> Model:
    """A new model.

    Args:
        name: a key of `MODELS`.
        **config: the constructor's arguments.

    Raises:
        UserError: for an unknown name, or arguments that the model does not take.
    """
    if name not in MODELS:
        raise UserError(f"model {name!r} is unknown: expected one of {', '.join(MODELS)}")
    try:
        return MODELS[name](**config)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        # What follows PyTorch's first line is of its own code.
        raise UserError(f"{name} cannot be built: {str(error).partition(chr(10))[0]}") from None


def describe(model: Model) -> dict[str, Any]:
    """What it takes to build the model again: its registry name and its configuration."""
    return {"model": model.name, "config": model.config}


def save(model: Model, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None) -> None:
    """Writes a model to a safetensors file, whole or not at all; `load` reads it.

    Args:
        model: any model of `MODELS`.
        path: the file.
        metadata: JSON-able facts kept beside the model's name, configuration and the package's version, such as the
            seed and the training's settings; `load` gives them back as the model's `metadata`.

    Raises:
        UserError: when the file can't be written.
    """
    write_tensors(path, model.state_dict(), {**(metadata or {}), **describe(model)})


def load(path: str | os.PathLike[str]) -> Model:
    """The model that `save` wrote, in eval mode on the CPU; its `metadata` holds what was saved beside it.

    Raises:
        UserError: when the file is missing, damaged, not a model's or of another shape than its configuration says.
    """
    tensors, metadata = read_tensors(path)
    try:
        # On the meta device a hostile size in the configuration costs no memory.
        with torch.device("meta"):
            model = create(metadata.get("model"), **metadata.get("config", {}))
        buffers = {name: buffer.dtype for name, buffer in model.named_buffers()}
        model.load_state_dict(tensors, assign=True)
        _check_dtypes(model, buffers)
    except (UserError, RuntimeError, TypeError) as error:
        raise UserError(f"{path}: the file does not hold a model: {error}") from None
    model.metadata = metadata
    return model.eval()


def _check_dtypes(model: Model, buffers: Mapping[str, torch.dtype]) -> None:
    if model.dtype not in _WEIGHTS:
        raise TypeError(f"weights are {model.dtype}: expected {', '.join(map(str, _WEIGHTS))}")
    for name, parameter in model.named_parameters():
        if parameter.dtype != model.dtype:
            raise TypeError(f"{name} is {parameter.dtype}: expected {model.dtype}, as other weights")
    for name, buffer in model.named_buffers():
        if buffer.dtype != buffers[name] and not (buffers[name].is_floating_point and buffer.dtype == model.dtype):
            raise TypeError(f"{name} is {buffer.dtype}: expected {buffers[name]}")
