"""Engines that live as long as the modules do whose weights they have packed."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from aigc_fast.ops.decode.choice import backend_on
from aigc_fast.ops.decode.cuda import CudaEngine
from aigc_fast.ops.decode.engine import Engine
from aigc_fast.ops.decode.spec import Spec
from aigc_fast.runtime.locks import lock

_ENGINES = {engine.backend: engine for engine in (Engine, CudaEngine)}
_engines: WeakKeyDictionary[nn.Module, Engine] = WeakKeyDictionary()
_packing = lock()


def engine_of(
    module: nn.Module, spec: Spec, weights: str, steps: int, release: Callable[[Tensor], None] | None = None
) -> Engine:
    """The module's engine, packed again where its weights changed.

    Args:
        module: whose it is.
        spec: of the module as it is now.
        weights: "fp32", "bf16", "int8" or "int4".
        steps: that are about to be made.
        release: see `Engine`.

    Raises:
        Refused: where no engine may run.
    """
    kind = _ENGINES[backend_on(spec.embedding.device, weights)]
    with _packing:
        engine = _engines.get(module)
        if type(engine) is not kind or not engine.is_current(spec, weights, steps):
            # The old one's memory is freed first.
            del engine
            _engines.pop(module, None)
            engine = _engines[module] = kind(spec, weights, release)
        return engine


def kept_bytes(module: nn.Module) -> int:
    """Memory that the module's packed weights take now."""
    return _engines[module].nbytes if module in _engines else 0


def forget(module: nn.Module) -> None:
    """Gives back the memory of the module's engine."""
    _engines.pop(module, None)
