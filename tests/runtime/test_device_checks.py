"""Where kernels run and why not: devices, capabilities, and what a launch is told, without a card."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import aigc_fast
from aigc_fast.runtime import devices, native
from aigc_fast.runtime.machine import device_name

META = torch.device("meta")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is not there")


def on(device: str) -> Any:
    return SimpleNamespace(device=torch.device(device))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A CUDA library whose probe refuses cuda:1, on cards of which cuda:1 is old."""
    probed: list[int] = []

    def probe(ordinal: int) -> None:
        probed.append(ordinal)
        if ordinal == 1:
            raise RuntimeError("CUDA kernel probe: no kernel image is available for execution on the device")

    found = SimpleNamespace(probe=probe, probed=probed)
    monkeypatch.setattr(native, "cuda", found)
    monkeypatch.setattr(native, "is_emulated", False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda ordinal: (7, 5) if ordinal == 1 else (9, 0))
    asked = (native.device_reason, devices.too_old_for_triton)
    for each in asked:
        each.cache_clear()
    yield found
    for each in asked:
        each.cache_clear()


def test_a_device_is_asked_once_whether_it_runs_the_library(library: SimpleNamespace) -> None:
    for _ in range(3):
        assert devices.cuda(torch.float32, on("cuda:0")) is None
        assert "no kernel image is available" in devices.cuda(torch.float32, on("cuda:1"))
    assert library.probed == [0, 1]


@needs_triton
def test_an_old_device_is_not_tritons(library: SimpleNamespace) -> None:
    assert devices.triton(torch.float32, on("cuda:0")) is None
    assert devices.triton(torch.float32, on("cuda:1")) == (
        "cuda:1 has compute capability 7.5: Triton's kernels need 8.0"
    )


@needs_triton
@pytest.mark.parametrize("ordinal", [0, 1])
def test_info_and_doctor_ask_the_current_device(
    ordinal: int, library: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: ordinal)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    found = aigc_fast.info()["backends"]
    assert (found["cuda"] is None) == (found["triton"] is None) == (ordinal == 0)
    if ordinal == 1:
        assert "no kernel image is available" in found["cuda"]
        assert "compute capability 7.5" in found["triton"]


@pytest.mark.parametrize("reason", [devices.cuda, devices.triton])
def test_tensors_of_several_devices_are_refused(reason: Any, library: SimpleNamespace) -> None:
    assert reason(torch.float32, on("cuda:0"), None, on("cpu")) == "the tensors are on cuda:0 and cpu"
    assert reason(torch.float32, on("cuda:0"), on("cuda:1")) == "the tensors are on cuda:0 and cuda:1"
    assert library.probed == []


def test_a_launch_is_told_its_device_and_stream(monkeypatch: pytest.MonkeyPatch, library: SimpleNamespace) -> None:
    streams = {torch.device("cuda:1"): SimpleNamespace(device_index=1, cuda_stream=7)}
    monkeypatch.setattr(torch.cuda, "current_stream", streams.__getitem__)
    assert devices.queue(on("cuda:1")) == (1, 7)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, dict[str, Any], Any]]:
    """Triton kernels that are launched in place of running: name, grid, arguments by name, the device made current."""
    runtime = pytest.importorskip("triton.runtime")
    made_current: list[Any] = [None]
    found: list[tuple[str, Any, dict[str, Any], Any]] = []

    @contextmanager
    def device(wanted: Any) -> Iterator[None]:
        made_current.append(wanted)
        yield
        made_current.pop()

    def launcher(kernel: Any, grid: Any) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            given = dict(zip(kernel.arg_names, args, strict=False)) | options
            found.append((kernel.__name__, grid, given, made_current[-1]))

        return launch

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(runtime.KernelInterface, "__getitem__", launcher)
    return found


def meta(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(size, dtype=dtype, device=META)


@needs_triton
class TestTriton:
    """What Triton's kernels are launched with, for tensors that have no memory."""

    KEY = meta(2, dtype=torch.int64)

    @staticmethod
    def kernels(op: str) -> ModuleType:
        return importlib.import_module(f"aigc_fast.ops.{op}.triton")

    def launch_all(self, rows: int, columns: int) -> None:
        mu = meta(rows, columns)
        random, reparameterize = (self.kernels(op) for op in ("random", "reparameterize"))
        random.normal(mu, mu.shape, self.KEY, mu.dtype)
        random.uniform(mu, mu.shape, self.KEY, mu.dtype)
        random.dropout(mu, mu, self.KEY, 0.5)
        reparameterize.sample((mu, meta(rows)), mu, mu, self.KEY)
        reparameterize.sample((mu, None), mu, mu, self.KEY)
        reparameterize.differentiate((mu, mu), mu, meta(rows), mu, mu, self.KEY)

    def test_the_tensors_device_is_current(self, launched: list[Any]) -> None:
        self.launch_all(3, 50)
        assert [name for name, *_ in launched] == [
            "_normal",
            "_uniform",
            "_dropout",
            "_forward",
            "_forward",
            "_backward",
        ]
        assert {device for *_, device in launched} == {META}

    @pytest.mark.parametrize(("rows", "columns"), [(1, 1 << 37), (1 << 33, 3), (70_000, 70_001), (1 << 36, 1)])
    def test_a_grid_is_no_larger_than_a_card_takes(self, rows: int, columns: int, launched: list[Any]) -> None:
        self.launch_all(rows, columns)
        for name, grid, given, _ in launched:
            x, y = (*grid, 1)[:2]
            assert x <= 2**31 - 1, name
            assert y <= 65_535, name
            units = given["rows"] * given["blocks"] if "rows" in given else -(-given["n"] // given["SIZE"])
            assert x * y >= units, name

    def test_probabilities_and_sizes_share_a_kernel(self, launched: list[Any]) -> None:
        for p in (1e-9, 0.1, 0.25, 0.5, 0.75, 1 - 1e-9):
            self.kernels("random").dropout(meta(64), meta(64), self.KEY, p)
        assert all(-(2**31) <= given["below"] < 2**31 for _, _, given, _ in launched)
        for op, kernels in {
            "random": ("_normal", "_uniform", "_dropout"),
            "reparameterize": ("_forward", "_backward"),
        }.items():
            for name in kernels:
                kernel = getattr(self.kernels(op), name)
                sizes = {"n", "below", "rows", "columns", "blocks"} & set(kernel.arg_names)
                assert sizes == {param.name for param in kernel.params if param.do_not_specialize}


def test_measurements_name_a_card_by_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, device.index))
    assert [device_name(torch.device(name)) for name in ("cpu", "meta", "cuda:0", "cuda:1")] == [
        "cpu",
        "meta",
        "card 0 9.0",
        "card 1 9.1",
    ]
    device_name.cache_clear()
