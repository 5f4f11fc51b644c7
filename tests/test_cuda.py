"""The CUDA and Triton kernels: on a card where there is one, Triton's in its interpreter everywhere."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch
from cases import FLOORS, relative_error
from torch import Tensor

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.ops.random import reference as numbers
from aigc_fast.ops.random.operators import DROPOUT, NORMAL, UNIFORM
from aigc_fast.ops.reparameterize.operators import (
    KL_STANDARD_NORMAL,
    REPARAMETERIZE,
    REPARAMETERIZE_BACKWARD,
    REPARAMETERIZE_KL,
    REPARAMETERIZE_KL_BACKWARD,
)
from aigc_fast.runtime import native

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SIZES = [1, 17, 2051]
LATENTS = [(5,), (16, 2), (3, 1023), (2, 2050)]
# The interpreter cuts off what it should round.
FLOORS_HERE = {**FLOORS, torch.bfloat16: 1e-2 if INTERPRETED else FLOORS[torch.bfloat16]}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

ONLY_INTERPRETED = pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter's own process")
RUNS = [
    pytest.param(("cuda", "cuda"), marks=pytest.mark.gpu),
    pytest.param(("triton", "cuda"), marks=pytest.mark.gpu),
    pytest.param(("triton", "cpu"), marks=ONLY_INTERPRETED),
]


@pytest.fixture(params=RUNS, ids=["cuda", "triton", "triton-interpreted"])
def device(request: pytest.FixtureRequest):
    name, device = request.param
    if name == "cuda" and native.cuda is None:
        pytest.skip(native.cuda_reason())
    with aigc_fast.backend(name):
        yield device


def test_module_imports_where_it_was_built():
    if native.cuda is None:
        pytest.skip(native.cuda_reason())
    info = native.cuda.build_info()
    assert info["version"] == aigc_fast.__version__
    assert "80" in info["architectures"]
    assert native.cuda.reparameterize_workspace(3, 100) == 0
    assert native.cuda.reparameterize_workspace(3, 5000) == 9


def test_reasons_say_what_is_missing():
    reasons = DROPOUT.explain(torch.ones(3), torch.zeros(2, dtype=torch.int64), 0.5).reasons
    assert reasons["cuda"] == "the tensors are on cpu"
    assert reasons["triton"] == (None if INTERPRETED else "the tensors are on cpu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_numbers_are_those_of_the_reference(device, dtype, n):
    key = torch.tensor([5, 2**32 - 3])
    there = key.to(device)
    input = torch.randn(n).to(dtype)
    normal, uniform = NORMAL([n], there, dtype).cpu(), UNIFORM([n], there, dtype).cpu()
    dropped = DROPOUT(input.to(device), there, 0.3).cpu()
    assert relative_error(normal, numbers.normal([n], key, torch.float64)) <= FLOORS_HERE[dtype]
    assert relative_error(uniform, numbers.uniform([n], key, torch.float64)) <= FLOORS_HERE[dtype]
    assert torch.equal(dropped == 0, numbers.dropout(input, key, 0.3) == 0)
    assert relative_error(dropped, numbers.dropout(input, key, 0.3)) <= FLOORS_HERE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", LATENTS, ids=str)
def test_samples_divergences_and_gradients(device, dtype, shape):
    key = torch.tensor([7, 2**33 - 1])
    mu, logvar, upstream = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    rows = torch.randn(shape[0]).to(dtype)

    def run(place: str, dtype: torch.dtype) -> list[Tensor]:
        m, l = (tensor.detach().to(place, dtype).requires_grad_() for tensor in (mu, logvar))
        at = key.to(place)
        outputs = *REPARAMETERIZE_KL(m, l, at), REPARAMETERIZE(m, l, at), KL_STANDARD_NORMAL(m, l)
        given = [g.to(place, dtype) for g in (upstream, rows, upstream, rows)]
        return [tensor.detach().cpu() for tensor in (*outputs, *torch.autograd.grad(outputs, (m, l), given))]

    found = run(device, dtype)
    with aigc_fast.backend("reference"):
        expected = run("cpu", torch.float64)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        assert relative_error(a, b) <= 2 * FLOORS_HERE[dtype]


@pytest.mark.parametrize("on_thread", [False, True], ids=["outside", "thread"])
def test_backward_launches_the_kernels_of_forward(device, on_thread, monkeypatch):
    launched = []
    for op in (DROPOUT, REPARAMETERIZE_BACKWARD, REPARAMETERIZE_KL_BACKWARD):
        for name, backend in op.choice._backends.items():

            def count(*args, name=name, run=backend.run):
                launched.append(name)
                return run(*args)

            monkeypatch.setitem(op.choice._backends, name, replace(backend, run=count))
    mu, logvar = (torch.randn(3, 17, device=device, requires_grad=True) for _ in range(2))
    outputs = AF.dropout(mu, 0.5), AF.reparameterize(mu, logvar), *AF.reparameterize_kl(mu, logvar)
    forced, launched[:] = launched[0], []

    def backward() -> None:
        with aigc_fast.backend("reference"):
            torch.autograd.backward([output.sum() for output in outputs])

    thread = threading.Thread(target=backward)
    thread.start() if on_thread else backward()
    if on_thread:
        thread.join()
    assert launched == [forced] * 3


def test_layouts_and_empty_tensors(device):
    key = torch.tensor([1, 2]).to(device)
    input = torch.randn(2, 3, 4, 5).to(device, memory_format=torch.channels_last)
    output = DROPOUT(input, key, 0.4)
    assert output.stride() == input.stride()
    assert torch.equal(output.cpu(), numbers.dropout(input.cpu().contiguous(), key.cpu(), 0.4))
    empty = torch.zeros(3, 0, device=device)
    assert torch.equal(KL_STANDARD_NORMAL(empty, empty).cpu(), torch.zeros(3))
    assert NORMAL([0, 2], key, torch.float32).shape == (0, 2)


@pytest.mark.skipif(INTERPRETED, reason="already in the interpreter")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is not installed")
def test_triton_kernels_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "interpreted"]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


@pytest.mark.gpu
class TestGenerators:
    def test_default_generator_repeats_and_advances(self):
        torch.manual_seed(3)
        first, second = AF.randn(100, device="cuda"), AF.randn(100, device="cuda")
        torch.manual_seed(3)
        assert torch.equal(AF.randn(100, device="cuda"), first)
        assert not torch.equal(first, second)

    def test_cpu_generator_gives_the_numbers_of_the_cpu(self):
        here = AF.randn(1000, generator=torch.Generator().manual_seed(5))
        there = AF.randn(1000, generator=torch.Generator().manual_seed(5), device="cuda")
        assert relative_error(there.cpu(), here) < FLOORS[torch.float32]

    def test_cuda_generator_is_refused_on_the_cpu(self):
        with pytest.raises(RuntimeError, match="generator: got one of device cuda"):
            AF.randn(3, generator=torch.Generator("cuda"))

    def test_cuda_graphs_draw_anew_at_every_replay(self):
        input = torch.ones(1000, device="cuda")
        AF.dropout(input, 0.5)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = AF.dropout(input, 0.5)
        graph.replay()
        first = output.clone()
        graph.replay()
        assert not torch.equal(first, output)

    def test_work_goes_to_the_current_stream(self):
        input, stream = torch.ones(1 << 22, device="cuda"), torch.cuda.Stream()
        with torch.cuda.stream(stream):
            output = AF.dropout(input.mul(2), 0.5)
        stream.synchronize()
        assert set(output.unique().tolist()) == {0.0, 4.0}
