"""Watches modules as they are called, forward and backward, without changing them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    _global_forward_hooks_with_kwargs,
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._pytree import tree_leaves

from aigc_fast.optimize import measurable
from aigc_fast.optimize.measure import Call

BACKWARD, OPTIMIZER = "backward", "optimizer"

_sequence_number = torch._C._autograd._get_sequence_nr


def now() -> float:
    """Seconds, when all that a GPU was given is done."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class Times:
    """A module's, in seconds, over all of its calls.

    Attributes:
        calls: of forward.
        forward: with its parts.
        own: of forward, without the modules that it calls.
        backward: with its parts.
        own_backward: of what it computes itself.
    """

    calls: int = 0
    forward: float = 0.0
    own: float = 0.0
    backward: float = 0.0
    own_backward: float = 0.0


@dataclass
class _Frame:
    """A call of a module that has not ended yet, or whose backward is to come.

    Attributes:
        above: the call that it is made in.
        begin: when it began.
        first: the number that the next node of the graph has as it begins; `last` as it ends.
        inner: seconds in modules that it calls.
        within: the calls that it made, in order.
    """

    module: nn.Module
    above: _Frame | None
    begin: float
    first: int
    last: int = 0
    inner: float = 0.0
    within: list[_Frame] = field(default_factory=list)
    span: Any = None


class Recorder:
    """Times every module's calls while it is entered.

    The modules that are called by no other are at the top: models, losses. Backward is told by hooks on the nodes of
    the graph that a top module's call has made, whose numbers say which module they are of.

    Args:
        keep_calls: whether to keep the arguments of layers that there are two ways to run, one of each signature.
        spans: whether each call is a span in the traces of torch.profiler.
        after_step: called after each step of an optimizer, or of a top module that has parameters where there is none.

    Attributes:
        times: of each module.
        names: of each, its top module's type first.
        kinds: the class of each, as it was called first.
        tops: modules at the top, in the order of their first calls.
        calls: what `keep_calls` asks for.
        phases: seconds in "backward" and "optimizer".
        steps: of optimizers.
    """

    def __init__(
        self, keep_calls: bool = True, spans: bool = False, after_step: Callable[[], None] = lambda: None
    ) -> None:
        self.times: dict[nn.Module, Times] = defaultdict(Times)
        self.names: dict[nn.Module, str] = {}
        self.kinds: dict[nn.Module, str] = {}
        self.tops: list[nn.Module] = []
        self.calls: dict[nn.Module, dict[Any, Call]] = {}
        self.phases: dict[str, float] = defaultdict(float)
        self.steps = 0
        self._keep_calls, self._spans, self._after_step = keep_calls, spans, after_step
        self._frame: _Frame | None = None
        self._begun: dict[str, float] = {}

    @contextmanager
    def watching(self) -> Iterator[Recorder]:
        """Records what is called in a `with` block."""
        with ExitStack() as stack:
            after = register_module_forward_hook(self._after, with_kwargs=True, always_call=True)
            # PyTorch's handle leaves that the hook took keyword arguments, and torch.compile takes it for a hook.
            stack.callback(_global_forward_hooks_with_kwargs.pop, after.id, None)
            for handle in (
                after,
                register_module_forward_pre_hook(self._before),
                register_optimizer_step_pre_hook(lambda *_: self._begin(OPTIMIZER)),
                register_optimizer_step_post_hook(lambda *_: self._end_of_step()),
            ):
                stack.callback(handle.remove)
            for name in ("backward", "grad"):
                before = getattr(torch.autograd, name)
                stack.callback(setattr, torch.autograd, name, before)
                setattr(torch.autograd, name, self._timed(before))
            yield self

    def restart(self) -> tuple[dict[nn.Module, Times], dict[str, float]]:
        """Begins anew, and gives the times and phases until now; modules that are known stay so."""
        found = dict(self.times), dict(self.phases)
        self.times.clear()
        self.phases.clear()
        self.steps = 0
        return found

    def _timed(self, run: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(run)
        def timed(*args: Any, **kwargs: Any) -> Any:
            # Checkpoints that compute again run backward inside of backward.
            if BACKWARD in self._begun:
                return run(*args, **kwargs)
            self._begin(BACKWARD)
            try:
                return run(*args, **kwargs)
            finally:
                self.phases[BACKWARD] += now() - self._begun.pop(BACKWARD)

        return timed

    def _begin(self, phase: str) -> None:
        self._begun[phase] = now()

    def _end_of_step(self) -> None:
        self.phases[OPTIMIZER] += now() - self._begun.pop(OPTIMIZER)
        self.steps += 1
        self._after_step()

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        # Inside of a compiled graph there are no modules to time.
        if torch.compiler.is_compiling():
            return
        above = self._frame
        if above is None:
            self._name(module)
        self._frame = _Frame(module, above, 0.0, _sequence_number())
        if above is not None:
            above.within.append(self._frame)
        if self._spans:
            self._frame.span = torch.profiler.record_function(self.name(module))
            self._frame.span.__enter__()
        self._frame.begin = now()

    def _after(self, module: nn.Module, args: tuple[Any, ...], *more: Any) -> None:
        if torch.compiler.is_compiling():
            return
        end, frame = now(), self._frame
        # After an exception PyTorch gives no keyword arguments.
        kwargs, output = more if len(more) > 1 else ({}, None)
        # Called although its call was not seen to begin, or an inner one was left by an exception.
        while frame is not None and frame.module is not module:
            frame = frame.above
        if frame is None:
            return
        if frame.span is not None:
            frame.span.__exit__(None, None, None)
        taken, found = end - frame.begin, self.times[module]
        found.calls += 1
        found.forward += taken
        found.own += taken - frame.inner
        frame.last = _sequence_number()
        self._frame = frame.above
        if module in self.calls:
            call = Call.of(args, kwargs)
            self.calls[module].setdefault(call.signature(), call)
        if frame.above is None:
            self._follow(frame, output)
        else:
            frame.above.inner += now() - frame.begin

    def _name(self, top: nn.Module) -> None:
        if top in self.names:
            return
        self.tops.append(top)
        kind = type(top).__name__
        for name, module in top.named_modules():
            self.names.setdefault(module, f"{kind}.{name}" if name else kind)
            self.kinds.setdefault(module, type(module).__name__)
        if self._keep_calls:
            for module in measurable(top):
                self.calls.setdefault(module, {})

    def name(self, module: nn.Module) -> str:
        """The module's name; of one that its top module got later, its type."""
        return self.names.get(module, type(module).__name__)

    def _follow(self, frame: _Frame, output: Any) -> None:
        """Has the nodes that a top module's call has made told of when they run."""
        waiting = [
            leaf.grad_fn for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.grad_fn is not None
        ]
        seen = set(waiting)
        while waiting:
            node = waiting.pop()
            number = node._sequence_nr()
            if frame.first <= number < frame.last:
                self._watch(node, _innermost(frame, number))
            elif number < frame.first:
                continue
            new = [following for following, _ in node.next_functions if following is not None and following not in seen]
            seen.update(new)
            waiting += new

    def _watch(self, node: Any, frame: _Frame) -> None:
        begun: list[float] = []

        def before(*_: Any) -> None:
            begun.append(now())

        def after(*_: Any) -> None:
            taken = now() - begun.pop()
            self.times[frame.module].own_backward += taken
            at: _Frame | None = frame
            while at is not None:
                self.times[at.module].backward += taken
                at = at.above

        node.register_prehook(before)
        node.register_hook(after)


def _innermost(frame: _Frame, number: int) -> _Frame:
    for inner in frame.within:
        if inner.first <= number < inner.last:
            return _innermost(inner, number)
    return frame
