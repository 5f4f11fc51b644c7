"""`aigc-fast bench`: what it writes and refuses; no time is asserted."""

import getpass
import json
import platform

import pytest
from commands import assert_refused, run

from aigc_fast.bench.parity import ParityError
from aigc_fast.bench.runner import Result
from aigc_fast.cli import sharing

SMALL = ["--op", "reparameterize", "--only", "64×2, float32, forward", "--seconds", "0.01"]
LIMITS = {"gemm_float32": 100e9, "gemm_bfloat16": 200e9, "read": 20e9, "copy": 10e9}


@pytest.fixture(autouse=True)
def _no_probe(monkeypatch):
    monkeypatch.setattr("aigc_fast.bench.runner.probe", lambda: LIMITS)


def test_it_measures_and_writes_results_a_page_and_what_can_be_shared(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "wonderland")
    files = {name: tmp_path / f"bench.{name}" for name in ("json", "html", "share")}
    options = [text for name, file in files.items() for text in (f"--{name}", file)]
    found = run("bench", *SMALL, *options)
    assert found.exit_code == 0, found.output
    assert "64×2" in found.stdout
    result = Result.read(files["json"])
    assert [row.name for row in result.rows] == ["64×2"]
    assert files["html"].read_text(encoding="utf-8").startswith("<!doctype html>")
    shared = json.loads(files["share"].read_text(encoding="utf-8"))
    assert Result.read(files["share"]).rows == result.rows
    assert shared["installation"]["torch"] == result.machine["torch"]
    assert "wonderland" not in files["share"].read_text(encoding="utf-8")
    again = run("bench", "--from", files["json"], "--compare", files["share"])
    assert again.exit_code == 0, again.output
    assert "0 of 1 row changed beyond noise" in again.stdout
    for option in ("json", "html", "share"):
        refused = run("bench", *SMALL, f"--{option}", files[option])
        assert_refused(refused, "is there already", f"choose another --{option}")


def test_options_that_name_the_same_file_are_refused(tmp_path):
    file = tmp_path / "found"
    assert_refused(run("bench", *SMALL, "--json", file, "--html", file), "--json and --html both name")
    assert_refused(
        run("profile", "dcgan", "--trace", file, "--html", tmp_path / "." / "found"), "choose another --html"
    )
    assert not file.exists()


def test_peers_that_are_wanted_are_told(monkeypatch):
    monkeypatch.setattr("aigc_fast.bench.peers.optional", lambda name: None)
    monkeypatch.setattr("aigc_fast.bench.peers.versions", lambda: {"scipy": "1.0"})
    only = ["--op", "recursion", "--only", "3 of 1023", "--seconds", "0.01"]
    refused = run("bench", *only)
    assert refused.exit_code == 2
    assert "no row was measured: a peer is not installed (pip install onnxruntime numba torchlpc " in refused.stderr


def test_bad_input_is_a_line(tmp_path):
    assert_refused(run("bench", "--op", "atention"), "--op atention", "attention")
    assert_refused(run("bench", "--dtype", "float8"), "--dtype float8", "bfloat16")
    assert_refused(run("bench", "--only", "nothing of this name"), "no row is asked for")
    assert_refused(run("bench", "--compare", tmp_path / "none.json"), "holds no result of a bench")
    (tmp_path / "a.json").write_text("{")
    assert_refused(run("bench", "--from", tmp_path / "a.json"), "holds no result of a bench")


def test_a_wrong_result_ends_the_run_and_asks_for_a_report(monkeypatch):
    def wrong(*args):
        raise ParityError("reparameterize 64×2: kl: error 1")

    monkeypatch.setattr("aigc_fast.cli.bench.run", wrong)
    found = run("bench", *SMALL)
    assert found.exit_code == 1
    assert "wrong result: reparameterize 64×2" in found.stdout
    assert "doctor --report" in found.stdout


def test_what_is_shared_has_no_paths_and_no_names(monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "build-host.example")
    monkeypatch.setattr(getpass, "getuser", lambda: "builder")
    given = {
        "a": "/home/builder/x.so: cannot open, on build-host",
        "b": [r"C:\Users\builder\a.txt", "builder", "rebuilder", 1.5, None],
        "kept": "Linux-6.1-x86_64, 1.84× of 2/3, float32/bfloat16, and/or",
    }
    assert sharing.scrubbed(given) == {
        "a": "(path): cannot open, on (name)",
        "b": ["(path)", "(name)", "rebuilder", 1.5, None],
        "kept": given["kept"],
    }
