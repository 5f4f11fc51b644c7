"""Calls of every public function as hypothesis draws them, against float64 and PyTorch: values and gradients.

`CHECKS` holds for each function what is drawn and what must hold; tests/test_fuzz.py runs a fixed number of each, and
`python tests/fuzz.py MINUTES` goes on with other ones until the time is up or something is found.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, count
from typing import Any

import hypothesis
import hypothesis.strategies as st
import torch
import torch.nn.functional as TF
from attention_cases import MASKS, Attention
from cases import Linear, Norm, Recursion
from convolution_cases import Convolution
from memory import poisoned
from parity import FEW_NUMBERS, assert_parity, relative_error
from recurrent_cases import Recurrent
from torch import Tensor
from torch.nn.attention import SDPBackend

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.ops.random import reference as numbers
from aigc_fast.ops.random.operators import DROPOUT, draw_key
from aigc_fast.ops.recursion import reference as recursion_reference
from aigc_fast.ops.reparameterize.operators import REPARAMETERIZE_KL
from aigc_fast.runtime import native

Compute = Callable[..., Tensor | Sequence[Tensor]]
BACKENDS = ("auto", "cpu") if native.cpu_reason() is None else ("auto",)
SEVERAL = 5
# Multiply-adds, beyond which an example takes too long.
MOST_WORK = 3_000_000


@dataclass(frozen=True)
class Setting:
    """What a call obeys, and how its tensors lie in memory.

    Attributes:
        dtype: of the tensors.
        backend, level: what is in force; no level without a native library.
        layout: a key of `LAYOUTS`.
        threads: of the kernels, ours and PyTorch's.
    """

    dtype: torch.dtype
    backend: str
    level: str | None
    layout: str
    threads: int

    @contextmanager
    def in_force(self) -> Iterator[None]:
        with aigc_fast.backend(self.backend):
            if self.level is None:
                yield
                return
            with native.use_level(self.level):
                yield


@contextmanager
def threads(count: int) -> Iterator[None]:
    """On so many threads in the block, PyTorch's kernels too, whose sums have other roundings on another number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _last_dimension_first(tensor: Tensor) -> Tensor:
    return tensor.movedim(-1, 0).contiguous().movedim(0, -1)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if tensor.dim() > 2 else tensor


def _inside(tensor: Tensor) -> Tensor:
    """A part of a larger tensor, every other element in its last dimension, NaN around it."""
    around = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 3), math.nan, dtype=tensor.dtype)
    part = around[..., 1 : 1 + 2 * tensor.shape[-1] : 2]
    part.copy_(tensor)
    return part


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda tensor: tensor,
    "channels last": _channels_last,
    "last dimension first": _last_dimension_first,
    "inside": _inside,
}


def settings(*dtypes: torch.dtype, layouts: Sequence[str] = tuple(LAYOUTS)) -> st.SearchStrategy[Setting]:
    return st.builds(
        Setting,
        st.sampled_from(dtypes),
        st.sampled_from(BACKENDS),
        st.sampled_from(native.levels() or [None]),
        st.sampled_from(layouts),
        st.sampled_from([1, 2, 3]),
    )


def _outputs(found: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


def every_gradient(compute: Compute, tensors: Sequence[Tensor], upstream: Sequence[Tensor]) -> list[Tensor]:
    """The outputs and the gradients to every tensor."""
    inputs = [tensor.detach().requires_grad_() for tensor in tensors]
    outputs = _outputs(compute(*inputs))
    given = [gradient.to(output.dtype) for gradient, output in zip(upstream, outputs, strict=True)]
    return [*(output.detach() for output in outputs), *torch.autograd.grad(outputs, inputs, given)]


def check(
    setting: Setting,
    tensors: Sequence[Tensor],
    ours: Compute,
    theirs: Compute,
    *,
    exact: Compute | None = None,
    fused: Compute | None = None,
    peer_fails: bool = False,
) -> None:
    """Asserts the suite's parity of ours, in a setting, for values without and with gradients, and for gradients.

    Args:
        setting: of our call.
        tensors: float32; rounded to the setting's dtype for both sides.
        ours, theirs: functions of the tensors.
        exact: theirs in float64, where that is another function.
        fused: theirs by PyTorch's faster kernels, which in 16 bits round what lies in between, as ours do.
        peer_fails: whether theirs must not run in the setting's dtype; ours is then held to the format's rounding.
    """
    rounded = [tensor.to(setting.dtype) for tensor in tensors]
    doubles = [tensor.double() for tensor in rounded]
    exact = exact or theirs
    with torch.no_grad():
        upstream = [torch.randn(output.shape).to(setting.dtype) for output in _outputs(exact(*doubles))]
    reference = every_gradient(exact, doubles, upstream)
    # Roundings cancel out by luck where all results hang on few numbers: the worst of some is what there is to expect.
    tries = range(SEVERAL if sum(map(Tensor.numel, upstream)) < FEW_NUMBERS else 1)
    away = [[[_a_rounding_away(tensor.double()) for tensor in each] for each in (rounded, upstream)] for _ in tries]
    tried = zip(*(every_gradient(exact, *each) for each in away), strict=True)
    pairs = zip(tried, reference, strict=True)
    nearby = [max(each, key=partial(relative_error, reference=exactly)) for each, exactly in pairs]
    laid = [LAYOUTS[setting.layout](tensor) for tensor in rounded]
    if peer_fails:
        peer = [result.to(setting.dtype) for result in reference]
    else:
        # PyTorch's own kernels are others in other layouts, and the choice may be one of them.
        ways = [theirs] if fused is None or setting.dtype not in (torch.bfloat16, torch.float16) else [theirs, fused]
        every = (every_gradient(way, tensors, upstream) for way in ways for tensors in (rounded, laid))
        sides = zip(*every, reference, strict=True)
        peer = [max(each, key=partial(relative_error, reference=exactly)) for *each, exactly in sides]
    with setting.in_force(), poisoned():
        with torch.no_grad():
            found = _outputs(ours(*laid))
        found += every_gradient(ours, laid, upstream)
    values = len(upstream)
    sides = [found, *(side[:values] + side for side in (peer, reference, nearby))]
    if any(gradient.numel() < FEW_NUMBERS for gradient in found[2 * values :]):
        sides = [[*side[: 2 * values], torch.cat([part.flatten() for part in side[2 * values :]])] for side in sides]
    for index, each in enumerate(zip(*sides, strict=True)):
        assert_parity(*each[:3], f"result {index}", each[3])


def _a_rounding_away(tensor: Tensor) -> Tensor:
    return tensor * (1 + torch.finfo(torch.float32).eps * (torch.rand(tensor.shape) < 0.5))


@st.composite
def convolutions(draw: Callable[..., Any]) -> Convolution:
    dims = draw(st.sampled_from([1, 2, 2, 2, 3]))
    most = {1: 16, 2: 7, 3: 4}[dims]

    def each(low: int, high: int) -> tuple[int, ...]:
        return draw(st.tuples(*[st.integers(low, high)] * dims))

    transposed, groups = draw(st.booleans()), draw(st.sampled_from([1, 1, 1, 1, 2, 3]))
    kernel, stride, dilation = each(1, most), each(1, 4), each(1, 3)
    padding = each(0, 5 if dims < 3 else 3)
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    if transposed:
        least = [
            max(1, -(-(1 + 2 * p - e - o) // s) + 1) for p, e, o, s in zip(padding, extent, extra, stride, strict=True)
        ]
    else:
        extra, least = (0,) * dims, [max(1, e - 2 * p) for e, p in zip(extent, padding, strict=True)]
    size = tuple(low + draw(st.integers(0, 30 // dims)) for low in least)
    channels = st.sampled_from([1, 2, 3, 8, 16, 17, 32, 48, 64])
    into, out = groups * draw(channels), groups * draw(channels)
    batch = draw(st.integers(1, 3))
    case = Convolution(batch, into, out, size, kernel, stride, padding, extra, dilation, groups, transposed)
    hypothesis.assume(batch * into * out // groups * math.prod(kernel) * math.prod(size) <= MOST_WORK)
    return case


def _reached(size: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> bool:
    """Whether every tap of a convolution from `size` to `outputs` elements meets one of them."""
    return all(any(0 <= i * stride + k * dilation - padding < size for i in range(outputs)) for k in range(kernel))


def has_idle_taps(case: Convolution) -> bool:
    """Whether a tap meets only padding; PyTorch's gradient to it can be garbage, or end the process."""
    with torch.device("meta"):
        input, weight, _ = case.tensors()
        small = getattr(TF, case.function)(input, weight, **case.arguments).shape[2:]
    large, small = (small, case.size) if case.transposed else (case.size, small)
    geometry = zip(large, small, case.kernel, case.stride, case.padding, case.dilation, strict=True)
    return not all(_reached(*of_dimension) for of_dimension in geometry)


def steps_over_pixels(case: Convolution) -> bool:
    """Whether the kernel is one pixel with a stride; PyTorch's gradient to it can end the process."""
    return max(case.kernel) == 1 < max(case.stride)


def _convolve(function: Callable[..., Tensor], arguments: dict[str, Any], *tensors: Tensor) -> Tensor:
    return function(*tensors, **arguments)


def check_convolution(case: Convolution, setting: Setting, bias: bool) -> None:
    tensors = case.tensors()[: 3 if bias else 2]
    ours, theirs = (partial(_convolve, getattr(home, case.function), case.arguments) for home in (AF, TF))
    check(setting, tensors, ours, theirs, peer_fails=has_idle_taps(case) or steps_over_pixels(case))


def attentions() -> st.SearchStrategy[Attention]:
    lengths = st.one_of(st.integers(1, 8), st.integers(1, 140))
    heads = st.sampled_from([(1, None), (2, None), (4, 1), (6, 3), (8, 2)])
    sizes = st.sampled_from([1, 2, 5, 16, 24, 40, 64, 80, 96, 128, 193])
    return heads.flatmap(
        lambda pair: st.builds(
            Attention,
            batch=st.integers(1, 3),
            heads=st.just(pair[0]),
            queries=lengths,
            keys=st.one_of(lengths, st.integers(1, 300)),
            size=sizes,
            value_size=st.one_of(st.none(), sizes),
            kv_heads=st.just(pair[1]),
            causal=st.booleans(),
            window=st.sampled_from([None, None, None, 0, 7, (40, None), (3, 60)]),
            alignment=st.sampled_from(["upper_left", "lower_right"]),
            mask=st.sampled_from(sorted(MASKS)),
            scale=st.sampled_from([None, None, 1.0, 0.03, -0.5]),
        )
    )


def check_attention(case: Attention, setting: Setting) -> None:
    arguments = case.arguments()

    def theirs(query: Tensor, key: Tensor, value: Tensor, kernel: SDPBackend = SDPBackend.MATH) -> Tensor:
        return case.expected(query, key, value, arguments["attn_mask"], kernel=kernel)

    def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return AF.scaled_dot_product_attention(query, key, value, **arguments)

    check(setting, case.tensors(), ours, theirs, fused=partial(theirs, kernel=SDPBackend.FLASH_ATTENTION))


@dataclass(frozen=True)
class Sequences:
    """Sequences one after the other; heads, sizes and scale as in `Attention`, whose lengths and masks do not count."""

    lengths: tuple[tuple[int, int], ...]
    window: tuple[int, int]
    attention: Attention


def sequences() -> st.SearchStrategy[Sequences]:
    lengths = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 60)), min_size=1, max_size=4)
    return st.builds(
        Sequences,
        lengths.map(tuple).filter(lambda pairs: any(queries for queries, _ in pairs)),
        st.sampled_from([(-1, -1), (-1, 0), (5, 0), (7, 3)]),
        attentions(),
    )


def check_sequences(case: Sequences, setting: Setting) -> None:
    heads, groups = case.attention.heads, case.attention.kv_heads or case.attention.heads
    size, value_size, scale = case.attention.size, case.attention.value_size, case.attention.scale
    bounds = [[0, *accumulate(lengths)] for lengths in zip(*case.lengths, strict=True)]
    tensors = [
        torch.randn(total[-1], count_, width)
        for total, count_, width in zip(
            (bounds[0], bounds[1], bounds[1]), (heads, groups, groups), (size, size, value_size or size), strict=True
        )
    ]
    left, right = (None if side < 0 else side for side in case.window)

    def theirs(query: Tensor, key: Tensor, value: Tensor, kernel: SDPBackend = SDPBackend.MATH) -> Tensor:
        parts = []
        for index, (queries, keys) in enumerate(case.lengths):
            if not queries:
                continue
            one = Attention(
                1, heads, queries, keys, size, value_size, groups, False, (left, right), "lower_right", "none", scale
            )
            of_queries = slice(bounds[0][index], bounds[0][index + 1])
            of_keys = slice(bounds[1][index], bounds[1][index + 1])
            given = (query[of_queries], key[of_keys], value[of_keys])
            found = one.expected(*(tensor.transpose(0, 1)[None] for tensor in given), None, kernel=kernel)
            parts.append(found[0].transpose(0, 1))
        return torch.cat(parts)

    def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        where = [torch.tensor(each, dtype=torch.int32) for each in bounds]
        return AF.varlen_attn(query, key, value, *where, window_size=case.window, scale=scale, enable_gqa=True)

    check(setting, tensors, ours, theirs, fused=partial(theirs, kernel=SDPBackend.FLASH_ATTENTION))


def recursions(longest: int = 2000) -> st.SearchStrategy[Recursion]:
    shared = st.builds(
        Recursion,
        st.integers(1, 20),
        st.integers(1, longest),
        st.integers(1, 24),
        st.sampled_from(["shared", "series"]),
        st.booleans(),
    )
    varying = st.builds(
        Recursion, st.integers(1, 6), st.integers(1, 200), st.integers(1, 24), st.just("varying"), st.booleans()
    )
    return st.one_of(shared, varying)


def check_recursion(case: Recursion, setting: Setting) -> None:
    def exact(x: Tensor, coeffs: Tensor, state: Tensor | None = None) -> Tensor:
        return recursion_reference.recursion(x, coeffs if coeffs.dim() > 1 else coeffs[None], state)

    check(setting, case.tensors(), AF.ar_recursion, exact)


@st.composite
def recurrents(draw: Callable[..., Any]) -> Recurrent:
    # Not relu: a sum within a rounding of zero lets its gradient through or not.
    mode, hidden = draw(st.sampled_from(["RNN_TANH", "LSTM", "GRU"])), draw(st.integers(1, 70))
    counts = draw(st.none() | st.lists(st.integers(1, 60), min_size=1, max_size=30))
    counts = counts and tuple(sorted(counts, reverse=True))
    projected = draw(st.just(0) | st.integers(0, hidden - 1)) if mode == "LSTM" else 0
    return Recurrent(
        mode,
        draw(st.integers(1, 40)),
        hidden,
        draw(st.integers(1, 3)),
        draw(st.booleans()),
        counts is None and draw(st.booleans()),
        draw(st.booleans()),
        projected,
        len(counts) if counts else draw(st.integers(1, 100)),
        counts[0] if counts else draw(st.integers(1, 60)),
        counts,
    )


def check_recurrent(case: Recurrent, setting: Setting) -> None:
    hypothesis.assume(case.multiply_adds <= MOST_WORK)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of projections, which PyTorch's fast kernel does not take
        check(setting, case.tensors(), case.network(AF), case.network(torch._VF))


SHAPES = (
    st.lists(st.sampled_from([1, 2, 3, 7, 16, 33, 113]), min_size=1, max_size=4)
    .map(tuple)
    .filter(lambda shape: math.prod(shape) <= 40_000)
)


def check_dropout(shape: tuple[int, ...], p: float, setting: Setting) -> None:
    tensor = torch.randn(shape)
    key = draw_key(tensor)
    factors = numbers.dropout(torch.ones(shape, dtype=torch.float64), key, p)
    check(setting, [tensor], lambda t: DROPOUT(t, key, p), lambda t: t * factors.to(t.dtype))


def check_samples(shape: tuple[int, ...], spread: float, setting: Setting) -> None:
    mu, logvar = torch.randn(shape), spread * torch.randn(shape)
    key = draw_key(mu)
    noise = numbers.normal(shape, key, torch.float64)

    def formula(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        z = mu + noise.to(mu.dtype) * torch.exp(0.5 * logvar)
        return z, -0.5 * (1 + logvar - mu * mu - logvar.exp()).reshape(len(mu), -1).sum(1)

    check(setting, [mu, logvar], lambda m, l: REPARAMETERIZE_KL(m, l, key), formula)


def check_one_of_samples(shape: tuple[int, ...], setting: Setting) -> None:
    """Functions that give one of what `reparameterize_kl` gives."""
    mu, logvar = torch.randn(shape), torch.randn(shape)
    noise = numbers.normal(shape, draw_key(mu, torch.Generator().manual_seed(1)), torch.float64)

    def sample(mu: Tensor, logvar: Tensor) -> Tensor:
        return AF.reparameterize(mu, logvar, generator=torch.Generator().manual_seed(1))

    check(setting, [mu, logvar], sample, lambda m, l: m + noise.to(m.dtype) * torch.exp(0.5 * l))
    check(
        setting,
        [mu, logvar],
        AF.kl_standard_normal,
        lambda m, l: -0.5 * (1 + l - m * m - l.exp()).reshape(len(m), -1).sum(1),
    )


# None with a kink, at which a rounding decides on the gradient.
ACTIVATIONS = st.sampled_from([None, None, "tanh", "sigmoid", "silu", "gelu", "gelu_tanh", "elu"])
FEATURES = st.sampled_from([1, 2, 3, 8, 16, 17, 33, 64, 96, 200, 513])


def linears() -> st.SearchStrategy[Linear]:
    lead = st.lists(st.sampled_from([1, 2, 3, 7, 17, 40]), max_size=3).map(tuple)
    found = st.builds(Linear, lead, FEATURES, FEATURES, st.booleans(), ACTIVATIONS)
    return found.filter(lambda case: math.prod(case.lead) * case.inputs * case.outputs <= MOST_WORK)


def check_case(case: Linear | Norm, setting: Setting) -> None:
    check(setting, case.tensors(), case.ours, case.theirs)


@st.composite
def norms(draw: Callable[..., Any]) -> Norm:
    function = draw(st.sampled_from(["group_norm", "instance_norm", "layer_norm"]))
    if function == "layer_norm":
        shape = draw(st.lists(FEATURES, min_size=1, max_size=3).map(tuple))
        sizes = draw(st.integers(1, len(shape)))
        elements = math.prod(shape[-sizes:])
    else:
        groups, each = draw(st.sampled_from([1, 2, 3, 8])), draw(st.sampled_from([1, 2, 5, 16]))
        inner = draw(st.lists(st.integers(1, 12), max_size=3).map(tuple))
        shape, sizes = (draw(st.integers(1, 4)), groups * each, *inner), groups
        elements = math.prod(inner) * (each if function == "group_norm" else 1)
    # A mean of few numbers leaves differences of numbers that are nearly the same.
    hypothesis.assume(elements > 4 and math.prod(shape) <= 200_000)
    return Norm(function, shape, sizes, draw(st.integers(0, 2)), draw(ACTIVATIONS))


def check_signs(case: Recursion, setting: Setting) -> None:
    """The recursion by the names and signs of other libraries."""
    x, coeffs, *state = case.tensors()
    if case.kind == "varying":

        def varying(x: Tensor, a: Tensor, *zi: Tensor) -> Tensor:
            return recursion_reference.recursion(x, -a, *zi or [None])

        check(setting, [x, -coeffs, *state], AF.sample_wise_lpc, varying)
        return
    a = torch.cat([torch.ones(*coeffs.shape[:-1], 1), -coeffs], -1)
    b = torch.randn(a.shape)

    def filtered(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        taps = b.expand(len(x), -1) / a[..., :1]
        padded = torch.nn.functional.pad(x, (b.shape[-1] - 1, 0))
        driven = torch.nn.functional.conv1d(padded[None], taps.flip(-1)[:, None], groups=len(x))[0]
        feedback = -a[..., 1:] / a[..., :1]
        return recursion_reference.recursion(driven, feedback if a.dim() > 1 else feedback[None], None)

    check(setting, [x, a, b], lambda x, a, b: AF.lfilter(x, a, b, clamp=False), filtered)


def check_numbers(shape: tuple[int, ...], setting: Setting) -> None:
    for drawn, make in ((AF.randn, numbers.normal), (AF.rand, numbers.uniform)):
        key = draw_key(torch.zeros(0), torch.Generator().manual_seed(1))
        with setting.in_force(), poisoned():
            found = drawn(*shape, generator=torch.Generator().manual_seed(1), dtype=setting.dtype)
        exact = make(shape, key, torch.float64)
        assert_parity(found, exact.to(setting.dtype), exact)


FLOATS = torch.float32, torch.bfloat16
HALVES = *FLOATS, torch.float16
CHECKS: dict[str, tuple[Callable[..., None], tuple[st.SearchStrategy[Any], ...]]] = {
    "convolution": (check_convolution, (convolutions(), settings(*FLOATS), st.booleans())),
    "attention": (check_attention, (attentions(), settings(*HALVES))),
    "varlen_attn": (check_sequences, (sequences(), settings(*HALVES))),
    "recursion": (check_recursion, (recursions(), settings(torch.float32, torch.float64))),
    "recurrent networks": (check_recurrent, (recurrents(), settings(*FLOATS))),
    "lfilter, sample_wise_lpc": (check_signs, (recursions(200), settings(torch.float32, torch.float64))),
    "linear": (check_case, (linears(), settings(*FLOATS))),
    "norms": (check_case, (norms(), settings(*HALVES))),
    "reparameterize, kl_standard_normal": (check_one_of_samples, (SHAPES, settings(*HALVES))),
    "dropout": (check_dropout, (SHAPES, st.sampled_from([0.1, 0.5, 0.9]), settings(*HALVES))),
    "reparameterize_kl": (check_samples, (SHAPES, st.sampled_from([0.1, 1.0, 4.0]), settings(*HALVES))),
    "randn, rand": (check_numbers, (SHAPES, settings(*HALVES))),
}


def drawn_check(name: str) -> Callable[[], None]:
    """A function that runs the check on as many examples as hypothesis' settings say."""
    run, strategies = CHECKS[name]

    @hypothesis.given(st.tuples(*strategies))
    def drawn(arguments: tuple[Any, ...]) -> None:
        torch.manual_seed(0)
        (setting,) = (each for each in arguments if isinstance(each, Setting))
        with threads(setting.threads):
            run(*arguments)

    return drawn


def main(minutes: float) -> None:
    """Draws until the time is up."""
    end, examples = time.monotonic() + 60 * minutes, 0
    endless = hypothesis.settings(
        max_examples=40, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    for seed in count(time.time_ns()):
        for name in CHECKS:
            endless(hypothesis.seed(seed)(drawn_check(name)))()
            examples += endless.max_examples
            if time.monotonic() > end:
                print(f"{examples} examples of {len(CHECKS)} functions: nothing found")
                return


if __name__ == "__main__":
    main(float(sys.argv[1]))
