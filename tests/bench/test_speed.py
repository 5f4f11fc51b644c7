"""The README's section on speed: made of kept results, and what those in the repository give."""

import dataclasses
from importlib import util
from pathlib import Path

import pytest

from aigc_fast.bench.cases import CASES, IN_README
from aigc_fast.bench.runner import Result, Row
from aigc_fast.bench.speed import END, START, TITLES, section, written
from aigc_fast.errors import UserError
from aigc_fast.runtime.timing import Timing

ROOT = Path(__file__).parents[2]
MACHINE = {
    "processor": "A processor",
    "level": "avx2",
    "threads": 2,
    "torch": "2.13.0",
    "aigc_fast": "0.1.0",
    "date": "2026-01-02",
    "peers": {"scipy": "1.2"},
}
LIMITS = {"gemm_float32": 100e9, "gemm_bfloat16": 200e9, "read": 20e9, "copy": 10e9}
SHOWN, HIDDEN = (
    next(case for case in CASES if case.op == "conv_transpose" and case.in_readme == flag) for flag in (True, False)
)


def row(case, ratio=2.0, layout=2.0):
    ours = {"aigc_fast": Timing(1.0, 1.0, 1.0)}
    return Row(
        *(case.op, case.name, case.dtype, case.mode, ours),
        peers={"PyTorch": Timing(layout, 1, 1), "ONNX Runtime": Timing(1234.5, 1, 1)},
        ratio=Timing(ratio, ratio - 0.25, ratio + 0.25),
        error=1e-7,
        own_error=1e-7,
        share=0.5,
        limit="gemm_float32",
    )


def result(*rows, **machine):
    return Result(MACHINE | machine, LIMITS, rows)


@pytest.fixture(scope="module")
def command():
    spec = util.spec_from_file_location("bench_run", ROOT / "bench" / "run.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_are_those_that_were_chosen_and_those_that_we_lose():
    text = section([result(row(SHOWN), row(HIDDEN))])
    line = f"| {SHOWN.name} | {SHOWN.dtype}, {SHOWN.mode} | 1 | 2, PyTorch | 2.00× (1.75-2.25) | 50%, matrix products |"
    assert line in text.splitlines()
    assert HIDDEN.name not in text
    assert "A processor, avx2, 2 threads; torch 2.13.0, aigc_fast 0.1.0; scipy 1.2; 2026-01-02." in text
    for lost in (row(HIDDEN, ratio=0.9), row(HIDDEN, layout=0.9)):
        assert f"| {HIDDEN.name} |" in section([result(row(SHOWN), lost)])


def test_each_machine_has_its_tables_and_those_of_one_are_told_together():
    other = dataclasses.replace(row(SHOWN), op="dropout", name="64×128", dtype="float32", mode="training")
    text = section(
        [
            result(row(SHOWN)),
            result(row(SHOWN), processor="Another", level="avx512"),
            result(other, date="2026-01-05"),
        ]
    )
    assert "2026-01-02 to 2026-01-05." in text
    assert text.count("On A processor, avx2, 2 threads:") == 2
    assert text.count("On Another, avx512, 2 threads:") == 1
    assert text.index("**Transposed convolution.**") < text.index("**Dropout.**")
    assert "**Attention.**" not in text


def test_every_op_has_a_heading_and_rows_in_the_readme_or_only_what_it_loses():
    assert set(TITLES) == {case.op for case in CASES}
    assert {case.name for case in CASES} >= IN_README
    assert {case.op for case in CASES if case.in_readme} == set(TITLES) - {"examples"}


def test_the_rest_of_the_readme_stays_and_writing_again_changes_nothing():
    found = [result(row(SHOWN))]
    text = written(f"before\n\n{START}\nold\n{END}\n\nafter\n", found)
    assert text == f"before\n\n{START}\n\n{section(found)}\n\n{END}\n\nafter\n"
    assert written(text, found) == text


@pytest.mark.parametrize("text", ["", START, END, f"{END} {START}", f"{START} {END} {END}", f"{START} {START} {END}"])
def test_a_readme_without_the_marks_is_refused(text):
    with pytest.raises(UserError, match="expected <!-- speed"):
        written(text, [result(row(SHOWN))])


def test_the_command_writes_the_readme_from_all_kept_results(command, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(command, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text(f"{START}{END}", encoding="utf-8")
    with pytest.raises(SystemExit, match="2"):
        command.main(["--readme"])
    assert "holds no results" in capsys.readouterr().err
    (tmp_path / "results").mkdir()
    for name, processor in (("a.json", "A processor"), ("b.json", "Another")):
        result(row(SHOWN), processor=processor).write(tmp_path / "results" / name)
    command.main(["--readme"])
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "On A processor" in text
    assert "On Another" in text
    command.main(["--tables"])
    assert "Another, avx2, 2 threads" in capsys.readouterr().out


def test_results_are_kept_by_op_and_machine_and_of_a_part_nothing_is(command, monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    machine = MACHINE | {"processor": "AMD EPYC 9R14 (a)"}
    monkeypatch.setattr("aigc_fast.bench.selection.description", lambda: machine)
    monkeypatch.setattr("aigc_fast.cli.bench.run", lambda cases, *args: ran.append(cases) or result(row(SHOWN)))
    for options, kept in (
        (["--only", "64×128"], []),
        ([], ["dropout-amd-epyc-9r14-a-avx2-2-threads.json"]),
    ):
        with pytest.raises(SystemExit, match="0"):
            command.main(["--op", "dropout", *options])
        assert [path.name for path in tmp_path.iterdir()] == kept
    assert {case.name for case in ran[0]} == {"64×128"}
    assert len(ran[1]) > len(ran[0])


def test_the_readme_says_what_the_kept_results_say(command):
    found = command.kept()
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count(START) == text.count(END) == 1
    if not found:
        pytest.skip("no results are kept in the repository")
    assert text == written(text, found), "stale: python bench/run.py --readme"
