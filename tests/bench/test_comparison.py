"""Two runs side by side, and what pages and selections are made of."""

import dataclasses

import pytest
import torch

from aigc_fast.bench.cases import WHOLE
from aigc_fast.bench.comparison import FASTER, SLOWER, WITH_PEER, compare
from aigc_fast.bench.page import page_of
from aigc_fast.bench.runner import Result, Row
from aigc_fast.bench.selection import kept_in, selected
from aigc_fast.bench.summary import summarised
from aigc_fast.runtime.timing import Timing

LIMITS = {"gemm_float32": 100e9, "gemm_bfloat16": 200e9, "read": 20e9, "copy": 10e9}
MACHINE = {"processor": "<P>", "level": "avx2", "threads": 2, "torch": "2.13.0", "aigc_fast": "0.1.0", "date": "today"}


def row(ours, peer, name="a case", op="attention", spread=0.01):
    times = [Timing(value, value * (1 - spread), value * (1 + spread)) for value in (ours, peer)]
    ratio = Timing(peer / ours, peer / ours, peer / ours)
    mine, theirs = {"aigc_fast": times[0]}, {"PyTorch": times[1]}
    return Row(op, name, "float32", "forward", mine, theirs, ratio, 1e-7, 2e-7, operations=1e9, nbytes=1e6)


def result(*rows, **facts):
    return Result(MACHINE | facts, LIMITS, rows)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (row(2, 4), row(1, 4), FASTER),
        (row(1, 4), row(2, 4), SLOWER),
        (row(2, 4), row(1, 2), WITH_PEER),
        (row(1, 2), row(2, 3.9), WITH_PEER),
        (row(1, 2), row(1.02, 2, spread=0.0), None),
        (row(1, 2, spread=0.5), row(1.5, 2, spread=0.2), None),
    ],
)
def test_a_change_is_told_where_the_quartiles_lie_apart_and_the_peer_stood_still(before, after, verdict):
    (change,) = compare(result(before), result(after)).changes
    assert change.verdict == verdict


def test_what_peers_scatter_between_the_runs_is_noise_for_ours():
    names = [f"case {index}" for index in range(6)]
    before = result(*(row(1, 4, name) for name in names), row(1, 4, "ours"))
    steady = result(*(row(1, 4, name) for name in names), row(1.2, 4, "ours"))
    scattered = (row(1, 5.2 if index % 2 else 3.2, name) for index, name in enumerate(names))
    uneasy = result(*scattered, row(1.2, 4, "ours"))
    assert [change.verdict for change in compare(before, steady).beyond_noise()] == [SLOWER]
    assert compare(before, uneasy).beyond_noise() == []


def test_what_only_one_run_has_and_what_differs_of_the_machines_is_told():
    found = compare(result(row(1, 1), row(1, 1, "gone")), result(row(1, 1), row(1, 1, "new"), threads=4))
    assert [label.split(",")[0] for label in (*found.only_before, *found.only_after)] == [
        "attention gone",
        "attention new",
    ]
    assert found.differing == {"threads": (2, 4)}
    assert found.beyond_noise() == []


def test_a_row_without_a_common_peer_is_judged_alone():
    other = dataclasses.replace(row(1, 4), peers={"scipy": Timing(1, 1, 1)})
    (change,) = compare(result(row(2, 4)), result(other)).changes
    assert (change.peer, change.verdict) == (None, FASTER)


def test_a_summary_is_the_geometric_mean_and_counts_gains_and_losses():
    found = summarised([row(1, 4), row(1, 1), row(2, 1)])
    assert found.speed == pytest.approx(2 ** (1 / 3))
    assert (found.rows, found.faster, found.lost, found.least) == (3, 1, 1, 0.5)


def test_a_page_has_every_row_the_roofline_and_what_changed_and_no_mark_up_of_others():
    now = result(row(1, 4), row(2, 1, "lost & found", "dropout"))
    text = page_of(now, compare(result(row(2, 4)), now)).html()
    assert "<P>" not in text
    assert "&lt;P&gt;" in text
    assert text.count("lost &amp; found") >= 3
    assert text.count('<polyline class="roof"') == 2
    # Ours and the peer of each row.
    assert text.count('class="dot filled') == text.count('class="dot hollow') == 2
    assert "1 of 1 rows changed beyond noise" in text
    assert ">faster<" in text
    without = result(dataclasses.replace(row(1, 4), operations=None))
    assert "roof" not in page_of(without).html().partition("</style>")[2]


def test_the_readmes_rows_of_layers_are_the_default_and_an_op_is_whole():
    default = selected()
    assert default
    assert all(case.in_readme and case.op not in WHOLE for case in default)
    assert {case.op for case in selected(models=True)} > {case.op for case in default}
    assert not all(case.in_readme for case in selected(["attention"]))
    assert {case.dtype for case in selected(["attention"], dtypes=["bfloat16"])} == {"bfloat16"}
    assert {case.op for case in selected(["attention"], models=True)} == {"attention", *WHOLE}
    assert [case.name for case in selected(only="64×2, float32, forward")] == ["64×2"]
    assert len(selected(every=True)) > len(selected(models=True))


def test_results_of_a_device_are_kept_apart_from_the_processors(tmp_path):
    case = selected(["dropout"])[0]
    (here,), (there,) = (kept_in(tmp_path, [case], torch.device(name)) for name in ("cpu", "meta"))
    assert there.name == "dropout-meta.json"
    assert here != there
