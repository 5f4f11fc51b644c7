"""One op's pieces become a torch.library op, an autograd.Function and an eager shortcut."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._decomp import register_decomposition
from torch.autograd import forward_ad

from aigc_fast.runtime import native
from aigc_fast.runtime.autocast import any_autocast
from aigc_fast.runtime.backends import (
    BackendError,
    Choice,
    Explanation,
    Reason,
    current,
    forced_backend,
    leave_to_pytorch,
)
from aigc_fast.runtime.flops import count
from aigc_fast.runtime.memory import LEAST_REUSED, placed
from aigc_fast.runtime.native import NEGATED, PLAIN, UNKNOWN, WANTS_GRADIENT
from aigc_fast.runtime.precision import own_precision
from aigc_fast.runtime.recording import is_for_onnx
from aigc_fast.runtime.sharding import Sharding, run_replicated

LIBRARY = torch.library.Library("aigc_fast", "DEF")

is_compiling = torch.compiler.is_compiling
is_traced_by_dynamo = torch.compiler.is_dynamo_compiling
_dispatch_modes = torch._C._len_torch_dispatch_stack
functorch_level = torch._C._functorch.peek_interpreter_stack
function_modes = torch._C._len_torch_function_stack
_tracing_state = torch._C._get_tracing_state
_grad_enabled = torch.is_grad_enabled
_own_precision = own_precision.get
_is_batched = torch._C._functorch.is_legacy_batchedtensor

_operators: dict[str, Operator] = {}
_LISTS = tuple, list


def operators() -> dict[str, Operator]:
    """Every op of the package by name."""
    return dict(_operators)


def decompose_for_onnx(
    overload: torch._ops.OpOverload, decomposition: Callable[..., Any], fake: Callable[..., Any]
) -> None:
    """Says what an export to ONNX makes of an op in a program that was exported by `torch.export` before."""
    register_decomposition(overload)(decomposition)
    # Fake tensors of symbolic sizes would take it for the op's fake as well, if they knew of none in this table.
    register_decomposition(overload, type="meta")(fake)


def is_watched() -> bool:
    """Whether the registered op must appear: in compile, export, tracing, or to a dispatch or function mode."""
    return bool(is_compiling() or _dispatch_modes() or function_modes() or _tracing_state() is not None)


def plain_eager() -> bool:
    """Whether nothing traces, transforms or watches: no compile, export, dispatch mode, functorch or forward AD."""
    # `is_watched` is written out: every small call asks, and a Python call within costs as much as two checks.
    return not (
        is_compiling()
        or _dispatch_modes()
        or function_modes()
        or _tracing_state() is not None
        or functorch_level() is not None
        or forward_ad._current_level >= 0
    )


def kind_of_call(*tensors: Tensor | None, lent: bool = True) -> int:
    """The greatest kind of these tensors (see `native.kind`) where a kernel may take them at once: with no transform,
    autocast or forced backend, and, if `lent`, a torch that lends tensors; else UNKNOWN."""
    if not ((native.takes_tensors or not lent) and plain_eager()) or any_autocast() or current() != "auto":
        return UNKNOWN
    return native.kind(_grad_enabled(), *tensors)


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether a kernel may take these tensors at once: no gradient, transform, autocast, subclass or forced backend."""
    return kind_of_call(*tensors) == PLAIN


class InForce(NamedTuple):
    """What a call obeys besides its arguments, and its derivatives after it, on whatever thread they run.

    Attributes:
        backend: as `aigc_fast.backend` names it.
        precision: of float32, a level of PyTorch's switch; None leaves it to the switch.
    """

    backend: str
    precision: str | None

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """What the function gives with these in force on this thread; a graph's ops ask when they run."""
        if is_traced_by_dynamo():
            return function(*args)
        of_backend, of_precision = forced_backend.set(self.backend), own_precision.set(self.precision)
        try:
            return function(*args)
        finally:
            own_precision.reset(of_precision)
            forced_backend.reset(of_backend)


NOTHING_FORCED = InForce("auto", None)


def in_force(precision: str | None = None) -> InForce:
    """What is in force on this thread, with another precision where one is given."""
    backend, precision = current(), precision or _own_precision()
    return NOTHING_FORCED if backend == "auto" and precision is None else InForce(backend, precision)


def _named(precision: str | None) -> dict[str, str]:
    """What a registered op is told by name."""
    # Dynamo cannot read what holds on this thread, and traces nothing that was called with a precision of its own.
    given = precision if precision is not None or is_traced_by_dynamo() else _own_precision()
    return {} if given is None else {"precision": given}


def hashable(args: Sequence[Any]) -> tuple[Any, ...]:
    """The arguments with tuples for lists, which is what the dispatcher makes of sequences."""
    return tuple(tuple(arg) if type(arg) is list else arg for arg in args)


def _given_tensors(schema: str) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """Takes from the arguments the tensors that a caller gives: all but the key, which the public functions draw."""
    by_place = schema.split("->")[0].split(", *,")[0]
    parameters = [parameter.split() for parameter in by_place.strip(" ()").split(", ")]
    places = [i for i, (kind, name) in enumerate(parameters) if "Tensor" in kind and name != "philox_key"]
    if any("Tensor[]" in parameters[i][0] for i in places):
        return lambda args: _spread([args[i] for i in places])[0]
    first, count = (places[0], len(places)) if places else (0, 0)
    together = places == list(range(first, first + count))
    return itemgetter(slice(first, first + count)) if together else itemgetter(*places)


class Operator:
    """An op that `torch.ops.aigc_fast.<name>` and Python call alike.

    A call takes one of four ways, which give the same numbers:
    nothing traces, transforms or needs a gradient: the chosen backend at once;
    something needs a gradient in plain eager mode: an autograd.Function over forward and backward, or PyTorch itself
    where nothing of ours would be used;
    compile, export or a dispatch mode: the registered op, opaque, which chooses its backend when it runs;
    functorch transforms, forward-mode AD and tensor subclasses: the reference, which is plain PyTorch.

    Args:
        name: the op's name.
        schema: the part of the torch.library schema after the name.
        reference: the op in plain, differentiable PyTorch.
        allocate: the results, empty, from the same arguments; what compile and export are promised.
        setup_context: as for `torch.library.register_autograd`.
        backward: as for `torch.library.register_autograd`; differentiable, so that double backward works.
        detail: by backend, names the kernel that it takes, for `explain`.
        flops: what `FlopCounterMode` counts for a call, as PyTorch counts its own op; as for `register_flop_formula`.
        signature: as for `Choice`.
        sharding: how it is split where its tensors are DTensors; None leaves that to PyTorch.
        tags: torch.library tags.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        *,
        reference: Callable[..., Any],
        allocate: Callable[..., Any],
        setup_context: Callable[[Any, Sequence[Any], Any], None] | None = None,
        backward: Callable[..., Any] | None = None,
        detail: Mapping[str, Callable[..., str | None]] | None = None,
        flops: Callable[..., int] | None = None,
        signature: Callable[..., Hashable] | None = None,
        sharding: Sharding | None = None,
        tags: Sequence[torch.Tag] = (),
    ) -> None:
        self.name = name
        self.reference = reference
        self.allocate = allocate
        self.runs: dict[str, Callable[..., Any]] = {}
        self.choice = Choice(name, signature)
        self.choice.register("reference", self.run_reference)
        self._details, self._sharding = detail or {}, sharding
        self._tensors = _given_tensors(schema)
        LIBRARY.define(name + schema, tags=tuple(tags))
        LIBRARY.impl(name, self._run_dispatched, "CompositeExplicitAutograd")
        torch.library.register_fake(f"aigc_fast::{name}", lambda *args, precision=None: allocate(*args), lib=LIBRARY)
        if backward is not None:
            setup, backward = _dispatched_setup(setup_context), _as_in_forward(backward)
            torch.library.register_autograd(f"aigc_fast::{name}", backward, setup_context=setup, lib=LIBRARY)
        if flops is not None:
            count(getattr(torch.ops.aigc_fast, name), flops)
        self._apply = _make_apply(name, setup_context, backward, "Tensor[]" in schema.split("->")[0])
        self._overload = getattr(torch.ops.aigc_fast, name).default
        decompose_for_onnx(self._overload, lambda *args, precision=None: reference(*args), allocate)
        _operators[name] = self

    def register(self, name: str, fill: Callable[..., Any], unsupported: Callable[..., Reason]) -> None:
        """Adds a backend; those registered first are preferred, and all to the reference.

        Args:
            name: of the backend.
            fill: takes the results that `allocate` gave, then the op's arguments, and fills them; false, with nothing
                filled, where it could not, and the reference runs.
            unsupported: as for `Backend`.
        """
        self.runs[name] = self.filled_by(fill)
        self.choice.register(name, self.runs[name], unsupported)

    def filled_by(self, fill: Callable[..., Any]) -> Callable[..., Any]:
        """What allocates the results and lets a backend fill them."""
        allocate, run_reference = self.allocate, self.run_reference

        def run(*args: Any) -> Any:
            results = allocate(*args)
            if type(results) is tuple:
                for result in results:
                    if result.nbytes >= LEAST_REUSED:
                        placed(result)
            elif results.nbytes >= LEAST_REUSED:
                placed(results)
            return results if fill(results, *args) else run_reference(*args)

        return run

    def run_reference(self, *args: Any) -> Any:
        """The reference, with the strides that compile and export were promised."""
        found, promised = self.reference(*args), self.allocate(*args)
        if type(found) is not tuple:
            return found if found.stride() == promised.stride() else promised.copy_(found)
        return tuple(a if a.stride() == b.stride() else b.copy_(a) for a, b in zip(found, promised, strict=True))

    def run(self, *args: Any) -> Any:
        """Runs the chosen backend; no autograd, no dispatcher."""
        return self.choice.runner(args).run(*args)

    def _run_dispatched(self, *args: Any, precision: str | None = None) -> Any:
        args = hashable(args)
        return self.run(*args) if precision is None else in_force(precision).run(self.run, *args)

    def __call__(self, *args: Any, precision: str | None = None) -> Any:
        """Runs the op.

        Args:
            args: the op's.
            precision: "highest", "high" or "medium" for float32, in this call and its derivatives, where the schema has
                it; None leaves it to PyTorch's switch.
        """
        if is_watched():
            if is_for_onnx():
                return self.reference(*args)
            return self._overload(*args, **_named(precision))
        if precision is not None:
            return in_force(precision).run(self, *args)
        kind = native.kind(_grad_enabled(), *self._tensors(args))
        if kind == UNKNOWN or functorch_level() is not None or forward_ad._current_level >= 0:
            return self._run_seen_through(args)
        if kind == NEGATED:
            return self._overload(*args, **_named(None))
        runner = self.choice.runner(args)
        if kind == PLAIN:
            return runner.run(*args)
        return runner.pytorchs(*args) if runner.pytorchs else self.differentiable(runner.run, *args)

    def _run_seen_through(self, args: Sequence[Any]) -> Any:
        """Runs on tensor subclasses and inside transforms."""
        if functorch_level() is None and forward_ad._current_level < 0:
            found = self._sharding and self._sharding.run(self, args)
            found = run_replicated(self, args) if found is None else found
            if found is not None:
                return found
        leave_to_pytorch(self.name, "a transform or a tensor subclass: plain PyTorch, which it sees through")
        return self.reference(*args)

    def differentiable(self, run: Callable[..., Any], *args: Any) -> Any:
        """What `run` makes of the arguments, with the op's gradients, where nothing traces or transforms."""
        return self._apply(*args, run)

    def explain(self, *args: Any) -> Explanation:
        """Which backend would run these arguments, and why not the others."""
        gradients = native.kind(_grad_enabled(), *self._tensors(args)) == WANTS_GRADIENT
        automatic = current() == "auto"
        reasons = self.choice.reasons(args, gradients and automatic)
        try:
            chosen = self.choice.pick(args).name
        except BackendError:
            return Explanation(self.name, None, reasons)
        if automatic and reasons[chosen] is not None:
            return Explanation(self.name, "reference", reasons, "PyTorch's own function, with its gradients")
        detail = self._details[chosen](*args) if chosen in self._details else None
        if automatic and (measured := self.choice.measured(args)) is not None:
            detail = f"{detail}; {measured}" if detail else str(measured)
        return Explanation(self.name, chosen, reasons, detail)


def _dispatched_setup(setup_context: Callable[..., None] | None) -> Callable[..., None]:
    def setup(ctx: Any, inputs: Sequence[Any], output: Any, keyword_only_inputs: dict[str, Any] | None = None) -> None:
        ctx.in_force = in_force((keyword_only_inputs or {}).get("precision"))
        if setup_context is not None:
            setup_context(ctx, inputs, output)

    return setup


def _as_in_forward(backward: Callable[..., Any]) -> Callable[..., Any]:
    """The backward with what was in force in forward."""

    def run(ctx: Any, *gradients: Any) -> Any:
        held = ctx.in_force
        if held is NOTHING_FORCED and not is_traced_by_dynamo() and in_force() is held:
            return backward(ctx, *gradients)
        return held.run(backward, ctx, *gradients)

    return run


class ReadOnce:
    """A context whose attributes are read once, however often they are asked for: to unpack saved tensors may cost a
    transfer, and recomputed ones can be had only once."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._ctx, name)
        setattr(self, name, value)
        return value


def _for_each_gradient(backward: Callable[..., Any], ctx: Any, gradients: Sequence[Any]) -> tuple[Any, ...]:
    """The backward of gradients that autograd batches (`is_grads_batched=True`, `jacobian(vectorize=True)`), in turn.

    This is not functorch's vmap: its tensors look like any and have no storage.
    """
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    size = max(
        torch._remove_batch_dim(gradient, level, 1, 0).shape[0]
        for gradient in gradients
        if gradient is not None and _is_batched(gradient)
    )
    batches = [
        None if gradient is None else torch._remove_batch_dim(gradient, level, size, 0) for gradient in gradients
    ]
    found = [backward(ctx, *(None if batch is None else batch[index] for batch in batches)) for index in range(size)]
    return tuple(
        None if result[0] is None else torch._add_batch_dim(torch.stack(result), 0, level)
        for result in zip(*found, strict=True)
    )


def _spread(args: Sequence[Any]) -> tuple[list[Any], tuple[int, ...]]:
    """The arguments, and the items of lists among them in their places; how long each list is, -1 of what is none."""
    lengths = tuple(len(arg) if type(arg) in _LISTS else -1 for arg in args)
    return [item for arg in args for item in (arg if type(arg) in _LISTS else (arg,))], lengths


def _gathered(items: Sequence[Any], lengths: Sequence[int]) -> list[Any]:
    """The arguments that were spread."""
    args, at = [], 0
    for length in lengths:
        args.append(items[at] if length < 0 else list(items[at : at + length]))
        at += 1 if length < 0 else length
    return args


def _make_apply(
    name: str, setup_context: Callable[..., None] | None, backward: Callable[..., Any] | None, has_lists: bool
) -> Callable[..., Any]:
    """Applies an autograd.Function to the op's arguments, lists of tensors among them, and to what runs them."""

    def forward(ctx: Any, *args_and_run: Any) -> Any:
        args = args_and_run[:-1]
        ctx.in_force = in_force()
        output = args_and_run[-1](*args)
        if setup_context is not None:
            setup_context(ctx, args, output)
        return output

    # A Function finds the tensors among its arguments, not those in lists.
    def forward_of_items(ctx: Any, *items_lengths_and_run: Any) -> Any:
        *items, lengths, run = items_lengths_and_run
        return forward(ctx, *_gathered(items, lengths), run)

    def backward_to_items(ctx: Any, *gradients: Any) -> list[Any]:
        return [*_spread(backward(ctx, *gradients))[0], None]

    to_inputs = backward_to_items if has_lists else backward

    def backward_of_args(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        if any(gradient is not None and _is_batched(gradient) for gradient in gradients):
            return *_for_each_gradient(to_inputs, ReadOnce(ctx), gradients), None
        return *to_inputs(ctx, *gradients), None

    members = {"forward": staticmethod(forward_of_items if has_lists else forward)}
    if backward is not None:
        members["backward"] = staticmethod(backward_of_args)
    function = type(name, (torch.autograd.Function,), members)
    # Skips Function.apply's search for functorch transforms, as there are none where this is called.
    apply = super(torch.autograd.Function, function).apply

    def apply_to_items(*args_and_run: Any) -> Any:
        items, lengths = _spread(args_and_run[:-1])
        return apply(*items, lengths, args_and_run[-1])

    return apply_to_items if has_lists else apply
