"""The command line: words, errors, environment, and the commands that tell of this machine."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from commands import TINY, assert_refused, run, tree

import aigc_fast
from aigc_fast.environment import setting
from aigc_fast.runtime import native
from aigc_fast.runtime.kept import store
from aigc_fast_cli import COMMANDS


def test_version_and_help():
    assert run("--version").stdout.strip() == f"aigc-fast {aigc_fast.__version__}"
    shown = run("--help")
    assert shown.exit_code == 0
    for command in COMMANDS:
        assert command in shown.stdout
        assert run(command, "--help").exit_code == 0


def test_help_breaks_lines_by_the_terminals_width_alone(monkeypatch):
    monkeypatch.setenv("COLUMNS", "900")
    for command in COMMANDS:
        shown = [line.strip() for line in run(command, "--help").stdout.splitlines()]
        text = inspect.cleandoc(getattr(import_module(f"aigc_fast.cli.{command}"), command).__doc__)
        for paragraph in text.split("\n\n"):
            assert paragraph.replace("\n", " ") in shown


def test_no_arguments_is_help_and_not_an_error_message():
    result = run()
    assert "Usage" in result.output
    assert "error" not in result.output


def test_the_script_and_the_module_agree(tmp_path):
    code = "from aigc_fast.cli import main; main()"
    for start in (["-m", "aigc_fast.cli"], ["-c", code]):
        done = subprocess.run(
            [sys.executable, *start, "generate", "none.safetensors"], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr == "aigc-fast: error: none.safetensors: no such file\n"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["trian"], ["trian", "train"]),
        (["train"], ["MODEL"]),
        (["train", "wgan"], ["'wgan'", "mlp-gan, dcgan, vae, conv-vae, vocoder"]),
        (["train", "dcgan", "--loss", "hing"], ["hing", "hinge"]),
        (["train", "dcgan", "--beta", "2"], ["beta", "dcgan"]),
        (["train", "vae", "--loss", "hinge"], ["loss", "vae"]),
        (["train", "vae", "--width", "3"], ["vae", "--width"]),
        (["train", "vae", "--likelihood", "poisson"], ["poisson", "bernoulli"]),
        (["train", "vae", "--epochs", "0"], ["--epochs"]),
        (["train", "vae", "--epochs", "many"], ["--epochs"]),
        (["train", "vae", "--seed", str(2**63)], ["--seed"]),
        (["train", "dcgan", "--size", "30"], ["30", "4"]),
        (["train", "vae", "--data", "nowhere"], ["nowhere"]),
        (["train", "vae", "--seconds", "2"], ["--seconds", "vae"]),
        (["train", "vocoder", "--size", "28"], ["--size", "vocoder"]),
        (["train", "vocoder", "--seconds", "0"], ["seconds=0"]),
        (["train", "vocoder", "--seconds", "nan"], ["seconds=nan"]),
        (["train", "vocoder", "--sample-rate", "1000"], ["sample_rate=1000"]),
        (["train", "vocoder", "--shift", "1"], ["shift=1", "vocoder"]),
        (["train", "vocoder", "--seconds", "1e9"], ["seconds=1000000000.0", "16777216 samples"]),
        (["train", "vocoder", "--sample-rate", "100000000000"], ["sample_rate=100000000000", "1000000 Hz"]),
        (["train", "vae", "--size", "100000000"], ["size=100000000", "memory"]),
        (["train", "vae", "--learning-rate", "inf"], ["learning_rate=inf", "finite"]),
        (["evaluate", "x" * 5000], ["xxx: File name too long"]),
        (["generate", "x" * 300 + ".safetensors"], ["xxx.safetensors", "File name too long"]),
        (["train", "vae", "--out", "x" * 300], ["xxx", "File name too long"]),
        (["train", "vocoder", "--loss", "hinge"], ["loss", "vocoder"]),
        (["train", "vocoder", "--data", "nowhere"], ["nowhere"]),
        (["generate", "audio"], ["audio", "runs", "train vocoder"]),
        (["generate", "."], [".: the folder holds no model.safetensors"]),
        (["generate", "images"], ["images", "runs"]),
        (["evaluate", "audio"], ["audio", "runs"]),
        (["train", "vae", "--resume", "latest"], ["no checkpoint"]),
        (["train", "vae", "--frobnicate"], ["--frobnicate"]),
        (["train", "mlp-gan", "--loss", "wgan-gp", "--steps", "3"], ["steps=3", "generator is never trained", "5"]),
        (["train", "vae", "--device", "cuda:77"], ["--device cuda:77: there is no such device here", "cpu"]),
        (["train", "vae", "--device", "meta"], ["--device meta: there is no such device here", "cpu"]),
        (["train", "vae", "--device", "gpu"], ["--device gpu"]),
        (["train", "vae", "--device", ""], ["--device"]),
        (["generate", "images", "--device", "cpu:1"], ["--device cpu:1"]),
        (["evaluate", "images", "--device", "cuda:77"], ["--device cuda:77"]),
        (["demo", "--device", "cuda:77"], ["--device cuda:77"]),
        (["explain", "conv_transpose2d", "--device", "cuda:77"], ["--device cuda:77"]),
        (["explain", "conv9d"], ["conv9d", "conv_transpose2d"]),
        (["explain", "conv_transpose2d", "2x3x4x4", "5x3x4x4"], ["conv_transpose2d"]),
        (["explain", "conv_transpose2d", "2x3x4x4", "dtype=whole"], ["dtype", "'whole'"]),
        (["provenance", "missing.png"], ["missing.png: No such file or directory"]),
        (["provenance", "missing.wav"], ["missing.wav"]),
        (["provenance", "missing"], ["missing: no such file"]),
        (["provenance", "."], ["expected a file, got a folder"]),
        (["evaluate", "missing"], ["missing"]),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, list) else None,
)
def test_bad_words_are_one_line_and_leave_nothing(tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    assert_refused(run(*args), *words)
    assert os.listdir(tmp_path) == []


def test_damaged_files(tmp_path, model_files):
    whole = model_files["conv-vae"].read_bytes()
    cut, flipped, text = tmp_path / "cut.safetensors", tmp_path / "flipped.safetensors", tmp_path / "text.safetensors"
    cut.write_bytes(whole[:-100])
    flipped.write_bytes(whole[:-8] + bytes(byte ^ 255 for byte in whole[-8:]))
    text.write_text("hello")
    data = tmp_path / "mnist.npz"
    data.write_bytes(b"PK\x03\x04 not really")
    before = tree(tmp_path)
    for file in (cut, flipped, text):
        assert_refused(run("generate", file, "--out", tmp_path / "a.png"), file)
        assert_refused(run("evaluate", file), file)
    assert_refused(run("train", "vae", "--data", data, "--out", tmp_path / "run"), data)
    assert tree(tmp_path) == before


def test_unwritable_places(tmp_path, model_files):
    blocker = tmp_path / "file"
    blocker.write_text("here first")
    inside = blocker / "sub"
    assert_refused(run("generate", model_files["conv-vae"], "--out", inside / "a.png"), inside)
    assert_refused(run("generate", model_files["conv-vae"], "--what", "single", "--out", inside), inside)
    assert_refused(run("train", "mlp-gan", *TINY, "--out", inside), inside)
    assert_refused(run("evaluate", model_files["conv-vae"], "--neighbours", inside / "a.png"), inside)
    assert_refused(run("demo", "--out", inside), inside)
    assert blocker.read_text() == "here first"


def module(*args, **environment):
    """`python -m aigc_fast.cli` in a process of its own, from where the same package is imported."""
    command = [sys.executable, "-W", "ignore", "-m", "aigc_fast.cli", *(str(arg) for arg in args)]
    path = os.pathsep.join(sys.path)
    home = Path(aigc_fast.__file__).parents[1]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path, **environment}, cwd=home
    )


needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("AIGC_FAST_BACKEND", "one of"),
        pytest.param("AIGC_FAST_CPU_ISA", "one of", marks=needs_native),
        ("AIGC_FAST_KEPT_BYTES", "a number of bytes"),
        ("AIGC_FAST_REUSED_BYTES", "a number of bytes"),
    ],
)
def test_a_wrong_environment_is_one_line(variable, expected):
    done = module("doctor", **{variable: "foo"})
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"aigc-fast: error: {variable}='foo': expected {expected}.*\n", done.stderr)


def test_the_script_too_tells_of_a_wrong_environment(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/aigc-fast", "doctor"])
    monkeypatch.setenv("AIGC_FAST_BACKEND", "foo")
    with pytest.raises(SystemExit) as ended:
        setting("AIGC_FAST_BACKEND", ("auto", "cpu"), "auto")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "aigc-fast: error: AIGC_FAST_BACKEND='foo': expected one of auto, cpu\n"


def test_a_forced_backend_that_can_not_run_is_one_line(tmp_path, model_files):
    with aigc_fast.backend("triton"):
        assert_refused(run("generate", model_files["dcgan"], "--out", tmp_path / "a.png"), "'triton' is forced")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is full")
@pytest.mark.parametrize("args", [["--version"], ["doctor", "--json"], ["--help"]])
def test_output_that_is_not_taken_is_one_line(args, tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "aigc_fast.cli", *args],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,  # not where the sources lie, without the native library
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
    assert done.stderr == "aigc-fast: error: output: No space left on device\n"
    assert done.returncode == 2


def test_doctor_tells_versions_levels_and_every_function():
    shown = run("doctor")
    assert shown.exit_code == 0
    for word in (torch.__version__, aigc_fast.__version__, "Processor", "GPU", "Backends", "reference"):
        assert word in shown.stdout
    found = json.loads(run("doctor", "--json").stdout)
    assert set(found["functions"]) == {*aigc_fast.functional.__all__, "decode"}
    for function in found["functions"].values():
        assert function["runs"] is not None
        assert function["backends"]
    assert 0 <= found["kept_weights"]["bytes"] <= found["kept_weights"]["cap"] == store.cap
    told = " ".join(shown.stdout.partition("Functions:")[2].split())
    idle = [name for name, reason in found["backends"].items() if reason]
    assert not [name for name in idle if f"not {name}:" in told]
    assert re.search(r"packed weights +\d+\.\d MiB kept of at most \d+\.\d MiB", shown.stdout)


def test_doctor_makes_a_bug_report_without_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("AIGC_FAST_CACHE", str(tmp_path / "somewhere"))
    shown = run("doctor", "--report").stdout
    for words in ("### What happened", f"| torch | {torch.__version__} |", "AIGC_FAST_CACHE=(path)"):
        assert words in shown
    assert str(tmp_path) not in shown
    text = re.search(r"```json\n(.*)\n```", shown, re.DOTALL).group(1)
    assert set(json.loads(text)["functions"]) == {*aigc_fast.functional.__all__, "decode"}


def test_doctor_without_the_native_library(tmp_path):
    code = (
        "import sys; sys.modules['aigc_fast._C'] = None\n"
        "from aigc_fast.cli import main; sys.argv = ['aigc-fast', 'doctor']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
    )
    assert done.returncode == 0, done.stderr
    assert "without a C++ compiler" in done.stdout


def test_explain_takes_shapes_and_settings():
    shown = run("explain", "conv_transpose2d", "2x8x4x4", "8x4x4x4", "stride=2", "padding=1", "dtype=float64")
    assert shown.exit_code == 0, shown.output
    assert "conv_transpose2d" in shown.stdout or "conv_transpose" in shown.stdout
    assert re.search(r"reference +can run", shown.stdout)
    assert run("explain", "reparameterize_kl").exit_code == 0
    assert "engine" in run("explain", "decode").stdout
    assert_refused(run("explain", "decode", "1x2"), "decode takes a model")
