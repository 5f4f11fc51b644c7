"""Measured choice: which way is kept, what a file brings, and when nothing is measured. Times are given, not taken."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as TF
from parity import relative_error
from test_backends import needs_native, python
from torch import Tensor, nn
from watching import launches

import aigc_fast
from aigc_fast import functional as AF
from aigc_fast.runtime import tuning
from aigc_fast.runtime.operator import operators
from aigc_fast.runtime.timing import Timing

pytestmark = needs_native

CONV, TRANSPOSED = "conv2d", "conv_transpose2d"
ATTENTION = "scaled_dot_product_attention"
FORWARD = {CONV: "conv_forward", TRANSPOSED: "conv_forward", ATTENTION: "attention"}
# In no other test, whose choice this one's would be.
SHAPES = {
    CONV: ((3, 41, 13, 17), (43, 41, 3, 3)),
    TRANSPOSED: ((3, 41, 13, 17), (41, 43, 3, 3)),
    ATTENTION: ((1, 3, 131, 29),) * 3,
}


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, float]]:
    """What every way takes, in milliseconds; each is called once when it is measured, and then counted."""
    given = {"ours": 1.0, "pytorchs": 2.0, "measured": 0}

    def interleaved(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, Timing]:
        for call in calls.values():
            call()
        given["measured"] += 1
        return {name: Timing(given[name], given[name], given[name]) for name in calls}

    monkeypatch.setattr(tuning, "interleaved", interleaved)
    monkeypatch.setattr(tuning, "_of_all", False)
    monkeypatch.setattr(tuning, "_ops", set())
    monkeypatch.setenv(tuning.FOLDER_VARIABLE, str(tmp_path / "cache"))
    yield given
    for op in operators().values():
        op.choice.forget()


def _arguments(name: str, trained: bool, extra: int) -> list[Tensor]:
    first, *rest = SHAPES[name]
    # A size of its own for each test: what ran a signature is remembered as long as the process lives.
    shapes = [(*first[:2], first[2] + extra, first[3]), *rest]
    return [torch.randn(shape).requires_grad_(trained) for shape in shapes]


def _ran(name: str, *args: Tensor) -> bool:
    """Whether our forward kernel runs this call."""
    with launches() as called:
        getattr(AF, name)(*args)
    return FORWARD[name] in called


@pytest.mark.parametrize("faster", ["ours", "pytorchs"])
@pytest.mark.parametrize(
    ("name", "trained"),
    [(name, trained) for name in SHAPES for trained in (False, True) if name != ATTENTION or not trained],
)
def test_the_faster_way_is_kept(name: str, faster: str, trained: bool, times: dict[str, float]) -> None:
    times[faster] = 0.5
    args = _arguments(name, trained, 2 * (faster == "ours") + trained)
    with aigc_fast.tuning():
        measuring = getattr(AF, name)(*args)
        assert torch.equal(measuring, getattr(TF, name)(*args))
        assert times["measured"] == 1
        assert _ran(name, *args) == (faster == "ours")
    assert times["measured"] == 1
    assert _ran(name, *args) == (faster == "ours")
    explained = aigc_fast.explain(name, *args)
    assert explained.chosen == ("cpu" if faster == "ours" else "reference")
    if faster == "pytorchs":
        assert explained.reasons["cpu"] == "measured here: ours 1 ms, PyTorch's 0.5 ms"


@pytest.mark.parametrize("faster", ["ours", "pytorchs"])
def test_gradients_of_a_measured_call_are_right(faster: str, times: dict[str, float]) -> None:
    times[faster] = 0.5
    args = _arguments(CONV, True, 4 + (faster == "ours"))
    expected = torch.autograd.grad(TF.conv2d(*args).square().sum(), args)
    with aigc_fast.tuning():
        for _ in range(2):
            found = torch.autograd.grad(AF.conv2d(*args).square().sum(), args)
            for ours, theirs in zip(found, expected, strict=True):
                assert relative_error(ours, theirs) < 1e-5
    # The forward, its gradient to the input and that to the weight.
    assert times["measured"] == 3


def test_a_later_process_reads_what_was_measured(times: dict[str, float]) -> None:
    times["pytorchs"] = 0.5
    args = _arguments(CONV, False, 6)
    with aigc_fast.tuning():
        AF.conv2d(*args)
    shapes = [tuple(arg.shape) for arg in args]
    found = python(
        f"import torch, aigc_fast; torch.set_num_threads({torch.get_num_threads()})\n"
        f"print(aigc_fast.explain('conv2d', *map(torch.zeros, {shapes})))",
        **{tuning.FOLDER_VARIABLE: str(tuning.folder())},
    )
    assert "measured here: ours 1 ms, PyTorch's 0.5 ms" in found.stdout, found


@pytest.mark.parametrize("name", [CONV, ATTENTION])
def test_files_tell_of_which_ops_something_is_known(
    name: str, times: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    times["pytorchs"] = 0.5
    args = _arguments(name, False, 7)
    with aigc_fast.tuning():
        getattr(AF, name)(*args)
    monkeypatch.setattr(tuning, "_of_all", False)
    monkeypatch.setattr(tuning, "_ops", tuning._ops_in_files())
    for op in operators().values():
        op.choice.forget()
    assert [tuning.knows(op) for op in ("conv", "attention", "layer_norm")] == [name == CONV, name == ATTENTION, False]
    assert not _ran(name, *args)


def test_the_environment_tunes_a_process(tmp_path: Path) -> None:
    code = (
        "import torch, aigc_fast\n"
        "from aigc_fast.runtime import tuning\n"
        "aigc_fast.functional.conv2d(torch.ones(2, 8, 20, 20), torch.ones(8, 8, 3, 3))\n"
        "print(len(tuning.measurements()))"
    )
    environment = {tuning.TUNE_VARIABLE: "1", tuning.FOLDER_VARIABLE: str(tmp_path)}
    assert python(code, **environment).stdout.split() == ["1"]
    refused = python(code, **environment | {tuning.TUNE_VARIABLE: "yes"})
    assert "AIGC_FAST_TUNE='yes': expected one of 0, 1" in refused.stderr


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"machine": {}, "measured": {}}', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_or_foreign_file_is_ignored_with_a_line(
    content: bytes, times: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    tuning.path().parent.mkdir()
    tuning.path().write_bytes(content)
    with caplog.at_level(logging.WARNING, "aigc_fast"):
        assert tuning.measurements() == {}
    (record,) = caplog.records
    assert str(tuning.path()) in record.getMessage()
    assert "\n" not in record.getMessage()


def test_other_processes_measurements_stay(times: dict[str, float]) -> None:
    with aigc_fast.tuning():
        AF.conv2d(*_arguments(CONV, False, 7))
        content = json.loads(tuning.path().read_text())
        content["measured"]["another"] = [3.0, 4.0]
        tuning.path().write_text(json.dumps(content))
        AF.conv2d(*_arguments(CONV, False, 8))
    content = json.loads(tuning.path().read_text())
    assert len(content["measured"]) == 3
    assert tuning.measurements()["another"] == tuning.Measured(3.0, 4.0)


def test_a_folder_that_cannot_be_written_is_told_and_the_choice_holds(
    times: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(tuning.FOLDER_VARIABLE, str(tmp_path / "file" / "cache"))
    times["pytorchs"] = 0.5
    args = _arguments(CONV, False, 9)
    with aigc_fast.tuning(), caplog.at_level(logging.WARNING, "aigc_fast"):
        AF.conv2d(*args)
        assert not _ran(CONV, *args)
        AF.conv2d(*_arguments(CONV, False, 10))
    assert caplog.text.count("measurements are not kept") == 1


def _deterministic(call: Callable[[], Any]) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        call()
    finally:
        torch.use_deterministic_algorithms(False)


def _forced(call: Callable[[], Any]) -> None:
    with aigc_fast.backend("cpu"):
        call()


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("way", [_deterministic, _forced])
def test_is_not_measured(way: Callable[..., None], name: str, times: dict[str, float]) -> None:
    args = _arguments(name, False, 10 + (way is _forced))
    with aigc_fast.tuning():
        way(lambda: getattr(AF, name)(*args))
    assert times["measured"] == 0


def test_what_pytorchs_function_takes_otherwise_is_not_measured(times: dict[str, float]) -> None:
    args = _arguments(ATTENTION, False, 12)
    with aigc_fast.tuning():
        AF.scaled_dot_product_attention(*args, is_causal=True, scale=-1.0)
        AF.scaled_dot_product_attention(*args, window=3)
        AF.scaled_dot_product_attention(*args, dropout_p=0.5)
        torch.func.vmap(AF.scaled_dot_product_attention)(*(arg.unsqueeze(0) for arg in args))
    assert times["measured"] == 0


def test_attention_keeps_its_second_derivative(times: dict[str, float]) -> None:
    times["pytorchs"] = 0.5
    args = _arguments(ATTENTION, True, 15)
    with aigc_fast.tuning():
        for _ in range(2):
            (first,) = torch.autograd.grad(AF.scaled_dot_product_attention(*args).sum(), args[:1], create_graph=True)
            assert torch.autograd.grad(first.square().sum(), args[1])[0].isfinite().all()
    assert times["measured"] == 0


def test_lengths_that_do_not_fit_are_refused_while_tuning(times: dict[str, float]) -> None:
    query, key, value = _arguments(ATTENTION, False, 16)
    with aigc_fast.tuning(), pytest.raises(RuntimeError, match="value has length"):
        AF.scaled_dot_product_attention(query, key, value[:, :, :-1])


def test_generators_are_left_as_they_were(times: dict[str, float]) -> None:
    before = torch.get_rng_state()
    with aigc_fast.tuning():
        AF.conv2d(torch.ones(3, 41, 32, 17), torch.ones(43, 41, 3, 3))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("trained", [False, True], ids=["eval", "train"])
def test_optimize_writes_what_it_finds(trained: bool, times: dict[str, float]) -> None:
    model = nn.Sequential(nn.Conv2d(5, 31, 3), nn.ReLU()).train(trained)
    aigc_fast.optimize(model, example_inputs=torch.randn(2, 5, 29 + trained, 31))
    assert any(call.startswith("conv(float32[2, 5,") for call in tuning.measurements())


def test_forgetting_drops_the_file_and_what_was_read(times: dict[str, float]) -> None:
    with aigc_fast.tuning():
        AF.conv2d(*_arguments(CONV, False, 14))
    assert tuning.measurements()
    tuning.forget()
    assert not tuning.path().exists()
    assert tuning.measurements() == {}
