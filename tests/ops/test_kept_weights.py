"""Packed weights, kept from call to call: every change of a weight is seen, whatever made it."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as TF
from parity import relative_error
from torch import Tensor, nn

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.ops.conv_transpose import cpu
from aigc_fast.runtime import kept, memory, native
from aigc_fast.runtime.lowered import lowered

pytestmark = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))

# (input, weight): many products with each element, and so few that a part of the weight stands for all of it.
MANY, FEW = ((8, 64, 16, 16), (64, 128, 4, 4)), ((1, 256, 4, 4), (256, 128, 4, 4))


def assert_sees(change: Callable[[Tensor], None], shapes: tuple[tuple[int, ...], ...]) -> None:
    input, weight = (torch.randn(shape) for shape in shapes)
    for _ in range(3):
        before = AF.conv_transpose2d(input, weight, None, 2, 1)
    change(weight)
    found = AF.conv_transpose2d(input, weight, None, 2, 1)
    expected = TF.conv_transpose2d(input, weight, None, 2, 1)
    assert not torch.equal(found, before)
    assert relative_error(found, expected) < 2e-6


def zero_an_output_channel(weight: Tensor) -> None:
    weight.data[:, 7] = 0


def clip(weight: Tensor) -> None:
    weight.data.clamp_(-2.5, 2.5)


def negate(weight: Tensor) -> None:
    weight.data.neg_()


def swap_two(weight: Tensor) -> None:
    flat = weight.numpy().reshape(-1)
    flat[[0, 4096]] = flat[[4096, 0]]


def nudge_one(weight: Tensor) -> None:
    weight.numpy().reshape(-1)[12345] += 100


@pytest.mark.parametrize("change", [zero_an_output_channel, clip, negate, swap_two, nudge_one])
def test_any_write(change: Callable[[Tensor], None]) -> None:
    assert_sees(change, MANY)


@pytest.mark.parametrize("change", [zero_an_output_channel, negate])
def test_writes_in_a_pattern_where_products_are_few(change: Callable[[Tensor], None]) -> None:
    assert_sees(change, FEW)


@pytest.mark.parametrize("bytes", [1, 6, 64, 4096, (1 << 18) - 4, (1 << 18) + 130, 3 << 18])
def test_a_fingerprint_reads_every_byte_on_every_level(bytes: int, isa: str) -> None:
    memory = torch.randint(0, 256, (bytes,), dtype=torch.uint8)
    before = kept.fingerprint(memory, kept.MANY_USES)
    assert kept.fingerprint(memory.clone(), kept.MANY_USES) == before
    for at in {0, bytes // 3, bytes - 1}:
        memory[at] += 1
        assert kept.fingerprint(memory, kept.MANY_USES) != before
        memory[at] -= 1


def test_a_called_weight_can_be_swapped() -> None:
    input, module = torch.randn(8, 64, 16, 16), nn.ConvTranspose2d(64, 128, 4, 2, 1)
    other = torch.randn(64, 128, 4, 4)
    with torch.no_grad():
        for _ in range(3):
            AF.conv_transpose2d(input, module.weight, None, 2, 1)
        torch.utils.swap_tensors(module.weight, nn.Parameter(other.clone()))
        found = AF.conv_transpose2d(input, module.weight, None, 2, 1)
    assert relative_error(found, TF.conv_transpose2d(input, other, None, 2, 1)) < 2e-6


def test_what_was_kept_goes_with_the_weight() -> None:
    gc.collect()
    before = kept.store.total()
    input, weight = (torch.randn(shape) for shape in MANY)
    for _ in range(3):
        AF.conv_transpose2d(input, weight, None, 2, 1)
    assert kept.store.total() == before + kept.store.bytes_of([weight]) > before
    del weight
    gc.collect()
    assert kept.store.total() == before


# Of 256 KiB, four times as much for Winograd's windows; too few products with each element to pack it at every call.
WINDOWS = (1, 64, 16, 16), (64, 64, 4, 4)
DIRECT_BYTES, WINDOW_BYTES = 1 << 18, 1 << 20


class Counter:
    """What was packed and what ran, by algorithm."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.packed: list[int] = []
        self.ran: list[int] = []
        kernels = native.kernels()
        pack, forward = kernels.conv_pack, kernels.conv_forward
        monkeypatch.setattr(kernels, "conv_pack", lambda *args: (self.packed.append(args[6]), pack(*args))[1])
        monkeypatch.setattr(kernels, "conv_forward", lambda *args: (self.ran.append(args[9]), forward(*args))[1])

    def clear(self) -> None:
        self.packed.clear()
        self.ran.clear()


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    return Counter(monkeypatch)


def passes(weights: list[Tensor], count: int) -> None:
    input = torch.randn(WINDOWS[0])
    expected = [TF.conv_transpose2d(input, weight, None, 2, 1) for weight in weights]
    for _ in range(count):
        for weight, wanted in zip(weights, expected, strict=True):
            assert relative_error(AF.conv_transpose2d(input, weight, None, 2, 1), wanted) < 2e-6


def test_a_weight_gets_the_algorithm_whose_pack_fits(room: Callable[[int], None], counter: Counter) -> None:
    weight, other = torch.randn(WINDOWS[1]), torch.randn(4)
    kept.store.hold(kept.store.slot_of(other, "key"), WINDOW_BYTES)
    room(WINDOW_BYTES // 2)
    passes([weight], 4)
    assert counter.packed == [cpu.WINOGRAD, cpu.DIRECT, cpu.DIRECT]
    assert counter.ran == [cpu.WINOGRAD, cpu.DIRECT, cpu.DIRECT, cpu.DIRECT]
    assert kept.store.bytes_of([weight]) == DIRECT_BYTES
    counter.clear()
    weight *= 2
    passes([weight], 2)
    assert counter.ran == [cpu.DIRECT, cpu.DIRECT]


def test_a_weight_of_no_room_is_pytorchs(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(WINDOWS[1])
    monkeypatch.setattr(kept.store, "cap", 0)
    passes([weight], 4)
    assert counter.packed == counter.ran == []
    assert kept.store.bytes_of([weight]) == 0


def test_a_forced_backend_runs_without_room(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept.store, "cap", 0)
    with aigc_fast.backend("cpu"):
        passes([torch.randn(WINDOWS[1])], 2)
    assert counter.ran == [cpu.WINOGRAD, cpu.WINOGRAD]


def test_a_model_larger_than_the_cap_is_packed_once(room: Callable[[int], None], counter: Counter) -> None:
    weights = [torch.randn(WINDOWS[1]) for _ in range(8)]
    room(3 * WINDOW_BYTES + 2 * DIRECT_BYTES + 1000)
    passes(weights, 3)
    # For the first call alone, and what is kept.
    assert counter.packed.count(cpu.WINOGRAD) == 8 + 3
    assert counter.packed.count(cpu.DIRECT) == 5 + 2
    counter.clear()
    passes(weights, 5)
    assert counter.packed == []
    assert (counter.ran.count(cpu.WINOGRAD), counter.ran.count(cpu.DIRECT)) == (15, 10)
    assert sum(kept.store.bytes_of([weight]) for weight in weights) == 3 * WINDOW_BYTES + 2 * DIRECT_BYTES


def test_weights_that_are_new_at_every_call_take_no_room(counter: Counter) -> None:
    weight = torch.randn(WINDOWS[1], requires_grad=True)
    for _ in range(3):
        AF.conv_transpose2d(torch.randn(WINDOWS[0]), weight, None, 2, 1)
        with torch.no_grad():
            weight += 1
    assert counter.ran == [cpu.WINOGRAD] * 3
    assert kept.store.bytes_of([weight]) == 0


def generator() -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(64, 64, 4, 2, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 64, 4, 2, 1),
    ).eval()


def run(model: nn.Module, times: int = 3) -> Tensor:
    with torch.no_grad():
        for _ in range(times):
            found = model(torch.ones(WINDOWS[0]))
    return found


def test_the_report_tells_what_is_kept_and_restore_frees_it() -> None:
    gc.collect()
    before = kept.store.total()
    model = aigc_fast.optimize(generator())
    assert aigc_fast.report(model).kept_bytes == 0
    assert "packed weights" not in str(aigc_fast.report(model))
    run(model)
    report = aigc_fast.report(model)
    # The folded weight and bias, its pack, and the second layer's.
    assert report.kept_bytes == DIRECT_BYTES + 64 * 4 + 2 * WINDOW_BYTES == kept.store.total() - before
    assert str(report).endswith("packed weights: 2.3 MiB are kept")
    aigc_fast.restore(model)
    assert kept.store.total() == before
    assert aigc_fast.report(model).kept_bytes == 0


def test_all_that_is_kept_dies_with_the_model() -> None:
    gc.collect()
    before = kept.store.total()
    model = aigc_fast.optimize(generator())
    run(model)
    assert kept.store.total() > before
    del model
    gc.collect()
    assert kept.store.total() == before


def test_a_norm_is_not_folded_where_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept.store, "cap", 0)
    model = generator()
    expected = run(model)
    aigc_fast.optimize(model)
    assert relative_error(run(model), expected) < 2e-6
    assert aigc_fast.report(model).kept_bytes == 0


def test_what_was_folded_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = aigc_fast.optimize(nn.Sequential(nn.Conv2d(32, 48, 3, padding=1), nn.BatchNorm2d(48)).eval())
    input, own = torch.randn(2, 32, 24, 24), {tensor.data_ptr() for tensor in model.state_dict().values()}
    looked_at: list[int] = []
    digest = native.kernels().digest
    monkeypatch.setattr(native.kernels(), "digest", lambda *args: (looked_at.append(args[0]), digest(*args))[1])
    with torch.no_grad():
        for _ in range(3):
            model(input)
    assert looked_at
    assert set(looked_at) <= own


def test_memory_that_is_kept_lies_in_whole_pages_where_it_is_large(room: Callable[[int], None]) -> None:
    room(1 << 30)
    input, weight = torch.randn(1, 256, 16, 16), torch.randn(256, 256, 4, 4)
    for _ in range(3):
        AF.conv_transpose2d(input, weight, None, 2, 1)
    assert kept.store.bytes_of([weight]) == 8 * memory.HUGE_PAGE


class TestCasts:
    """What autocast makes of a weight: kept, without a gradient, as long as the weight is what it was."""

    @pytest.mark.parametrize("change", [zero_an_output_channel, clip, negate, swap_two, nudge_one])
    def test_any_write(self, change: Callable[[Tensor], None]) -> None:
        weight = torch.randn(MANY[1])
        made = [kept.cast(weight, torch.bfloat16, 1 << 10) for _ in range(3)]
        assert made[0] is made[1] is made[2]
        change(weight)
        assert torch.equal(kept.cast(weight, torch.bfloat16, 1 << 10), weight.bfloat16())

    def test_layers_under_autocast_have_one(self) -> None:
        weight = torch.randn(MANY[1], requires_grad=True)
        input = torch.randn(MANY[0])
        seen = []
        with torch.autocast("cpu", torch.bfloat16):
            for graded in (False, False, True):
                with torch.set_grad_enabled(graded):
                    seen.append(lowered(input, weight, None, 1 << 10)[1])
        assert seen[0] is seen[1]
        assert seen[2].requires_grad
        assert torch.equal(seen[0], seen[2])

    def test_a_weight_with_gaps_is_cast_at_every_call(self) -> None:
        weight = torch.randn(8, 8)[:, ::2]
        assert torch.equal(kept.cast(weight, torch.bfloat16, 1), weight.bfloat16())
        assert kept.cast(weight, torch.bfloat16, 1) is not kept.cast(weight, torch.bfloat16, 1)
