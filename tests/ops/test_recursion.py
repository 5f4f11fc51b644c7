"""All-pole recursions against scipy, torchlpc and a loop in float64: shapes, states, parts, gradients, every level."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.signal
import torch
from cases import RECURSIONS, Recursion, stable_coeffs
from parity import DTYPES, FLOORS, assert_parity, opcheck, relative_error
from torch import Tensor

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.ops.recursion import reference
from aigc_fast.ops.recursion.operators import RECURSION, RECURSION_LAGS, RECURSION_TRANSPOSED
from aigc_fast.runtime import native
from aigc_fast.runtime.backends import BackendError
from aigc_fast.runtime.operator import Operator

needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
SHORT = [case for case in RECURSIONS if case.length <= 301]


def scipy_lfilter(x: Tensor, coeffs: Tensor, state: Tensor | None = None) -> Tensor:
    """scipy's, in x's dtype, each series with its own coefficients and state."""
    rows = []
    for i, row in enumerate(x.numpy()):
        c = (coeffs if coeffs.dim() == 1 else coeffs[i]).numpy()
        a, b = np.concatenate([np.ones(1, c.dtype), -c]), np.ones(1, c.dtype)
        past = np.zeros(len(c)) if state is None else state[i].double().numpy()
        start = scipy.signal.lfiltic(b.astype(float), a.astype(float), past).astype(c.dtype)
        rows.append(scipy.signal.lfilter(b, a, row, zi=start)[0])
    return torch.from_numpy(np.stack(rows)).to(x.dtype)


def loop(x: Tensor, coeffs: Tensor, state: Tensor | None = None) -> Tensor:
    """Step by step in numpy, in x's dtype, with coefficients of every step."""
    order, (count, length) = coeffs.shape[-1], x.shape
    values = np.zeros((count, order + length), dtype=x.numpy().dtype)
    if state is not None:
        values[:, :order] = state.flip(1).numpy()
    values[:, order:] = x.numpy()
    of_steps = coeffs.numpy()
    for t in range(length):
        values[:, order + t] += (of_steps[:, t] * values[:, t : order + t][:, ::-1]).sum(1)
    return torch.from_numpy(values[:, order:].copy())


def expected(x: Tensor, coeffs: Tensor, state: Tensor | None = None) -> Tensor:
    return (loop if coeffs.dim() == 3 else scipy_lfilter)(x, coeffs, state)


def in_long_double(x: Tensor, coeffs: Tensor, state: Tensor | None = None) -> np.ndarray:
    """Of shared coefficients or those of each series, in the longest floating point that the machine has."""
    x, coeffs = (each.numpy().astype(np.longdouble) for each in (x, coeffs))
    before = np.zeros((len(x), coeffs.shape[-1]), np.longdouble) if state is None else state.numpy()
    found = np.empty_like(x)
    for t in range(x.shape[1]):
        found[:, t] = x[:, t] + (coeffs * before).sum(1)
        before = np.concatenate([found[:, t : t + 1], before[:, :-1]], 1)
    return found


def distance(found: Tensor, exact: np.ndarray) -> float:
    """The largest error, in shares of the largest value."""
    return float(np.abs(found.numpy() - exact).max() / np.abs(exact).max())


def assert_forward(case: Recursion, tensors: list[Tensor]) -> None:
    exact = expected(*(tensor.double() for tensor in tensors))
    assert_parity(AF.ar_recursion(*tensors), expected(*tensors), exact, str(case))


def every_gradient(compute: Callable[..., Tensor], tensors: list[Tensor], weights: Tensor) -> list[Tensor]:
    inputs = [tensor.detach().requires_grad_() for tensor in tensors]
    return list(torch.autograd.grad(compute(*inputs), inputs, weights.to(inputs[0].dtype)))


def in_plain_pytorch(x: Tensor, coeffs: Tensor, state: Tensor | None = None) -> Tensor:
    """By PyTorch's differentiation of the loop, not by the ops' own."""
    return reference.recursion(x, coeffs if coeffs.dim() > 1 else coeffs[None], state)


@pytest.mark.parametrize("case", RECURSIONS, ids=str)
def test_forward(case: Recursion) -> None:
    assert_forward(case, case.tensors())


@pytest.mark.parametrize("case", SHORT, ids=str)
def test_forward_of_every_backend(case: Recursion, backend: str) -> None:
    assert_forward(case, case.tensors())


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", RECURSIONS, ids=str)
def test_forward_on_every_level(case: Recursion, dtype: torch.dtype, isa: str) -> None:
    with aigc_fast.backend("cpu"):
        tensors = case.tensors(dtype)
        found, exact = AF.ar_recursion(*tensors), expected(*(tensor.double() for tensor in tensors))
        if dtype == torch.float64:
            assert relative_error(found, exact) < 1e-10
        else:
            assert_parity(found, expected(*tensors), exact)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", SHORT, ids=str)
def test_gradients_on_every_level(case: Recursion, dtype: torch.dtype, isa: str) -> None:
    tensors, weights = case.tensors(dtype), torch.randn(case.batch, case.length)
    with aigc_fast.backend("cpu"):
        found = every_gradient(AF.ar_recursion, tensors, weights)
    theirs = every_gradient(in_plain_pytorch, tensors, weights)
    exact = every_gradient(in_plain_pytorch, [tensor.double() for tensor in tensors], weights)
    for a, b, c in zip(found, theirs, exact, strict=True):
        assert a.shape == c.shape
        assert relative_error(a, c) <= max(2 * relative_error(b, c), 1e-11 if dtype == torch.float64 else 2e-6)


@pytest.mark.parametrize("case", SHORT[:8], ids=str)
def test_gradients_of_every_backend(case: Recursion, backend: str) -> None:
    tensors, weights = case.tensors(torch.float64), torch.randn(case.batch, case.length)
    found = every_gradient(AF.ar_recursion, tensors, weights)
    torch.testing.assert_close(found, every_gradient(in_plain_pytorch, tensors, weights))


@pytest.mark.parametrize("kind", ["shared", "series", "varying"])
def test_long_gradients(kind: str) -> None:
    """Longer than a block of the sums over the steps, and cut into parts; against PyTorch's convolution with the
    impulse response, which ends early."""
    case = Recursion(2, 20_000, 4, kind)
    x, coeffs = case.tensors(torch.float64)
    if kind == "varying":
        coeffs = coeffs[:, :1].expand(-1, case.length, -1).contiguous()
    weights = torch.randn_like(x)

    def convolved(x: Tensor, coeffs: Tensor) -> Tensor:
        first = coeffs[:, 0] if kind == "varying" else coeffs.expand(2, -1)
        impulse = torch.zeros(2, 600, dtype=x.dtype)
        impulse[:, 0] = 1
        response = reference.recursion(impulse, first, None)
        padded = torch.nn.functional.pad(x, (599, 0))
        return torch.nn.functional.conv1d(padded[None], response.flip(1)[:, None], groups=2)[0]

    found, wanted = (every_gradient(f, [x, coeffs], weights) for f in (AF.ar_recursion, convolved))
    if kind == "varying":
        found[1], wanted[1] = found[1].sum(1), wanted[1][:, 0]
    for a, b in zip(found, wanted, strict=True):
        assert relative_error(a, b) < 1e-9


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("case", [SHORT[1], SHORT[6], Recursion(2, 70, 7, "varying")], ids=str)
def test_16_bits_compute_in_float32(case: Recursion, dtype: str, backend: str) -> None:
    tensors = case.tensors(DTYPES[dtype])
    found = AF.ar_recursion(*tensors)
    assert found.dtype == DTYPES[dtype]
    assert relative_error(found, expected(*(tensor.double() for tensor in tensors))) < FLOORS[DTYPES[dtype]]


POLES = {
    "two at 0.9": [0.9 * np.exp(1j), 0.9 * np.exp(-1j)],
    "two at 0.999": [0.999 * np.exp(0.5j), 0.999 * np.exp(-0.5j)],
    "two at 0.99999": [0.99999 * np.exp(0.3j), 0.99999 * np.exp(-0.3j)],
    "eight pairs at 0.999": [0.999 * np.exp(s * 1j * w) for w in np.linspace(0.3, 2.8, 8) for s in (1, -1)],
    "a growing pair": [1.00005 * np.exp(0.3j), 1.00005 * np.exp(-0.3j)],
    "a great growth": [1.01, 0.5],
}


@pytest.mark.parametrize("poles", [*POLES, "sixteen random"])
def test_accuracy_of_a_long_series(poles: str) -> None:
    """At most twice scipy's error in float32, on average: where a filter grows, the first roundings decide each."""
    if poles == "sixteen random":
        coeffs = stable_coeffs(torch.randn(16, dtype=torch.float64))
    else:
        coeffs = torch.from_numpy(-np.real(np.poly(POLES[poles]))[1:].copy())
    coeffs = coeffs.float()
    x = torch.randn(8, 100_000 if poles != "a great growth" else 6000)
    exact = scipy_lfilter(x.double(), coeffs.double())
    # One series at a time, which is cut into parts.
    theirs, found = scipy_lfilter(x, coeffs), torch.cat([AF.ar_recursion(row[None], coeffs) for row in x])
    ours_off, theirs_off = (((y - exact).abs().amax(1) / exact.abs().amax(1)).mean() for y in (found, theirs))
    assert ours_off <= 2 * theirs_off


@pytest.mark.parametrize("kind", ["shared", "series", "varying"])
def test_streaming_gives_the_samples_of_one_call(kind: str, backend: str) -> None:
    x, coeffs = Recursion(2, 200, 5, kind).tensors(torch.float64)
    whole, last = AF.ar_recursion(x, coeffs, return_state=True)
    pieces, state = [], None
    for first, end in ((0, 3), (3, 4), (4, 100), (100, 100), (100, 200)):
        of_piece = coeffs[:, first:end] if kind == "varying" else coeffs
        y, state = AF.ar_recursion(x[:, first:end], of_piece, state, return_state=True)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole)
    torch.testing.assert_close(state, last)
    torch.testing.assert_close(last, whole[:, -5:].flip(1))


def test_one_series_without_a_batch(backend: str) -> None:
    x, coeffs, state = torch.randn(50), stable_coeffs(torch.randn(3)), torch.randn(3)
    y, last = AF.ar_recursion(x, coeffs, state, return_state=True)
    batch, lasts = AF.ar_recursion(x[None], coeffs, state[None], return_state=True)
    assert y.shape == (50,)
    torch.testing.assert_close((y, last), (batch[0], lasts[0]))
    varying = coeffs.expand(50, 3)
    torch.testing.assert_close(AF.ar_recursion(x, varying, state), y)
    torch.testing.assert_close(AF.ar_recursion(x.expand(4, 50), coeffs, state), y.expand(4, 50))


@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 0)])
@pytest.mark.parametrize("kind", ["shared", "series", "varying"])
def test_empty_sizes(shape: tuple[int, int], kind: str, backend: str) -> None:
    tensors = Recursion(*shape, 3, kind, True).tensors()
    y, state = AF.ar_recursion(*tensors, return_state=True)
    assert y.shape == shape
    assert torch.equal(state, tensors[2]) or shape[1] > 0
    for gradient, tensor in zip(every_gradient(AF.ar_recursion, tensors, torch.ones(shape)), tensors, strict=True):
        assert torch.equal(gradient, torch.zeros_like(tensor))


def test_order_zero_is_the_identity(backend: str) -> None:
    x = torch.randn(3, 40)
    assert torch.equal(AF.ar_recursion(x, torch.empty(0)), x)
    assert torch.equal(AF.ar_recursion(x, torch.empty(3, 40, 0)), x)


@pytest.mark.parametrize("kind", ["shared", "varying"])
def test_strides(kind: str, backend: str) -> None:
    case = Recursion(6, 90, 4, kind)
    x, coeffs = case.tensors()
    wanted = AF.ar_recursion(x, coeffs)
    for view in (x.t().contiguous().t(), torch.stack([x, -x], 2)[..., 0], torch.cat([x, x], 1)[:, :90]):
        assert torch.equal(AF.ar_recursion(view, coeffs), wanted)
    spread = torch.stack([coeffs, coeffs], -1)[..., 1]
    assert torch.equal(AF.ar_recursion(x, spread), wanted)
    torch.testing.assert_close(AF.ar_recursion(x[:1].expand(6, 90), coeffs)[0], wanted[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [300, 20_000])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_lasts(value: float, length: int) -> None:
    """NaN to the end and not before, infinity as in scipy, in the parts of a cut series too."""
    for poles in (0.5, 0.9995):
        x, coeffs = torch.randn(2, length), torch.tensor([poles])
        wanted = scipy_lfilter(x, coeffs)
        x[0, 100] = value
        found = AF.ar_recursion(x, coeffs)
        assert found[0, :100].isfinite().all()
        assert torch.equal(found[0, 100:].isnan(), torch.full((length - 100,), math.isnan(value)))
        assert not found[0, 100:].isfinite().any()
        torch.testing.assert_close(found[1], wanted[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_unstable_filter_overflows_as_scipys(dtype: torch.dtype) -> None:
    x, coeffs = torch.ones(1, 30_000, dtype=dtype), torch.tensor([1.5], dtype=dtype)
    found, wanted = AF.ar_recursion(x, coeffs), scipy_lfilter(x, coeffs)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=0)
    assert found[0, -1] == math.inf


@needs_native
@pytest.mark.parametrize("case", [RECURSIONS[4], RECURSIONS[8], RECURSIONS[10], RECURSIONS[-2]], ids=str)
def test_threads_give_the_same_numbers(case: Recursion) -> None:
    tensors, before, runs = case.tensors(torch.float64), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            runs.append(AF.ar_recursion(*tensors))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        torch.testing.assert_close(run, runs[0], rtol=1e-11, atol=1e-11)


@needs_native
@hypothesis.given(
    st.builds(
        Recursion,
        batch=st.integers(1, 40),
        length=st.integers(1, 3000),
        order=st.integers(1, 20),
        kind=st.sampled_from(["shared", "series"]),
        state=st.booleans(),
    ),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_random_calls(case: Recursion, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tensors = case.tensors(dtype)
    exact = in_long_double(*tensors)
    limit = max(2 * distance(expected(*tensors), exact), FLOORS[dtype])
    assert distance(AF.ar_recursion(*tensors), exact) <= limit


@pytest.mark.parametrize(
    "case", [SHORT[0], SHORT[1], Recursion(2, 6, 2, "series", True), Recursion(2, 6, 3, "varying", True)], ids=str
)
def test_gradcheck(case: Recursion, backend: str) -> None:
    tensors = [tensor.requires_grad_() for tensor in case.tensors(torch.float64)]
    assert torch.autograd.gradcheck(AF.ar_recursion, tensors)
    assert torch.autograd.gradgradcheck(AF.ar_recursion, tensors)


def arguments_of_ops(kind: str) -> dict[Operator, tuple[Any, ...]]:
    x, coeffs, state = Recursion(2, 12, 3, kind, True).tensors()
    coeffs = coeffs if coeffs.dim() > 1 else coeffs[None]
    x, coeffs, state, u = (tensor.requires_grad_() for tensor in (x, coeffs, state, torch.randn(2, 12)))
    return {
        RECURSION: (x, coeffs, state),
        RECURSION_TRANSPOSED: (x, coeffs),
        RECURSION_LAGS: (u, x, state, 3, kind == "varying"),
    }


@needs_native
@pytest.mark.parametrize("kind", ["shared", "series", "varying"])
def test_every_op_has_a_kernel(kind: str) -> None:
    for op, arguments in arguments_of_ops(kind).items():
        assert op.explain(*arguments).chosen == "cpu"


def test_ops_are_registered_as_torch_expects() -> None:
    for op, arguments in arguments_of_ops("series").items():
        opcheck(getattr(torch.ops.aigc_fast, op.name).default, arguments)


COMPLEX = [torch.complex64, torch.complex128]


def complex_tensors(case: Recursion, dtype: torch.dtype) -> list[Tensor]:
    """x, coefficients of poles within 0.9 that are no pairs, and a state; all of them complex."""
    order, lead = case.order, {"shared": (), "series": (case.batch,), "varying": (case.batch, case.length)}[case.kind]
    seeds = torch.randn(*lead, order, dtype=torch.complex128)
    if case.kind == "varying":
        seeds = seeds[:, :1] + 0.02 * seeds
    polynomial = torch.ones(*lead, 1, dtype=torch.complex128)
    for pole in (0.9 * seeds / (1 + seeds.abs())).split(1, -1):
        padded = torch.nn.functional.pad(polynomial, (0, 1))
        polynomial = padded - pole * padded.roll(1, -1)
    x, state = (torch.randn(case.batch, size, dtype=torch.complex128) for size in (case.length, order))
    return [tensor.to(dtype) for tensor in (x, -polynomial[..., 1:], state)]


class TestComplex:
    """By the reference, on which every backend but the native ones falls back."""

    @pytest.mark.parametrize("dtype", COMPLEX)
    @pytest.mark.parametrize("kind", ["shared", "series", "varying"])
    def test_forward(self, kind: str, dtype: torch.dtype) -> None:
        case = Recursion(3, 83, 4, kind)
        tensors = complex_tensors(case, dtype)
        x, coeffs, state = (tensor.to(torch.complex128) for tensor in tensors)
        wanted = loop(x, coeffs if kind == "varying" else coeffs.expand(3, 4)[:, None].expand(3, 83, 4), state)
        found, last = AF.ar_recursion(*tensors, return_state=True)
        assert found.dtype == last.dtype == dtype
        limit = {torch.complex64: 2e-6, torch.complex128: 1e-13}[dtype]
        for ours, theirs in ((found, wanted), (last, wanted[:, -4:].flip(1))):
            assert (ours - theirs).abs().max() <= limit * theirs.abs().max()

    @pytest.mark.parametrize("kind", ["shared", "series", "varying"])
    def test_gradcheck(self, kind: str) -> None:
        tensors = [tensor.requires_grad_() for tensor in complex_tensors(Recursion(2, 6, 2, kind), torch.complex128)]
        assert torch.autograd.gradcheck(AF.ar_recursion, tensors, check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(AF.ar_recursion, tensors)

    def test_conjugated_views_and_graphs(self) -> None:
        x, coeffs, state = complex_tensors(Recursion(2, 20, 3, "varying"), torch.complex64)
        wanted = AF.ar_recursion(x, coeffs, state)
        torch.testing.assert_close(AF.ar_recursion(x.conj(), coeffs.conj(), state.conj()), wanted.conj())
        compiled = torch.compile(AF.ar_recursion, fullgraph=True, backend="aot_eager")
        for given in (x, x.conj()):
            torch.testing.assert_close(compiled(given, coeffs, state), AF.ar_recursion(given, coeffs, state))
        mapped = torch.vmap(AF.ar_recursion)(x, coeffs, state)
        torch.testing.assert_close(mapped, wanted)

    @needs_native
    def test_a_forced_backend_says_that_it_cannot(self) -> None:
        x, coeffs, _ = complex_tensors(Recursion(2, 9, 3), torch.complex64)
        assert aigc_fast.explain("ar_recursion", x, coeffs).chosen == "reference"
        with (
            aigc_fast.backend("cpu"),
            pytest.raises(BackendError, match=r"torch\.complex64 is computed by the reference"),
        ):
            AF.ar_recursion(x, coeffs)

    @pytest.mark.parametrize("kind", ["shared", "series", "varying"])
    def test_ops_are_registered_as_torch_expects(self, kind: str) -> None:
        x, coeffs, state = complex_tensors(Recursion(2, 12, 3, kind), torch.complex64)
        coeffs = coeffs if coeffs.dim() > 1 else coeffs[None]
        given = [tensor.requires_grad_() for tensor in (x, coeffs, state)]
        torch.library.opcheck(torch.ops.aigc_fast.recursion.default, tuple(given))
        torch.library.opcheck(torch.ops.aigc_fast.recursion_transposed.default, tuple(given[:2]))
        torch.library.opcheck(torch.ops.aigc_fast.recursion_lags.default, (x, x, state, 3, kind == "varying"))


class TestTorchLpc:
    """The peer itself beside ours."""

    @pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
    @pytest.mark.parametrize("order", [1, 2, 7, 22])
    def test_forward_states_and_gradients(self, order: int, dtype: torch.dtype) -> None:
        torchlpc = pytest.importorskip("torchlpc")
        case = Recursion(3, 150, order, "varying", True)
        x, coeffs, state = complex_tensors(case, dtype) if dtype.is_complex else case.tensors(dtype)
        weights = torch.randn(3, 150, dtype=dtype)
        results = []
        for function in (AF.sample_wise_lpc, torchlpc.sample_wise_lpc):
            inputs = [tensor.detach().requires_grad_() for tensor in (x, -coeffs, state)]
            y, last = function(*inputs, return_zf=True)
            loss = (y * weights).sum() + last.sin().sum()
            results.append([y, last, *torch.autograd.grad(loss.abs(), inputs)])
        torch.testing.assert_close(*results)

    @pytest.mark.parametrize("order", [1, 3])
    def test_what_it_takes_ours_takes(self, order: int) -> None:
        torchlpc = pytest.importorskip("torchlpc")
        dtypes = (torch.float32, torch.float64, *COMPLEX, torch.int64)
        case = Recursion(2, 9, order, "varying")
        for of_x, of_a, of_zi in itertools.product(dtypes, dtypes, (None, *dtypes)):
            x, coeffs, state = complex_tensors(case, torch.complex128)
            x, a = (
                tensor.to(kind) if kind.is_complex else tensor.real.to(kind)
                for tensor, kind in ((x, of_x), (-coeffs, of_a))
            )
            given = [x, a] if of_zi is None else [x, a, state.to(of_zi) if of_zi.is_complex else state.real.to(of_zi)]
            try:
                wanted = torchlpc.sample_wise_lpc(*given)
            except RuntimeError:
                with pytest.raises(RuntimeError, match=r"^(x|a|zi) has dtype"):
                    AF.sample_wise_lpc(*given)
            else:
                torch.testing.assert_close(AF.sample_wise_lpc(*given), wanted)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
    @pytest.mark.parametrize("shape", [(0, 6, 2), (2, 0, 2), (2, 6, 0), (2, 1, 1), (2, 1, 3), (1, 2, 3), (5, 8, 3)])
    def test_odd_shapes(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Where there are fewer steps than coefficients, theirs returns as short a state, ours one to go on with."""
        torchlpc = pytest.importorskip("torchlpc")
        x, a, zi = (torch.randn(size, dtype=dtype) for size in (shape[:2], shape, (shape[0], shape[2])))
        for given in ((x, a), (x, a, zi)):
            y, last = AF.sample_wise_lpc(*given, return_zf=True)
            wanted = torchlpc.sample_wise_lpc(*given)
            torch.testing.assert_close(y, wanted)
            assert last.shape == zi.shape
            known = min(shape[1], shape[2])
            torch.testing.assert_close(last[:, :known], wanted[:, shape[1] - known :].flip(1))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
    def test_views_and_keywords(self, dtype: torch.dtype) -> None:
        torchlpc = pytest.importorskip("torchlpc")
        x, a = torch.randn(20, 3, dtype=dtype).t(), 0.2 * torch.randn(3, 2, 20, dtype=dtype).transpose(1, 2)
        for given in (
            (x, a),
            (x.conj(), a.conj()),
            (x[:, ::2], a[:, ::2]),
            (x[:1].expand(3, 20), a[:1].expand(3, 20, 2)),
        ):
            y, last = AF.sample_wise_lpc(x=given[0], a=given[1], zi=None, return_zf=True)
            theirs, states = torchlpc.sample_wise_lpc(x=given[0], a=given[1], zi=None, return_zf=True)
            torch.testing.assert_close((y, last), (theirs, states))

    def test_without_a_state(self) -> None:
        torchlpc = pytest.importorskip("torchlpc")
        x, coeffs = Recursion(2, 90, 5, "varying").tensors(torch.float64)
        torch.testing.assert_close(AF.sample_wise_lpc(x, -coeffs), torchlpc.sample_wise_lpc(x, -coeffs))


class TestLfilter:
    @pytest.mark.parametrize("shape", [(200,), (3, 200), (2, 3, 200)])
    def test_one_filter_is_scipys(self, shape: tuple[int, ...], backend: str) -> None:
        x, a, b = (
            torch.randn(shape, dtype=torch.float64),
            torch.tensor([2.0, -1.0, 0.4]).double(),
            torch.randn(3).double(),
        )
        wanted = torch.from_numpy(scipy.signal.lfilter(b.numpy(), a.numpy(), x.numpy()))
        torch.testing.assert_close(AF.lfilter(x, a, b, clamp=False), wanted)
        torch.testing.assert_close(AF.lfilter(x, a, b), wanted.clamp(-1, 1))

    def test_a_bank_of_filters(self, backend: str) -> None:
        x = torch.randn(2, 3, 100, dtype=torch.float64)
        a = torch.tensor([[1.0, -0.5, 0.1], [2.0, 0.3, 0.2], [1.0, 0.0, -0.4]]).double()
        b = torch.randn(3, 3, dtype=torch.float64)

        def one(x: Tensor, i: int) -> Tensor:
            return torch.from_numpy(scipy.signal.lfilter(b[i].numpy(), a[i].numpy(), x.numpy()))

        wanted = torch.stack([one(x[:, i], i) for i in range(3)], 1)
        torch.testing.assert_close(AF.lfilter(x, a, b, clamp=False), wanted)
        found = AF.lfilter(x, a, b, clamp=False, batching=False)
        assert found.shape == (2, 3, 3, 100)
        torch.testing.assert_close(found, torch.stack([one(x, i) for i in range(3)], 2))

    def test_gradients(self) -> None:
        x, a, b = torch.randn(2, 9).double(), torch.tensor([1.5, -0.4, 0.2]).double(), torch.randn(3).double()
        inputs = [tensor.requires_grad_() for tensor in (x, a, b)]
        assert torch.autograd.gradcheck(lambda *t: AF.lfilter(*t, clamp=False), inputs)

    @pytest.mark.parametrize("dtype", COMPLEX)
    def test_complex_numbers_are_scipys(self, dtype: torch.dtype) -> None:
        x, b = torch.randn(2, 60, dtype=dtype), torch.randn(3, dtype=dtype)
        a = torch.tensor([2.0, 0.3 + 0.2j, -0.1j], dtype=dtype)
        wanted = scipy.signal.lfilter(b.numpy(), a.numpy(), x.numpy())
        torch.testing.assert_close(AF.lfilter(x, a, b, clamp=False), torch.from_numpy(wanted), rtol=1e-4, atol=1e-5)
        with pytest.raises(RuntimeError, match=r"^clamp is True: expected False"):
            AF.lfilter(x, a, b)

    def test_a_numerator_alone(self) -> None:
        x = torch.randn(2, 30)
        torch.testing.assert_close(AF.lfilter(x, torch.tensor([2.0]), torch.tensor([3.0]), clamp=False), 1.5 * x)

    def test_no_samples(self) -> None:
        of_one, of_three = torch.ones(2), torch.ones(3, 2)
        for shape in ((0,), (3, 0), (0, 5), (2, 3, 0)):
            assert AF.lfilter(torch.zeros(shape), of_one, of_one).shape == shape
        assert AF.lfilter(torch.zeros(2, 3, 0), of_three, of_three).shape == (2, 3, 0)
        assert AF.lfilter(torch.zeros(2, 0), of_three, of_three, batching=False).shape == (2, 3, 0)

    def test_torchaudio(self) -> None:
        try:
            from torchaudio.functional import lfilter
        except (ImportError, OSError) as error:
            pytest.skip(f"torchaudio does not load: {error}")
        x, a, b = torch.randn(2, 3, 80), torch.tensor([[1.0, -0.5]] * 3), torch.rand(3, 2)
        for batching in (True, False):
            torch.testing.assert_close(AF.lfilter(x, a, b, True, batching), lfilter(x, a, b, True, batching))


X, C = torch.randn(2, 10), torch.randn(3)
BAD = {
    "x": [(X[None], C), (X.long(), C.long()), (torch.tensor(1.0), C), ([1.0], C)],
    "coeffs": [(X, C.double()), (X, torch.randn(3, 3)), (X, torch.randn(2, 9, 3)), (X[0], torch.randn(9, 3)), (X, 0.5)],
    "state": [(X, C, torch.randn(2)), (X, C, torch.randn(3, 3)), (X, C, torch.zeros(3).double()), (X, C, 0)],
}


@pytest.mark.parametrize(("name", "arguments"), [(n, a) for n, calls in BAD.items() for a in calls])
def test_bad_arguments_name_the_argument(name: str, arguments: tuple[Any, ...], backend: str) -> None:
    with pytest.raises((RuntimeError, TypeError), match=rf"^{name} (has|is)"):
        AF.ar_recursion(*arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [AF.ar_recursion, AF.sample_wise_lpc, AF.lfilter])
def test_autocast_takes_the_widest_dtype(function: Callable[..., Tensor], dtype: torch.dtype, backend: str) -> None:
    order = {AF.ar_recursion: (3,), AF.sample_wise_lpc: (2, 10, 3), AF.lfilter: (3,)}[function]
    x, coeffs = torch.randn(2, 10), 0.1 + 0.2 * torch.rand(order)
    third = torch.rand(3) if function is AF.lfilter else torch.randn(2, 3)
    for tensors in ((x.to(dtype), coeffs, third), (x, coeffs.to(dtype), third), (x.to(dtype), coeffs.to(dtype), third)):
        inputs = [tensor.requires_grad_() for tensor in tensors]
        with torch.autocast("cpu", dtype):
            found = function(*inputs)
        wanted = function(*(tensor.float() for tensor in inputs))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted)
        for ours, theirs in zip(*(torch.autograd.grad(y.sum(), inputs) for y in (found, wanted)), strict=True):
            assert torch.equal(ours, theirs)


def test_autocast_leaves_equal_dtypes_and_refuses_integers() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert AF.ar_recursion(X.bfloat16(), C.bfloat16()).dtype == torch.bfloat16
        assert AF.ar_recursion(X, C.double()).dtype == torch.float64
        with pytest.raises(RuntimeError, match=r"^coeffs has dtype torch\.int64"):
            AF.ar_recursion(X, C.long())


@pytest.mark.parametrize(
    ("function", "name", "arguments"),
    [
        (AF.sample_wise_lpc, "x", (X[0], X)),
        (AF.sample_wise_lpc, "a", (X, torch.randn(2, 9, 3))),
        (AF.sample_wise_lpc, "a", (X, torch.randn(2, 10, 3).double())),
        (AF.sample_wise_lpc, "zi", (X, torch.randn(2, 10, 3), torch.randn(3))),
        (AF.sample_wise_lpc, "zi", (X, torch.randn(2, 10, 3), torch.randn(2, 3).double())),
        (AF.sample_wise_lpc, "zi", (X, torch.randn(2, 10, 3), [1, 2, 3])),
        (AF.lfilter, "waveform", (X.long(), C, C)),
        (AF.lfilter, "a_coeffs", (X, C.double(), C)),
        (AF.lfilter, "a_coeffs", (X, C[:0], C[:0])),
        (AF.lfilter, "b_coeffs", (X, C, C[:2])),
        (AF.lfilter, "waveform", (X, C.expand(3, 3), C.expand(3, 3))),
    ],
)
def test_bad_arguments_of_the_peers_signatures(function: Any, name: str, arguments: tuple[Any, ...]) -> None:
    expected = RuntimeError if all(isinstance(argument, Tensor) for argument in arguments) else TypeError
    with pytest.raises(expected, match=rf"^{name} (has|is)"):
        function(*arguments)
