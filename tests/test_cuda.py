"""The CUDA module, what a launch is told, and what is a card's alone: generators, graphs and streams.

All else runs in ops/test_places.py, on a card and as the CPU emulates it.
"""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from parity import relative_error
from places import EMULATOR
from torch import Tensor

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.ops.random import reference
from aigc_fast.ops.random.operators import DROPOUT, NORMAL, UNIFORM, draw_key
from aigc_fast.ops.recursion.operators import RECURSION
from aigc_fast.ops.reparameterize.operators import REPARAMETERIZE
from aigc_fast.runtime import native
from aigc_fast.runtime.dtypes import DTYPES

emulated = pytest.mark.skipif(not native.is_emulated or native.cuda is None, reason="AIGC_FAST_CUDA_HOST=1 is not set")


def test_module_imports_where_it_was_built() -> None:
    if native.cuda is None:
        pytest.skip(native.cuda_reason())
    info = native.cuda.build_info()
    assert info["version"] == aigc_fast.__version__
    assert ("host" if native.is_emulated else "80") in info["architectures"]
    assert native.cuda.reparameterize_workspace(3, 100) == 0
    assert native.cuda.reparameterize_workspace(3, 5000) == 9


KEYED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "normal": lambda tensor, key: NORMAL(tensor.shape, key, tensor.dtype),
    "uniform": lambda tensor, key: UNIFORM(tensor.shape, key, tensor.dtype),
    "dropout": lambda tensor, key: DROPOUT(tensor, key, 0.5),
    "reparameterize": lambda tensor, key: REPARAMETERIZE(tensor, tensor, key),
}


@pytest.mark.parametrize("function", KEYED)
@pytest.mark.parametrize(
    ("key", "message"),
    [
        (torch.ones(2, dtype=torch.int32), r"has shape \(2,\), torch.int32: expected \(2,\), torch.int64"),
        (torch.ones(1, dtype=torch.int64), r"has shape \(1,\), torch.int64: expected \(2,\), torch.int64"),
    ],
)
def test_a_key_that_a_kernel_would_read_beyond_is_refused(
    function: str, key: Tensor, message: str, backend: str
) -> None:
    with pytest.raises(RuntimeError, match=f"philox_key {message}"):
        KEYED[function](torch.ones(8), key)


@pytest.mark.parametrize("function", ["dropout", "reparameterize"])
def test_a_key_on_another_device_is_refused(function: str) -> None:
    with pytest.raises(RuntimeError, match="philox_key is on meta: expected the tensors' device cpu"):
        KEYED[function](torch.ones(8), torch.ones(2, dtype=torch.int64, device="meta"))


def owners(address: int) -> int:
    """How many tensors lie at an address."""
    return sum(type(found) is Tensor and found.data_ptr() == address for found in gc.get_objects())


@pytest.mark.parametrize("kernel", ["normal", "uniform"])
@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=emulated, id="cuda-emulated")])
def test_a_key_lives_until_its_kernel_has_run(kernel: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = native.kernels() if place == "cpu" else native.cuda
    if not hasattr(library, kernel):
        pytest.skip(native.cpu_reason())
    run, seen = getattr(library, kernel), []

    def watched(*args: Any) -> Any:
        seen.append(owners(args[3]))
        return run(*args)

    monkeypatch.setattr(library, kernel, watched)
    key = torch.tensor([[5, 0], [7, 0]])[:, 0]
    with aigc_fast.backend(place):
        KEYED[kernel](torch.empty(100), key)
    assert seen == [1]


def test_a_generator_of_the_cpu_is_refused_in_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    like = type("OnCuda", (), {"device": torch.device("cuda:0")})()
    with pytest.raises(RuntimeError, match="generator is on cpu while a CUDA graph is captured"):
        draw_key(like, torch.Generator())


@emulated
class TestLaunches:
    """What kernels are launched with, as the CPU emulates them."""

    def normal(self, out: Tensor, device: int, stream: int) -> dict[str, Any]:
        key = torch.tensor([1, 2])
        native.cuda.normal(out.data_ptr(), out.numel(), DTYPES[out.dtype], key.data_ptr(), device, stream)
        return native.cuda.last_launch()

    def test_emulated_launches_are_told_device_and_stream(self) -> None:
        found = self.normal(torch.empty(5), 3, 0x1234)
        assert (found["kernel"], found["device"], found["stream"]) == ("normal", 3, 0x1234)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_emulated_grids_have_an_end(self, dtype: torch.dtype) -> None:
        assert self.normal(torch.empty(1, dtype=dtype), 0, 0)["blocks"] == 1
        assert native.cuda.last_launch()["threads"] == 256

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("offset", range(9))
    def test_emulated_kernels_take_any_address(self, dtype: torch.dtype, offset: int) -> None:
        memory = torch.full((40,), 7.0).to(dtype)
        self.normal(memory[offset : offset + 21], 0, 0)
        expected = reference.normal([21], torch.tensor([1, 2]), torch.float64)
        found = memory[offset : offset + 21].double()
        assert torch.allclose(found, expected, rtol=torch.finfo(dtype).eps, atol=1e-6)
        rest = torch.cat([memory[:offset], memory[offset + 21 :]])
        assert torch.equal(rest, torch.full_like(rest, 7.0))

    def test_emulated_orders_give_the_same_bits(self) -> None:
        mu, logvar = torch.randn(7, 5001), torch.randn(7, 5001)
        found = []
        for place in EMULATOR:
            torch.manual_seed(1)
            with place.in_force():
                found.append(torch.cat([part.reshape(-1) for part in AF.reparameterize_kl(mu, logvar)]))
        assert all(torch.equal(other, found[0]) for other in found[1:])


@pytest.mark.skipif(importlib.util.find_spec("aigc_fast._C_cuda_host") is None, reason="_C_cuda_host is not built")
def test_the_emulation_must_be_asked_for() -> None:
    assert native.is_emulated == (native.cuda is not None and native.cuda.__name__ == "aigc_fast._C_cuda_host")
    if not native.is_emulated:
        with aigc_fast.backend("cuda"), pytest.raises(RuntimeError, match="cuda: the tensors are on cpu"):
            AF.dropout(torch.ones(3))


ON_MANY_PROCESSORS = pytest.mark.parametrize(
    ("device", "much"),
    [pytest.param("cpu", 1, marks=emulated, id="emulated"), pytest.param("cuda", 512, marks=pytest.mark.gpu)],
)


class TestBlocksThatWait:
    """Blocks that wait for each other, more of them than a card has processors where there is one, time after time."""

    @pytest.fixture(autouse=True)
    def _has_kernels(self) -> None:
        if (reason := native.cuda_reason() or native.cpu_reason()) is not None:
            pytest.skip(reason)

    @ON_MANY_PROCESSORS
    def test_series_in_one_pass(self, device: str, much: int) -> None:
        x, coeffs, state = torch.randn(3, 8192 * much + 5), torch.tensor([[0.9], [-0.95], [0.5]]), torch.randn(3, 1)
        with aigc_fast.backend("cpu"):
            exact = RECURSION(x.double(), coeffs.double(), state.double(), 1)
        given = [tensor.to(device) for tensor in (x, coeffs, state)]
        with aigc_fast.backend("cuda"):
            first, *others = (RECURSION(*given, 1).cpu() for _ in range(5))
        assert relative_error(first, exact) < 1e-5
        assert all(torch.equal(first, other) for other in others)

    @ON_MANY_PROCESSORS
    @pytest.mark.parametrize(("mode", "gates"), [("lstm", 4), ("gru", 3)])
    def test_networks(self, mode: str, gates: int, device: str, much: int) -> None:
        hidden, steps = 2 * much + 14, 3 + much // 16
        shapes = (gates * hidden, 5), (gates * hidden, hidden), (gates * hidden,), (gates * hidden,)
        x, *params = torch.randn(steps, 4, 5), *(torch.randn(shape) / hidden**0.5 for shape in shapes)

        def run(home: Any, *tensors: Tensor) -> tuple[Tensor, list[Tensor]]:
            leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
            zeros = leaves[0].new_zeros(1, 4, hidden)
            states = (zeros, zeros) if mode == "lstm" else zeros
            output = getattr(home, mode)(leaves[0], states, leaves[1:], True, 1, 0.0, True, False, False)[0]
            return output.detach().cpu(), [grad.cpu() for grad in torch.autograd.grad(output.sin().sum(), leaves)]

        exact, gradients = run(torch._VF, *(tensor.double() for tensor in (x, *params)))
        with aigc_fast.backend("cuda"):
            first, *others = (run(AF, *(tensor.to(device) for tensor in (x, *params))) for _ in range(5))
        assert relative_error(first[0], exact) < 1e-5
        assert all(torch.equal(first[0], other) for other, _ in others)
        for ours, wanted in zip(first[1], gradients, strict=True):
            assert relative_error(ours, wanted) < 1e-4


@pytest.mark.gpu
class TestCard:
    def test_cuda_generator_is_refused_on_the_cpu(self) -> None:
        with pytest.raises(RuntimeError, match="generator is on cuda"):
            AF.randn(3, generator=torch.Generator("cuda"))

    def test_a_key_on_the_cpu_is_refused(self) -> None:
        for function in ("dropout", "reparameterize"):
            with pytest.raises(RuntimeError, match="philox_key is on cpu: expected the tensors' device cuda:0"):
                KEYED[function](torch.ones(8, device="cuda"), torch.ones(2, dtype=torch.int64))

    def test_cuda_graphs_draw_anew_at_every_replay(self) -> None:
        input = torch.ones(1000, device="cuda")
        AF.dropout(input, 0.5)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = AF.dropout(input, 0.5)
        graph.replay()
        first = output.clone()
        graph.replay()
        assert not torch.equal(first, output)

    def test_work_goes_to_the_current_stream(self, monkeypatch: pytest.MonkeyPatch) -> None:
        if native.cuda is None:
            pytest.skip(native.cuda_reason())
        run, queues = native.cuda.dropout, []

        def dropout(*args: Any) -> Any:
            queues.append(args[-2:])
            return run(*args)

        monkeypatch.setattr(native.cuda, "dropout", dropout)
        input, stream = torch.full((1 << 22,), 2.0, device="cuda"), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), aigc_fast.backend("cuda"):
            output = AF.dropout(input, 0.5)
        torch.cuda.current_stream().wait_stream(stream)
        assert queues == [(stream.device_index, stream.cuda_stream)]
        assert set(output.unique().tolist()) == {0.0, 4.0}

    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
    @pytest.mark.parametrize("backend", ["cuda", "triton"])
    def test_work_goes_to_the_tensors_device(self, backend: str) -> None:
        with aigc_fast.backend(backend):
            output = AF.dropout(torch.ones(1000, device="cuda:1"), 0.5)
        assert torch.cuda.current_device() == 0
        assert set(output.unique().tolist()) == {0.0, 2.0}
