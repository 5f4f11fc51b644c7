"""The registry of the backends that can run a call, and the reasons why others can't."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from aigc_fast.environment import setting
from aigc_fast.runtime import native, tuning

BACKEND_VARIABLE = "AIGC_FAST_BACKEND"
NAMES = ("auto", "reference", "cpu", "cuda", "triton")
MOST_REMEMBERED = 4096
NOT_THERE = "not there yet for this op"

is_compiling = torch.compiler.is_compiling
log = logging.getLogger("aigc_fast")

Reason = str | None


class Runner(NamedTuple):
    """What runs a call.

    Attributes:
        run: takes the op's arguments; nothing can be differentiated through it.
        pytorchs: the same in PyTorch, for calls that need a gradient and are better left to PyTorch as a whole, or
            None.
    """

    run: Callable[..., Any]
    pytorchs: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Backend:
    """One way to run an op.

    Attributes:
        name: "reference", "cpu", "cuda" or "triton".
        run: the implementation; takes the op's arguments.
        unsupported: returns why it cannot run these arguments, or None when it can.
        slower: returns why automatic choice passes it over although it could run, or None.
        leave: returns why automatic choice leaves a call that needs a gradient to PyTorch, with all its gradients, or
            None.
        prepare: returns what runs every call of the same signature, with all that follows from the signature worked
            out; None where `run` is as good.
        pytorchs: None; together with `run` it lets this stand in for a Runner that was not prepared.
    """

    name: str
    run: Callable[..., Any]
    unsupported: Callable[..., Reason]
    slower: Callable[..., Reason]
    leave: Callable[..., Reason]
    prepare: Callable[..., Runner] | None = None
    pytorchs: None = None


class BackendError(RuntimeError):
    """A forced backend cannot run the call; the message holds every backend's reason."""


_DEFAULT = setting(BACKEND_VARIABLE, NAMES, "auto")
forced_backend: ContextVar[str] = ContextVar("aigc_fast_backend", default=_DEFAULT)
_told: set[tuple[str, str]] = set()


# The backend in force: "auto", or the one that `backend` or AIGC_FAST_BACKEND forces. A bound method saves a frame.
current = forced_backend.get


# In place of the backend in force while `explain` asks: no call takes a shortcut, and none runs.
_ASKING = {name: f"{name}, asked" for name in NAMES}


class Asked(BaseException):
    """Leaves a call that `explain` makes, where it would run.

    Attributes:
        op: the op's name.
        args: its arguments; None where the call would not be the op's.
        reason: why it would be PyTorch's own.
    """

    def __init__(self, op: str, args_of_op: tuple[Any, ...] | None = None, reason: Reason = None) -> None:
        self.op, self.args_of_op, self.reason = op, args_of_op, reason


def asked(call: Callable[[], Any]) -> Asked | None:
    """How far a call of a public function comes; None where it gives its result without an op."""
    token = forced_backend.set(_ASKING[current()])
    try:
        call()
    except Asked as found:
        return found
    finally:
        forced_backend.reset(token)
    return None


def is_automatic() -> bool:
    """Whether no backend is forced."""
    return current() in ("auto", _ASKING["auto"])


def leave_to_pytorch(op: str, reason: str) -> None:
    """Says that a call is not the op's but PyTorch's own, before it is made."""
    # Dynamo cannot read a ContextVar.
    if not is_compiling() and current() not in NAMES:
        raise Asked(op, reason=reason)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Forces a backend inside a `with` block: it runs, or raises `BackendError` with every backend's reason.

    It also applies to the derivatives of what the block computes, wherever and on whatever thread they run. The graphs
    of `torch.compile` and `torch.export` obey the block that they run in, forward and backward each its own.

    Args:
        name: "auto" (the default choice), "reference", "cpu", "cuda" or "triton".

    Raises:
        ValueError: for an unknown name.

    Example:
        >>> with aigc_fast.backend("reference"):
        ...     y = aigc_fast.functional.conv_transpose2d(x, weight)
    """
    if name not in NAMES:
        raise ValueError(f"name={name!r}: expected one of {', '.join(NAMES)}")
    token = forced_backend.set(name)
    try:
        yield
    finally:
        forced_backend.reset(token)


def _no_reason(*args: Any) -> Reason:
    return None


class Choice:
    """The backends of one op, best first, and the choice between them.

    Args:
        op: the op's name.
        signature: everything about a call's arguments that the reasons and preparations of the op's backends depend on;
            calls of the same signature are decided once. None where deciding costs less than looking up.
    """

    def __init__(self, op: str, signature: Callable[..., Hashable] | None = None) -> None:
        self.op = op
        self._signature = signature
        self._backends: dict[str, Backend] = {}
        self._memo: dict[Hashable, Any] = {}
        # What was remembered by this key, or None.
        self.remembered = self._memo.get

    def register(
        self,
        name: str,
        run: Callable[..., Any],
        unsupported: Callable[..., Reason] = _no_reason,
        slower: Callable[..., Reason] = _no_reason,
        prepare: Callable[..., Runner] | None = None,
        leave: Callable[..., Reason] = _no_reason,
    ) -> None:
        """Adds a backend; those registered first are preferred, and all to the reference."""
        self._backends[name] = Backend(name, run, unsupported, slower, leave, prepare)
        if "reference" in self._backends:
            self._backends["reference"] = self._backends.pop("reference")

    def runner(self, args: tuple[Any, ...]) -> Runner | Backend:
        """What runs these arguments: `pick` and `Backend.prepare`, remembered by signature.

        Raises:
            BackendError: when a forced backend cannot run them.
        """
        if self._signature is None:
            return self.pick(args)
        forced = current()
        key = (forced, self._signature(*args))
        found = self.remembered(key)
        if found is None:
            pytorchs = self._measure(args) if forced == "auto" and tuning.is_on() else None
            chosen = self.pick(args)
            found = chosen.prepare(*args) if chosen.prepare else chosen
            if forced not in ("auto", "reference"):
                found = Runner(found.run)
            self.remember(key, found)
            return pytorchs or found
        return found

    def _measure(self, args: tuple[Any, ...]) -> Runner | None:
        """Measures these arguments by a native backend and by PyTorch; what runs the latter, where that was done."""
        ours = next((one for one in self._backends.values() if one.unsupported(*args) is None), None)
        if ours is None or ours.name == "reference":
            return None
        runners = [one.prepare(*args) for one in (ours, self._backends["reference"])]
        _, now = tuning.measured(self.op, args, *(runner.run for runner in runners))
        return runners[1] if now else None

    def _slower(self, candidate: Backend, args: tuple[Any, ...]) -> Reason:
        """Why automatic choice passes over a backend that could run: by measurement, else by the limits."""
        measured = None if candidate.name == "reference" else self.measured(args)
        if measured is not None:
            return None if measured.is_ours else str(measured)
        return candidate.slower(*args)

    def measured(self, args: tuple[Any, ...]) -> tuning.Measured | None:
        """What was measured of these arguments, of an op whose calls are."""
        return None if self._signature is None else tuning.found(self.op, args)

    def remember(self, key: Hashable, found: Any) -> None:
        """Keeps what was found out about calls; everything is dropped when there is too much of it."""
        if len(self._memo) >= MOST_REMEMBERED:
            self.forget()
        self._memo[key] = found

    def forget(self) -> None:
        """Drops all that was remembered, so that calls are decided again."""
        self._memo.clear()

    def pick(self, args: tuple[Any, ...]) -> Backend:
        """The backend for these arguments.

        Raises:
            BackendError: when a forced backend cannot run them.
        """
        forced = current()
        if forced != "auto":
            if forced not in NAMES:
                raise Asked(self.op, args)
            return self._pick_forced(forced, args)
        for candidate in self._backends.values():
            if candidate.unsupported(*args) is None and self._slower(candidate, args) is None:
                if candidate.name not in native.REASONS:
                    self._tell_of_missing(args)
                return candidate
        raise BackendError(f"{self.op}: {self._reasons_text(args)}")

    def _tell_of_missing(self, args: tuple[Any, ...]) -> None:
        """Says so where the native library of the arguments' device is not there, and another backend runs for it."""
        devices = (arg.device.type for arg in args if hasattr(arg, "device"))
        library = next(devices, "cpu")
        if library in self._backends and library in native.REASONS:
            missing = native.REASONS[library]()
            if missing is not None:
                self.fall_back(library, missing)

    def _pick_forced(self, name: str, args: tuple[Any, ...]) -> Backend:
        wanted = self._backends.get(name)
        if wanted is not None and wanted.unsupported(*args) is None:
            return wanted
        raise BackendError(f"{self.op}: backend {name!r} is forced and cannot run this: {self._reasons_text(args)}")

    def reasons(self, args: tuple[Any, ...], gradients: bool = False) -> dict[str, Reason]:
        """For every backend: None if automatic choice could take it, else why not.

        Args:
            args: the op's.
            gradients: whether the call's gradients are wanted.
        """
        found: dict[str, Reason] = {}
        for name in NAMES[1:]:
            candidate = self._backends.get(name)
            if candidate is None:
                found[name] = NOT_THERE
            else:
                leave = candidate.leave if gradients else _no_reason
                found[name] = candidate.unsupported(*args) or self._slower(candidate, args) or leave(*args)
        return found

    def _reasons_text(self, args: tuple[Any, ...]) -> str:
        return "; ".join(f"{name}: {reason or 'can run'}" for name, reason in self.reasons(args).items())

    def fall_back(self, failed: str, reason: str) -> None:
        """Says once, through logging, that automatic choice left a backend that was expected to run."""
        if (self.op, failed) not in _told:
            _told.add((self.op, failed))
            log.warning("%s: backend %s is not used: %s", self.op, failed, reason)


@dataclass(frozen=True)
class Explanation:
    """What `explain` found.

    Attributes:
        op: the op's name.
        chosen: the backend that would run.
        reasons: for every backend, None when it can run, else why not.
        detail: which kernel the chosen backend would take, when the op tells.
    """

    op: str
    chosen: str | None
    reasons: dict[str, Reason]
    detail: str | None = None

    def __str__(self) -> str:
        lines = [
            f"{self.op}: {self.chosen or 'no backend can run this'}" + (f" ({self.detail})" if self.detail else "")
        ]
        lines += [f"  {name:10s}{reason or 'can run'}" for name, reason in self.reasons.items()]
        return "\n".join(lines)
