"""Every public function as a function of tensors alone: CASES on small ones, CALLS on the shared shapes and the ops'
examples, with what they should give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as TF
from attention_cases import ATTENTIONS, BATCHES, FEW_ATTENTIONS, Attention, Batch
from cases import FEW_LINEARS, FEW_NORMS, LATENTS, LINEARS, NORMS, RANDOM_SIZES, RECURSIONS, Linear, Norm, Recursion
from convolution_cases import FEW_CONVOLUTIONS, INTERPRETED_CONVOLUTIONS, PLAIN, TRANSPOSED, Convolution
from torch import Tensor
from torch.utils._pytree import tree_map_only

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.ops.conv_transpose import operators as conv_ops
from aigc_fast.ops.examples import examples
from aigc_fast.ops.random.operators import draw_key
from aigc_fast.ops.random.reference import normal
from aigc_fast.ops.recurrent.examples import EXAMPLES as RECURRENT
from aigc_fast.ops.recurrent.maps import conv_lstm
from aigc_fast.ops.recursion import reference as recursion_reference


def leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


@dataclass(frozen=True)
class Case:
    """A public function as a function of tensors alone.

    Attributes:
        call: the function on our side.
        expected: the same in PyTorch, or ours on the reference backend; None for the latter.
        shapes: of the inputs.
    """

    call: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    expected: Callable[..., Tensor] | None = None

    def inputs(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [(torch.randn(shape) * 0.5).to(dtype) for shape in self.shapes]

    def ours(self, *tensors: Tensor) -> Tensor:
        torch.manual_seed(7)
        return self.call(*tensors)

    def theirs(self, *tensors: Tensor) -> Tensor:
        torch.manual_seed(7)
        if self.expected is not None:
            return self.expected(*tensors)
        with aigc_fast.backend("reference"):
            return self.call(*tensors)


def small_call(name: str) -> Case:
    """The small form of a function's example; convolutions and recurrent networks are held to PyTorch's own."""
    form = examples()[name].small

    def call(function: Callable[..., Any]) -> Callable[..., Tensor]:
        def run(*tensors: Tensor) -> Tensor:
            args, options = form.call(*tensors)
            found = function(*args, **options)
            return torch.cat([part.reshape(-1) for part in found]) if isinstance(found, tuple) else found

        return run

    pytorchs = TF if name.startswith("conv") else torch._VF if name in RECURRENT else None
    expected = None if pytorchs is None else call(getattr(pytorchs, name))
    return Case(call(getattr(AF, name)), form.shapes, expected)


CASES = {name: small_call(name) for name in examples()}


FLOATS = (torch.float32, torch.bfloat16, torch.float16)
HALVES = FLOATS[1:]
ALL_BUT_FLOAT32 = (*HALVES, torch.float64)
# Steps of a recursion, beyond which the reference, a loop, is not differentiated.
MOST_STEPS = 301


class Made(NamedTuple):
    """A call's tensors, which may want gradients, our function of them and what it stands for, in PyTorch."""

    tensors: list[Tensor]
    ours: Callable[..., Any]
    theirs: Callable[..., Any]


@dataclass(frozen=True)
class Call:
    """A call of a function on tensors that are drawn for it.

    Attributes:
        function: a public name, or that of an op that modules call.
        case: the shape, for the test's name.
        make: makes the call in a dtype.
        dtype: of the tensors.
        differentiated: whether the gradients are compared too, where there are any.
        interpreted: whether it is small enough for Triton's interpreter, which runs one program after the other.
    """

    function: str
    case: str
    make: Callable[[torch.dtype], Made]
    dtype: torch.dtype = torch.float32
    differentiated: bool = True
    interpreted: bool = False

    def __str__(self) -> str:
        return f"{self.function}-{self.case}-{str(self.dtype).removeprefix('torch.')}"


class Expected(NamedTuple):
    """What a call should give.

    Attributes:
        made: the call.
        exact: outputs and gradients to the tensors, computed in float64.
        theirs: gives the same, computed in the call's dtype.
    """

    made: Made
    exact: list[Tensor]
    theirs: Callable[[], list[Tensor]]


def results(function: Callable[..., Any], tensors: list[Tensor], call: Call, differentiated: bool) -> list[Tensor]:
    """The outputs and, where there are any and they are wanted, the gradients to the tensors."""
    inputs = [tensor.detach().requires_grad_(differentiated) for tensor in tensors]
    outputs = function(*inputs)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    found = [output.detach() for output in outputs]
    if outputs[0].requires_grad:
        random = torch.Generator().manual_seed(1)
        upstream = [torch.randn(output.shape, generator=random).to(call.dtype).to(output) for output in outputs]
        found += torch.autograd.grad(outputs, inputs, upstream)
    return found


@cache
def expected(call: Call) -> Expected:
    """Drawn once, for all places where the call runs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = call.make(call.dtype)

    def compute(tensors: list[Tensor]) -> list[Tensor]:
        with aigc_fast.backend("reference"):
            return results(made.theirs, tensors, call, call.differentiated)

    exact = compute([tensor.double() for tensor in made.tensors])
    return Expected(made, exact, cache(lambda: compute(made.tensors)))


def _convolution(case: Convolution, dtype: torch.dtype) -> Made:
    ours, theirs = (partial(function, **case.arguments) for function in (getattr(AF, case.function), case.peer))
    return Made(list(case.tensors(dtype)), ours, theirs)


def _activated(case: Convolution, dtype: torch.dtype) -> Made:
    """A convolution that ends in an activation, which modules have: one without a kink."""
    made = _convolution(case, dtype)
    each = [(size,) * len(case.size) for size in (case.stride, case.padding, case.dilation)]
    if case.transposed:
        each.insert(2, (case.output_padding,) * len(case.size))
    op = conv_ops.conv_transpose_activation if case.transposed else conv_ops.conv_activation
    return Made(
        made.tensors,
        lambda *tensors: op(*tensors, *each, case.groups, "tanh", 0.0),
        lambda *tensors: made.theirs(*tensors).tanh(),
    )


def _attention(case: Attention, dtype: torch.dtype) -> Made:
    arguments = case.arguments()
    mask = arguments.pop("attn_mask")

    def ours(query: Tensor, *others: Tensor) -> Tensor:
        at = mask if mask is None else mask.to(query.device)
        return AF.scaled_dot_product_attention(query, *others, at, **arguments)

    return Made(case.tensors(dtype), ours, lambda *tensors: case.expected(*tensors, mask))


def _varlen(case: Batch, dtype: torch.dtype) -> Made:
    return Made(case.tensors(dtype), case.ours, case.expected)


def _linear(case: Linear, dtype: torch.dtype) -> Made:
    return Made(case.tensors(dtype), case.ours, case.theirs)


def _norm(case: Norm, dtype: torch.dtype) -> Made:
    return Made(case.tensors(dtype), case.ours, case.theirs)


def _recursion(case: Recursion, dtype: torch.dtype) -> Made:
    def theirs(x: Tensor, coeffs: Tensor, state: Tensor | None = None) -> Tensor:
        return recursion_reference.recursion(x, coeffs if coeffs.dim() > 1 else coeffs[None], state)

    return Made(case.tensors(dtype), AF.ar_recursion, theirs)


def _maps(case: tuple[int, ...], dtype: torch.dtype) -> Made:
    """A convolutional LSTM, which modules have: steps, images, maps, height, width and the kernel's side."""
    steps, images, maps, *sides, kernel = case
    of_gates, state = (steps, images, 4 * maps, *sides), (images, maps, *sides)
    shapes = of_gates, (4 * maps, maps, kernel, kernel), state, state

    def theirs(sums: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        outputs = []
        for of_input in sums:
            i, f, o, g = (of_input + TF.conv2d(hidden, weight, padding=kernel // 2)).chunk(4, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
            outputs.append(hidden)
        return torch.stack(outputs), cell

    return Made([(torch.randn(shape) * 0.5).to(dtype) for shape in shapes], conv_lstm, theirs)


def _generator() -> torch.Generator:
    """The CPU's, which gives the same numbers everywhere."""
    return torch.Generator().manual_seed(5)


def _numbers(function: Callable[..., Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Made:
    def draw(like: Tensor) -> Tensor:
        return function(like.shape, generator=_generator(), dtype=like.dtype, device=like.device)

    return Made([torch.empty(shape, dtype=dtype)], draw, draw)


def _dropout(shape: tuple[int, ...], dtype: torch.dtype) -> Made:
    def drop(input: Tensor) -> Tensor:
        return AF.dropout(input, 0.3, generator=_generator())

    return Made([torch.randn(shape).to(dtype)], drop, drop)


def _divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * (1 + logvar - mu * mu - logvar.exp()).reshape(len(mu), -1).sum(1)


def _sample(mu: Tensor, logvar: Tensor) -> Tensor:
    noise = normal(mu.shape, draw_key(mu, _generator()), torch.float64)
    return mu + noise.to(mu.dtype) * torch.exp(0.5 * logvar)


_LATENT: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "reparameterize": (lambda *pair: AF.reparameterize(*pair, generator=_generator()), _sample),
    "reparameterize_kl": (
        lambda *pair: AF.reparameterize_kl(*pair, generator=_generator()),
        lambda *pair: (_sample(*pair), _divergence(*pair)),
    ),
    "kl_standard_normal": (AF.kl_standard_normal, _divergence),
}


def _latents(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Made:
    return Made([torch.randn(shape).to(dtype), (torch.randn(shape) * 0.5 - 1).to(dtype)], *_LATENT[name])


def _small(name: str, dtype: torch.dtype) -> Made:
    return Made(CASES[name].inputs(dtype), CASES[name].ours, CASES[name].theirs)


def _example(name: str, dtype: torch.dtype) -> Made:
    """The typical call, of numbers so small that a recursion of them stays where it is."""
    form = examples()[name].typical
    source = {"generator": _generator()} if name in RANDOM else {}
    if name in ("rand", "randn"):
        return _numbers(getattr(AF, name), form.shapes[0], dtype)

    def call(*given: Tensor) -> Any:
        args, options = tree_map_only(Tensor, lambda tensor: tensor.to(given[0].device), form.call(*given))
        return getattr(AF, name)(*args, **options, **source)

    return Made([(0.04 * torch.randn(shape)).to(dtype) for shape in form.shapes], call, call)


def _calls(
    function: str,
    make: Callable[..., Made],
    cases: Sequence[Any],
    few: Sequence[Any] = (),
    interpreted: Sequence[Any] = (),
    dtypes: Sequence[torch.dtype] = HALVES,
    **options: Any,
) -> list[Call]:
    """Of all these cases in float32, and of a few in other dtypes; some of them in the interpreter too."""
    pairs = [(case, torch.float32) for case in cases] + [(case, dtype) for case in few for dtype in dtypes]
    return [
        Call(
            function, str(case).replace(" ", ""), partial(make, case), dtype, interpreted=case in interpreted, **options
        )
        for case, dtype in pairs
    ]


# The public functions that draw numbers, and those whose reference takes a second or more for an example.
RANDOM = ("randn", "rand", "dropout", "reparameterize", "reparameterize_kl")
SLOW = ("ar_recursion", "sample_wise_lpc", "lfilter", "dropout")
_CONVOLUTIONS = list(dict.fromkeys(TRANSPOSED + PLAIN + INTERPRETED_CONVOLUTIONS))
_SHORT_LINE = INTERPRETED_CONVOLUTIONS[4]
_SHORT = [case for case in RECURSIONS if case.length <= MOST_STEPS]
_LONG = [case for case in RECURSIONS if case.length > MOST_STEPS]
_INTERPRETED = [case for case in _SHORT if case.order <= 8 and case.length <= 150]
_SIZES, _FEW_SIZES = [(size,) for size in RANDOM_SIZES], [(1,), (17,), (1025,)]
_FEW_LATENTS = [(1, 17), (7, 113), (3, 1023), (2, 5001)]


def _of_function(function: str, cases: Sequence[Convolution]) -> list[Convolution]:
    return [case for case in cases if case.function == function]


CALLS = [
    *(
        call
        for function in dict.fromkeys(case.function for case in _CONVOLUTIONS)
        for call in _calls(
            function,
            _convolution,
            *(_of_function(function, cases) for cases in (_CONVOLUTIONS, FEW_CONVOLUTIONS, INTERPRETED_CONVOLUTIONS)),
        )
    ),
    *_calls(
        "conv_transpose_activation", _activated, [*(TRANSPOSED[i] for i in (1, 3, 9)), _SHORT_LINE], (), [_SHORT_LINE]
    ),
    *_calls("conv_activation", _activated, [PLAIN[1], PLAIN[13], PLAIN[8]], (), [PLAIN[8]]),
    *_calls("scaled_dot_product_attention", _attention, ATTENTIONS, FEW_ATTENTIONS, FEW_ATTENTIONS[:1]),
    *_calls("varlen_attn", _varlen, BATCHES, BATCHES, BATCHES[6:8]),
    *_calls("linear", _linear, LINEARS, FEW_LINEARS),
    *(
        call
        for function in ("group_norm", "instance_norm", "layer_norm")
        for call in _calls(
            function, _norm, *([case for case in cases if case.function == function] for cases in (NORMS, FEW_NORMS))
        )
    ),
    *_calls("ar_recursion", _recursion, _SHORT, (), _INTERPRETED),
    *_calls("ar_recursion", _recursion, _LONG, differentiated=False),
    *(Call(name, "small", partial(_small, name), interpreted=True) for name in ("sample_wise_lpc", "lfilter")),
    *(Call(name, "small", partial(_small, name)) for name in RECURRENT),
    *_calls("conv_lstm", _maps, [(3, 2, 5, 4, 3, 3), (1, 1, 1, 1, 1, 1), (4, 3, 16, 8, 8, 3), (2, 1, 3, 33, 35, 5)]),
    *_calls("randn", partial(_numbers, AF.randn), _SIZES, _FEW_SIZES, _FEW_SIZES, ALL_BUT_FLOAT32),
    *_calls("rand", partial(_numbers, AF.rand), _SIZES, _FEW_SIZES, _FEW_SIZES, ALL_BUT_FLOAT32),
    *_calls("dropout", _dropout, _SIZES, _FEW_SIZES, _FEW_SIZES, ALL_BUT_FLOAT32),
    *(
        call
        for name in _LATENT
        for call in _calls(name, partial(_latents, name), LATENTS, LATENTS, _FEW_LATENTS, ALL_BUT_FLOAT32)
    ),
]
EXAMPLES = [Call(name, "example", partial(_example, name), differentiated=name not in SLOW) for name in examples()]
# The first call of each function.
FIRST = {call.function: call for call in reversed(CALLS)}
