"""Measured choice: while tuning, the first call of a signature runs both ways, and the faster one is kept, in a file.

As cuDNN's benchmark mode and FFTW's wisdom do it. What was measured holds for a processor, an instruction-set level, a
number of threads, a version of torch and one of this package, each of which has a file of its own, and comes before the
limits that the package brings.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aigc_fast.environment import setting
from aigc_fast.errors import UserError
from aigc_fast.files import atomic, remove
from aigc_fast.runtime import native
from aigc_fast.runtime.machine import description, device_name
from aigc_fast.runtime.precision import precision
from aigc_fast.runtime.timing import interleaved

TUNE_VARIABLE = "AIGC_FAST_TUNE"
FOLDER_VARIABLE = "AIGC_FAST_CACHE"
# The budget for both ways of one signature together.
_SECONDS = 0.1

log = logging.getLogger("aigc_fast")

_always = setting(TUNE_VARIABLE, ("0", "1"), "0") == "1"
_tuning: ContextVar[bool] = ContextVar("aigc_fast_tuning", default=_always)
# Keyed by folder, level and number of threads.
_tables: dict[tuple[Path, str | None, int], dict[str, Measured]] = {}
_unwritable: set[Path] = set()


class Measured(NamedTuple):
    """What a call took, in milliseconds, median.

    Attributes:
        ours: by this package's kernels.
        pytorchs: by PyTorch's.
    """

    ours: float
    pytorchs: float

    @property
    def is_ours(self) -> bool:
        """Whether ours is as fast."""
        return self.ours <= self.pytorchs

    def __str__(self) -> str:
        return f"measured here: ours {self.ours:.3g} ms, PyTorch's {self.pytorchs:.3g} ms"


def folder() -> Path:
    """Where measurements are kept: AIGC_FAST_CACHE, or aigc_fast in the user's cache folder."""
    own = os.environ.get(FOLDER_VARIABLE)
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aigc_fast"


def path() -> Path:
    """The file for this machine, these versions and the number of threads in force."""
    told = json.dumps(description(), sort_keys=True)
    return folder() / f"tuned-{hashlib.sha256(told.encode()).hexdigest()[:16]}.json"


def _ops_in_files() -> set[str]:
    """The ops that files name, be they this machine's or not."""
    try:
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in folder().glob("tuned-*.json")]
    except (OSError, RuntimeError):  # no home, or one that cannot be read
        return set()
    return {op for text in texts for op in re.findall(r'"(\w+)\(', text)}


_of_all = _always
_ops = _ops_in_files()


def knows(op: str) -> bool:
    """Whether anything may be known of the op's calls: one that takes a shortcut checks only this."""
    return _of_all or op in _ops


@contextmanager
def tuning() -> Iterator[None]:
    """Measures inside a `with` block: the first call of a signature runs by this package's kernels and by PyTorch's,
    and the faster way is kept, for this process and, in a small file in the user's cache folder, for later ones.

    It covers convolutions, transposed or not, with their gradients, and attention without, since PyTorch's has no
    second derivatives. The call that measures returns PyTorch's result. Nothing is measured with a forced backend, in
    deterministic mode (`torch.use_deterministic_algorithms`), while a CUDA graph is captured, or while gradients are
    transformed. `AIGC_FAST_TUNE=1` does the same for a whole process; `AIGC_FAST_CACHE` names another folder.

    Example:
        >>> with aigc_fast.tuning():
        ...     model(x)
    """
    global _of_all
    _of_all = True
    token = _tuning.set(True)
    try:
        yield
    finally:
        _tuning.reset(token)


def is_on() -> bool:
    """Whether calls are measured."""
    return _tuning.get()


def found(op: str, args: Sequence[Any]) -> Measured | None:
    """What was measured for such a call, here or in an earlier process."""
    return _table().get(_key(op, args)) if knows(op) else None


def measured(
    op: str, args: Sequence[Any], ours: Callable[..., Any], pytorchs: Callable[..., Any]
) -> tuple[Measured | None, bool]:
    """What was measured for such a call, or is now.

    Args:
        op: its name.
        args: all that its cost depends on, given to both ways.
        ours: computes it by a kernel of this package.
        pytorchs: computes it by PyTorch's.

    Returns:
        The times, None where there are none and none may be taken; and whether they were taken now.
    """
    known = found(op, args)
    if known is not None or not _may_measure(args):
        return known, False
    # Calls made while measuring are not measured themselves.
    token = _tuning.set(False)
    try:
        ways = {name: partial(_run, way, args) for name, way in (("ours", ours), ("pytorchs", pytorchs))}
        times = interleaved(ways, _SECONDS)
    finally:
        _tuning.reset(token)
    result = Measured(times["ours"].median, times["pytorchs"].median)
    _record(_key(op, args), result)
    return result, True


def _may_measure(args: Sequence[Any]) -> bool:
    if not is_on() or torch.are_deterministic_algorithms_enabled():
        return False
    on_cuda = any(isinstance(arg, Tensor) and arg.is_cuda for arg in args)
    return not (on_cuda and torch.cuda.is_current_stream_capturing())


def _is_trained(arg: Any) -> bool:
    in_backward = torch._C._current_graph_task_id() != -1
    return isinstance(arg, Tensor) and arg.requires_grad and (torch.is_grad_enabled() or in_backward)


def _run(way: Callable[..., Any], args: Sequence[Any]) -> None:
    """One call, with its gradients where they are wanted; weights in training are new to each, and packed again."""
    given = [_as_new(arg) if _is_trained(arg) else arg for arg in args]
    output = way(*given)
    wanted = [arg for arg in given if _is_trained(arg)]
    if isinstance(output, Tensor) and output.requires_grad and wanted:
        torch.autograd.grad(output, wanted, torch.ones_like(output), allow_unused=True)


def _as_new(tensor: Tensor) -> Tensor:
    new = tensor.detach()
    return (new.clone() if isinstance(tensor, torch.nn.Parameter) else new).requires_grad_()


def _key(op: str, args: Sequence[Any]) -> str:
    return f"{op}({', '.join(_described(arg) for arg in args)}) {precision()}"


def _described(arg: Any) -> str:
    if isinstance(arg, tuple):
        return str(tuple(arg))
    if not isinstance(arg, Tensor):
        return str(arg)
    dtype, device = str(arg.dtype).removeprefix("torch."), "" if arg.is_cpu else f" on {device_name(arg.device)}"
    strides = "" if arg.is_contiguous() else f" by {list(arg.stride())}"
    return f"{dtype}{list(arg.shape)}{strides}{device}{', trained' if _is_trained(arg) else ''}"


def _table() -> dict[str, Measured]:
    key = folder(), native.level(), torch.get_num_threads()
    known = _tables.get(key)
    if known is None:
        known = _tables[key] = _read(path())
    return known


def _read(file: Path) -> dict[str, Measured]:
    """What a file holds; nothing, said in a line, where it is damaged or another machine's."""
    try:
        content = json.loads(file.read_bytes())
        if content["machine"] != description():
            raise ValueError("it is another machine's")
        return {key: Measured(float(ours), float(pytorchs)) for key, (ours, pytorchs) in content["measured"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.warning("%s: measurements are ignored: %s: %s", file, type(error).__name__, error)
        return {}


def _record(key: str, result: Measured) -> None:
    table, file = _table(), path()
    # Keeps what other processes have written meanwhile.
    table.update({name: value for name, value in _read(file).items() if name not in table})
    table[key] = result
    _ops.add(key.partition("(")[0])
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic(file) as temporary:
            temporary.write_text(_text(table), encoding="utf-8")
    except (OSError, UserError) as error:
        if file not in _unwritable:
            _unwritable.add(file)
            log.warning("%s: measurements are not kept: %s", file, error)


def _text(table: Mapping[str, Measured]) -> str:
    return json.dumps(
        {"machine": description(), "measured": {key: list(value) for key, value in table.items()}}, indent=1
    )


def measurements() -> dict[str, Measured]:
    """All that was measured on this machine with the number of threads in force, by call."""
    return dict(_table())


def forget() -> None:
    """Drops what was measured on this machine with the number of threads in force, its file too.

    Raises:
        UserError: when the file can't be removed.
    """
    remove(path())
    _tables.pop((folder(), native.level(), torch.get_num_threads()), None)
