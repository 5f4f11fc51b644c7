"""Tensors that would be the host's, told apart from those of a card where both are the CPU's, as in the emulation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

# What takes tensors of both: of indices the host's may be those of a card's tensor.
_INDEXES = "__getitem__", "__setitem__", "index_put_"
_COPIES = "copy_", "to"


class OnCard(TorchFunctionMode):
    """A block in which a tensor that is made without a device is the host's, and all that was there before a card's:
    operations on both fail, as they do where there is a card. A call of Python's own ops is looked at as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self._of_host = WeakIdKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name = getattr(func, "__name__", "")
        self._check(resolve_name(func) or name, name, given)
        found = func(*args, **kwargs)
        if name in ("cpu", "to") and found is given[0]:  # which would not be the same one
            found = found.clone()
        is_hosts = self._is_hosts(name, given, kwargs.get("device"))
        for made in (leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)):
            if is_hosts:
                self._of_host[made] = True
            else:
                self._of_host.pop(made, None)
        return found

    def _check(self, told: str, name: str, given: Sequence[Tensor]) -> None:
        hosts = [tensor for tensor in given if tensor in self._of_host]
        if not hosts or name in _COPIES or (name in _INDEXES and given[0] not in self._of_host):
            return
        # A number of the host's may be a card's operand.
        if len(hosts) < len(given) and any(tensor.dim() for tensor in hosts):
            shapes = [(*tensor.shape, "host" if tensor in self._of_host else "card") for tensor in given]
            raise RuntimeError(f"{told}: tensors of the host and of a card: {shapes}")

    def _is_hosts(self, name: str, given: Sequence[Tensor], device: torch.device | str | None) -> bool:
        if name == "cpu":
            return True
        if device is not None or name == "to":
            return False
        return all(tensor in self._of_host for tensor in (given[:1] if name in (*_COPIES, *_INDEXES) else given))
