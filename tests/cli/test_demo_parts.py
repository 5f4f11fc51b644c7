import copy
import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from aigc_fast.bench import stock
from aigc_fast.cli.demo.compare import Row, prove_parity
from aigc_fast.optimize import optimize
from aigc_fast.runtime.timing import Timing, interleaved


@pytest.mark.parametrize("slowness", [1, 1000])
def test_timing_tells_quartiles_of_every_way(slowness, monkeypatch):
    """By a clock that the calls themselves advance, on a fast machine and on a slow one."""
    now, calls = 0.0, []

    def taking(name, milliseconds):
        def call():
            nonlocal now
            calls.append(name)
            now += 1e-3 * slowness * next(milliseconds)

        return call

    monkeypatch.setattr("aigc_fast.runtime.timing.time", SimpleNamespace(perf_counter=lambda: now))
    found = interleaved({"a": taking("a", itertools.repeat(1)), "b": taking("b", itertools.cycle([2, 4]))}, seconds=0.5)
    assert list(found) == ["a", "b"]
    assert (found["a"].low, found["a"].median, found["a"].high) == pytest.approx((slowness,) * 3)
    low, median, high = found["b"].low, found["b"].median, found["b"].high
    assert 2 * slowness - 1e-6 <= low < median < high <= 4 * slowness + 1e-6
    # To warm up, to guess the time, and in each round once more before the calls that count.
    assert calls.count("a") == (2 + 5 * (1 + 50) if slowness == 1 else 2 + 1 + 2)


def test_ratio_is_against_the_better_layout():
    row = Row("g", "n", Timing(4, 4, 4), Timing(3, 3, 3), Timing(2, 2, 2), 0, 0)
    assert row.ratio == 1.5
    assert Row("g", "n", Timing(4, 4, 4), None, Timing(2, 2, 2), 0, 0).ratio == 2


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    plain = stock.StockDCGAN()
    return plain, optimize(copy.deepcopy(plain)), torch.rand(4, 1, 28, 28) * 2 - 1, torch.randn(4, stock.LATENT)


def test_parity_holds_for_optimize(pair):
    found = prove_parity(*pair)
    assert found.error <= max(2 * found.stock_error, 2e-6)
    assert found.difference < 1e-5
    assert found.same_keys
    assert found.same_values
    assert found.loads_back


def test_parity_sees_a_wrong_layer_and_a_wrong_state(pair):
    plain, fast, images, z = pair
    wrong = copy.deepcopy(fast)
    with torch.no_grad():
        wrong.generator[4].weight[0, 0, 0, 0] += 0.1
    found = prove_parity(plain, wrong, images, z)
    assert found.error > 1e-4
    assert not found.same_values
    renamed = copy.deepcopy(fast)
    renamed.extra = nn.Linear(1, 1)
    found = prove_parity(plain, renamed, images, z)
    assert not found.same_keys
    assert not found.loads_back
