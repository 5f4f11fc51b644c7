import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image, PngImagePlugin
from typer.testing import CliRunner

import aigc_fast
from aigc_fast.cli import app
from aigc_fast.cli.demo.page import Page
from aigc_fast.data import digits, read_wav, vowels_and_strings
from aigc_fast.environment import setting
from aigc_fast.generation import (
    Provenance,
    draw,
    image_grid,
    read_provenance,
    read_wav_provenance,
    to_uint8,
    write_wav,
)
from aigc_fast.models import ConvVAE, create, load, save
from aigc_fast.runtime import native
from aigc_fast.runtime.kept import store
from aigc_fast.training import VAETrainer

TINY = ["--steps", "4", "--batch-size", "8", "--sample-interval", "0"]


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def assert_refused(result, *words):
    """One line on stderr that holds the words, exit code 2."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("aigc-fast: error: ")
    for word in words:
        assert str(word) in lines[0]


def tree(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def model_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    models = {
        "conv-vae": create("conv-vae", width=4),
        "dcgan": create("dcgan", width=4, num_classes=10),
        "mlp-gan": create("mlp-gan", hidden=8),
        "vocoder": create("vocoder", width=4, length=800, num_classes=6),
    }
    for name, model in models.items():
        save(model, folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in models}


def test_version_and_help():
    assert run("--version").stdout.strip() == f"aigc-fast {aigc_fast.__version__}"
    shown = run("--help")
    assert shown.exit_code == 0
    for command in ("demo", "train", "generate", "evaluate", "provenance", "doctor", "explain", "tune"):
        assert command in shown.stdout
        assert run(command, "--help").exit_code == 0


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


@pytest.mark.parametrize("model", ["mlp-gan", "vae"])
def test_training_writes_a_model_that_generates_and_is_measured(tmp_path, model):
    folder = tmp_path / "run"
    result = run("train", model, "--hidden", "16", *TINY, "--conditional", "--out", folder)
    assert result.exit_code == 0, result.output
    assert "Next:  aigc-fast generate" in result.stdout
    loaded = load(folder / "model.safetensors")
    assert loaded.name == model
    assert (loaded.num_classes, loaded.config["hidden"]) == (10, 16)
    grid = tmp_path / "grid.png"
    assert run("generate", folder / "model.safetensors", "--class", "3", "--count", "4", "--out", grid).exit_code == 0
    measured = run("evaluate", folder / "model.safetensors", "--count", "40", "--json")
    assert measured.exit_code == 0, measured.output
    assert json.loads(measured.stdout)["count"] == 40


def test_same_seed_same_weights_and_a_run_is_not_overwritten_unasked(tmp_path):
    args = ["train", "mlp-gan", "--hidden", "8", *TINY]
    for name in ("a", "b"):
        assert run(*args, "--seed", "5", "--out", tmp_path / name).exit_code == 0
    a, b = (load(tmp_path / name / "model.safetensors").state_dict() for name in ("a", "b"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    before = tree(tmp_path)
    refused = run(*args, "--seed", "6", "--out", tmp_path / "a")
    assert_refused(refused, "holds a run already", "--resume latest", "--overwrite", "--out")
    assert tree(tmp_path) == before
    assert run(*args, "--seed", "6", "--out", tmp_path / "a", "--overwrite").exit_code == 0
    assert (
        run(
            *args[:4], "--steps", "6", *TINY[2:], "--seed", "6", "--out", tmp_path / "a", "--resume", "latest"
        ).exit_code
        == 0
    )
    assert load(tmp_path / "a" / "model.safetensors").metadata["step"] == 6


def test_a_finished_run_can_be_resumed_without_its_log(tmp_path):
    args = ["train", "mlp-gan", "--hidden", "8", *TINY]
    assert run(*args, "--out", tmp_path / "a").exit_code == 0
    (tmp_path / "a" / "log.jsonl").unlink()
    for out, which in (("a", "latest"), ("b", tmp_path / "a" / "checkpoints" / "step-00000004.safetensors")):
        result = run(*args, "--out", tmp_path / out, "--resume", which)
        assert result.exit_code == 0, result.output
        assert "4/4" in result.stdout
        assert "4 steps on 1797 images of digits: the checkpoint had them all" in result.stdout
    assert_refused(run(*args, "--steps", "3", "--out", tmp_path / "a", "--resume", "latest"), "step 4 already", "3")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_leaves_a_checkpoint_and_one_line(tmp_path, monkeypatch, name):
    step = VAETrainer._step

    def signalled(self, inputs, labels):
        if self.step_count == 2:
            signal.raise_signal(getattr(signal, name))
        return step(self, inputs, labels)

    args = ["train", "vae", "--hidden", "8", *TINY, "--out", tmp_path]
    with monkeypatch.context() as patched:
        patched.setattr(VAETrainer, "_step", signalled)
        stopped = run(*args)
    checkpoint = tmp_path / "checkpoints" / "step-00000003.safetensors"
    assert stopped.exit_code == 130
    assert stopped.stderr == f"aigc-fast: interrupted; {checkpoint} holds everything to go on: --resume latest\n"
    gone_on = run(*args, "--resume", "latest")
    assert gone_on.exit_code == 0, gone_on.output
    assert load(tmp_path / "model.safetensors").metadata["step"] == 4


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
        assert_refused(run("generate", model_files["dcgan"], "--out", tmp_path / "a.png"), "'triton' was asked for")
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


def test_grid_is_what_its_record_says_and_comes_again(tmp_path, model_files):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        args = ["--count", "10", "--columns", "5", "--seed", "9", "--scale", "2", "--out", path]
        assert run("generate", model_files["dcgan"], *args).exit_code == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()
    record = read_provenance(paths[0])
    assert (record.model, record.seed) == ("dcgan", 9)
    model = load(model_files["dcgan"])
    assert record.settings["model_checksum"] == model.metadata["checksum"]
    expected = to_uint8(image_grid(draw(model, 10, seed=9), 5))
    with Image.open(paths[0]) as picture:
        assert picture.size == (2 * expected.shape[1], 2 * expected.shape[0])
        shrunk = picture.resize(expected.shape[::-1], Image.Resampling.NEAREST)
        assert shrunk.tobytes() == expected.tobytes()
    command = record.settings["command"].split()
    assert command[:3] == ["aigc-fast", "generate", "dcgan.safetensors"]
    again = tmp_path / "again.png"
    assert run("generate", model_files["dcgan"], *command[3:], "--out", again).exit_code == 0
    assert again.read_bytes() == paths[0].read_bytes()


def test_provenance_command_prints_the_record(tmp_path, model_files):
    path = tmp_path / "a.png"
    run("generate", model_files["conv-vae"], "--out", path, "--count", "2", "--seed", "4")
    shown = json.loads(run("provenance", path).stdout)
    assert (shown["model"], shown["seed"], shown["version"]) == ("conv-vae", 4, aigc_fast.__version__)
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("aigc_fast", json.dumps({**shown, "settings": {}}).replace("{}", "[" * 900 + "]" * 900))
    Image.new("L", (4, 4)).save(tmp_path / "nested.png", pnginfo=chunks)
    assert_refused(run("provenance", tmp_path / "nested.png"), "nested.png", "nested too deep")
    sound = tmp_path / "a.WAV"
    write_wav(sound, torch.rand(50), 16000, Provenance("vocoder", 3))
    assert json.loads(run("provenance", sound).stdout)["model"] == "vocoder"


def test_existing_files_are_kept_unless_asked(tmp_path, model_files):
    path = tmp_path / "a.png"
    path.write_text("mine")
    assert_refused(run("generate", model_files["conv-vae"], "--out", path), path, "--overwrite")
    assert path.read_text() == "mine"
    assert run("generate", model_files["conv-vae"], "--out", path, "--overwrite").exit_code == 0
    folder = tmp_path / "single"
    folder.mkdir()
    (folder / "2.png").write_text("mine")
    assert_refused(
        run("generate", model_files["conv-vae"], "--what", "single", "--count", "3", "--out", folder), "2.png"
    )
    assert os.listdir(folder) == ["2.png"]
    assert_refused(run("generate", model_files["conv-vae"], "--out", folder), "folder")


def test_single_images_one_class(tmp_path, model_files):
    args = ["--what", "single", "--count", "11", "--class", "7", "--seed", "2", "--out", tmp_path]
    assert run("generate", model_files["dcgan"], *args).exit_code == 0
    names = sorted(os.listdir(tmp_path))
    assert names == [f"{index:02d}.png" for index in range(11)]
    expected = draw(load(model_files["dcgan"]), 11, seed=2, labels=7)
    for index, name in enumerate(names):
        assert read_provenance(tmp_path / name).settings["index"] == index
        with Image.open(tmp_path / name) as picture:
            assert picture.tobytes() == to_uint8(expected[index]).tobytes()


@pytest.mark.parametrize(
    ("what", "model", "args", "size"),
    [
        ("interpolation", "dcgan", ["--count", "2", "--columns", "5"], (5 * 30 + 2, 2 * 30 + 2)),
        ("manifold", "conv-vae", ["--count", "3"], (3 * 30 + 2, 3 * 30 + 2)),
        ("grid", "mlp-gan", [], (8 * 30 + 2, 8 * 30 + 2)),
    ],
)
def test_what_can_be_made(tmp_path, model_files, what, model, args, size):
    path = tmp_path / "a.png"
    result = run("generate", model_files[model], "--what", what, *args, "--out", path)
    assert result.exit_code == 0, result.output
    with Image.open(path) as picture:
        assert picture.size == size


def test_what_a_model_can_not_do(tmp_path, model_files):
    out = tmp_path / "a.png"
    assert_refused(run("generate", model_files["dcgan"], "--what", "manifold", "--out", out), "2 latent dimensions")
    assert_refused(run("generate", model_files["dcgan"], "--class", "10", "--out", out), "0 to 9")
    assert_refused(run("generate", model_files["mlp-gan"], "--class", "1", "--out", out), "without classes")
    assert_refused(run("generate", model_files["mlp-gan"], "--what", "film", "--out", out), "film", "grid")
    for name in ("a.jpg", "a"):
        assert_refused(run("generate", model_files["mlp-gan"], "--out", tmp_path / name), name, "PNG")
        assert_refused(run("evaluate", model_files["mlp-gan"], "--neighbours", tmp_path / name), name, "PNG")
    assert_refused(run("generate", model_files["mlp-gan"], "--out", "x" * 300 + ".png"), "x.png: File name too long")
    assert os.listdir(tmp_path) == []


def test_a_vocoder_trains_generates_and_is_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained = run("train", "vocoder", "--conditional", "--seconds", "0.05", "--width", "4", *TINY[:-1], "2")
    assert trained.exit_code == 0, trained.output
    assert "144 sounds of vowels and strings" in trained.stdout
    folder = tmp_path / "runs" / "vocoder"
    assert {path.name for path in (folder / "samples").iterdir()} == {
        f"step-0000000{step}.{kind}" for step in (2, 4) for kind in ("wav", "png")
    }
    for seed in ("0", "0", "1"):
        assert run("generate", "audio", "--seed", seed, "--out", f"{seed}.wav", "--overwrite").exit_code == 0
    audio, rate = read_wav("0.wav")
    assert rate == 16000
    assert len(audio) == 6 * 800 + 5 * 1600
    assert not torch.equal(audio, read_wav("1.wav")[0])
    record = read_wav_provenance("0.wav")
    assert (record.model, record.seed) == ("vocoder", 0)
    command = record.settings["command"].split()
    assert run(*command[1:2], folder, *command[3:], "--out", "again.wav").exit_code == 0
    assert (tmp_path / "again.wav").read_bytes() == (tmp_path / "0.wav").read_bytes()
    assert read_provenance("0.png") == record
    measured = run("evaluate", "audio", "--count", "7", "--json")
    assert measured.exit_code == 0, measured.output
    report = json.loads(measured.stdout)
    assert (report["count"], report["training_count"]) == (7, 144)
    assert report["nearest_of_training"] < report["nearest_of_noise"]


def test_what_can_be_made_of_sounds(tmp_path, model_files):
    file = model_files["vocoder"]
    single = tmp_path / "single"
    args = ["--what", "single", "--count", "3", "--class", "5", "--seed", "2", "--out", single]
    assert run("generate", file, *args).exit_code == 0
    assert sorted(os.listdir(single)) == [f"{index}.{kind}" for index in range(3) for kind in ("png", "wav")]
    expected = draw(load(file), 3, seed=2, labels=5)
    for index in range(3):
        found, _ = read_wav(single / f"{index}.wav")
        torch.testing.assert_close(found, expected[index].clamp(-1, 1), atol=2**-15, rtol=0)
        assert read_wav_provenance(single / f"{index}.wav").settings["index"] == index
    walk = tmp_path / "walk.wav"
    assert run("generate", file, "--what", "interpolation", "--columns", "4", "--out", walk).exit_code == 0
    assert len(read_wav(walk)[0]) == 4 * 800 + 3 * 1600
    before = tree(tmp_path)
    assert_refused(run("generate", file, "--what", "grid", "--out", walk), "grid", "sequence, single, interpolation")
    assert_refused(run("generate", file, "--out", tmp_path / "a.png"), "a.png", "WAV")
    assert_refused(run("generate", file, "--out", walk), walk, "--overwrite")
    (tmp_path / "b.png").write_text("mine")
    assert_refused(run("generate", file, "--out", tmp_path / "b.wav"), "b.png", "--overwrite")
    (tmp_path / "b.png").unlink()
    assert tree(tmp_path) == before


def nested_model():
    return safetensors.torch.save({"weight": torch.zeros(3)}, {"aigc_fast": "[" * 100_000 + "]" * 100_000})


def test_the_newest_model_of_a_medium_is_found(tmp_path, model_files, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(["mlp-gan", "dcgan", "vocoder"]):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        shutil.copy(model_files[name], folder / "model.safetensors")
        os.utime(folder / "model.safetensors", (1e9 + age, 1e9 + age))
    for name, content in (("broken", b"hello"), ("nested", nested_model())):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "model.safetensors").write_bytes(content)
    assert "dcgan-grid.png" in run("generate", "images").stdout
    os.utime(tmp_path / "runs" / "mlp-gan" / "model.safetensors", (2e9, 2e9))
    assert "mlp-gan-grid.png" in run("generate", "images").stdout
    (tmp_path / "audio").mkdir()
    assert "vocoder-sequence.wav" in run("generate", "audio").stdout


def test_folders_of_sounds_are_trained_on_and_measured(tmp_path):
    sounds = vowels_and_strings(1600, each=1)
    for index, (audio, label) in enumerate(zip(sounds.audio, sounds.labels, strict=True)):
        folder = tmp_path / "mine" / sounds.class_names[label]
        folder.mkdir(parents=True, exist_ok=True)
        write_wav(folder / f"{index}.wav", audio, 16000, Provenance("mine", 0))
    args = ["--data", tmp_path / "mine", "--seconds", "0.1", "--width", "4", "--conditional", "--out", tmp_path / "run"]
    assert run("train", "vocoder", *args, *TINY).exit_code == 0
    model = load(tmp_path / "run" / "model.safetensors")
    assert (model.num_classes, model.length) == (6, 1600)
    shown = run("evaluate", tmp_path / "mine" / "a")
    assert shown.exit_code == 0, shown.output
    assert "3 sounds against 144 of vowels and strings" in shown.stdout
    copied = json.loads(run("evaluate", tmp_path / "mine", "--data", tmp_path / "mine", "--json").stdout)
    assert copied["count"] == 18
    assert copied["nearest"] == pytest.approx(0, abs=1e-6)
    assert_refused(
        run("evaluate", tmp_path / "mine" / "a", "--neighbours", tmp_path / "a.png"), "--neighbours", "sounds"
    )


def test_what_the_data_is_and_what_was_left_out_is_told_at_the_start(tmp_path):
    data = tmp_path / "[animals]"
    for name in ("cat/a", "cat/b", "dog/part1/a"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (40, 30)).save(data / f"{name}.png")
    Image.new("L", (28, 28)).save(data / "preview.png")
    args = ["--data", data, "--hidden", "4", *TINY[:2], "--sample-interval", "0", "--batch-size", "2"]
    shown = run("train", "mlp-gan", *args, "--out", tmp_path / "run")
    assert shown.exit_code == 0, shown.output
    names = "cat/a.png, cat/b.png, dog/part1/a.png"
    sizes = names.replace(".png", ".png (40 × 30)")
    assert shown.stdout.splitlines()[:4] == [
        "3 images of [animals], 28 × 28 pixels in colour, 2 classes: cat, dog",
        "Note: 1 file left out, beside the class folders: preview.png",
        f"Note: 3 files with transparency, put on a background of white: {names}",
        f"Note: 3 files cropped to the middle square and scaled to 28 × 28 pixels (size): {sizes}",
    ]


def test_how_images_are_read_can_be_chosen(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for index in range(12):
        Image.new("RGBA", (28, 28)).save(data / f"{index}.png")
    args = ["--data", data, "--hidden", "4", *TINY]
    checksums = {}
    for name in ("white", "black"):
        shown = run("train", "mlp-gan", *args, "--background", name, "--out", tmp_path / name)
        assert shown.exit_code == 0, shown.output
        assert f"Note: 12 files with transparency, put on a background of {name}: 0.png, 1.png" in shown.stdout
        checksums[name] = load(tmp_path / name / "model.safetensors").metadata["data"]["checksum"]
    assert checksums["white"] != checksums["black"]
    for command in (["train", "mlp-gan", "--out", tmp_path / "no"], ["evaluate", data]):
        args = [*command, "--data", data]
        assert_refused(run(*args, "--max-pixels", "100"), "100 pixels (max_pixels)")
        assert_refused(run(*args, "--background", "wite"), "background='wite'")
    assert_refused(run("train", "vocoder", "--background", "white"), "--background", "vocoder")
    assert_refused(run("train", "vocoder", "--max-pixels", "9"), "--max-pixels", "vocoder")
    measured = run("evaluate", data, "--data", data, "--background", "black", "--json")
    assert measured.exit_code == 0, measured.output
    assert json.loads(measured.stdout)["nearest"] == 0
    assert "on a background of black" in measured.stderr


def test_a_folder_of_images_and_sounds_is_not_measured_by_half(tmp_path):
    for index, audio in enumerate(vowels_and_strings(1600, each=1).audio[:3]):
        write_wav(tmp_path / f"{index}.wav", audio, 16000, Provenance("mine", 0))
        Image.new("L", (28, 28)).save(tmp_path / f"{index}.png")
    shown = run("evaluate", tmp_path)
    assert shown.exit_code == 0, shown.output
    assert "3 sounds against" in shown.stdout
    assert "3 files left out, no WAV files by their names: 0.png" in shown.stdout
    assert_refused(run("evaluate", tmp_path, "--background", "red"), "--background", "holds sounds, not images")
    (tmp_path / "more").mkdir()
    Image.new("L", (28, 28)).save(tmp_path / "more" / "photo.jpg")
    assert_refused(run("evaluate", tmp_path), "expected images or sounds, got 3 sounds and 1 image (photo.jpg)")


def test_a_folder_of_training_images_is_found_to_be_copied(tmp_path):
    images = digits().images[:60, 0].numpy()
    folder = tmp_path / "images"
    folder.mkdir()
    for index, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{index}.png")
    pairs = tmp_path / "pairs.png"
    found = run("evaluate", folder, "--json", "--neighbours", pairs)
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert (report["nearest"], report["precision"]) == (0.0, 1.0)
    assert pairs.exists()
    shown = run("evaluate", folder)
    assert "Nearest training image" in shown.stdout
    assert "Fréchet distance" in shown.stdout


def test_too_few_images_or_another_size(tmp_path, model_files):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("L", (28, 28)).save(folder / "a.png")
    assert_refused(run("evaluate", folder), folder, "expected at least 6 images, got 1")
    save(ConvVAE(width=2, image_shape=(1, 8, 12)), tmp_path / "odd.safetensors")
    assert_refused(run("evaluate", tmp_path / "odd.safetensors"), "8")


def test_doctor_tells_versions_levels_and_every_function():
    shown = run("doctor")
    assert shown.exit_code == 0
    for word in (torch.__version__, aigc_fast.__version__, "Processor", "GPU", "Backends", "reference"):
        assert word in shown.stdout
    found = json.loads(run("doctor", "--json").stdout)
    assert set(found["functions"]) == set(aigc_fast.functional.__all__)
    for function in found["functions"].values():
        assert function["runs"] is not None
        assert function["backends"]
    assert 0 <= found["kept_weights"]["bytes"] <= found["kept_weights"]["cap"] == store.cap
    assert re.search(r"packed weights +\d+\.\d MiB kept of at most \d+\.\d MiB", shown.stdout)


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


def test_demo_in_short(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    out = tmp_path / "demo"
    for name in ("index.html", "dcgan-samples.png", "notes.txt", "samples/step-results.png"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"mine")
    result = run("demo", "--quick", "--out", out, "--overwrite")
    assert result.exit_code == 0, result.output
    for name in ("notes.txt", "samples/step-results.png"):
        assert (out / name).read_bytes() == b"mine"
    html = (out / "index.html").read_text(encoding="utf-8")
    assert html.count("<h1>") == 1
    assert html.count("data:image/png;base64,") == 13
    assert html.count("data:audio/wav;base64,") == html.count("<audio controls") == 5
    assert html.count("<svg") == html.count("</svg>") == 6
    assert not re.search(r'(src|href)="(?!data:)', html)
    assert "identical" in html
    for name in ("dcgan-samples", "conv-vae-manifold"):
        assert read_provenance(out / f"{name}.png").settings["command"] == "aigc-fast demo"
    assert load(out / "dcgan" / "model.safetensors").num_classes == 10
    assert load(out / "vocoder" / "model.safetensors").num_classes == 6


@pytest.mark.parametrize("name", ["index.html", "dcgan-samples.png", "vocoder-walk.wav", "dcgan/log.jsonl"])
def test_a_demo_replaces_nothing_unless_asked(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"mine")
    assert_refused(run("demo", "--quick", "--out", tmp_path), name, "--overwrite")
    assert tree(tmp_path) == {Path(name): b"mine"}


def test_a_run_in_the_demo_s_folder_is_not_replaced_unasked(tmp_path):
    assert run("train", "dcgan", "--width", "2", *TINY, "--out", tmp_path / "dcgan").exit_code == 0
    before = tree(tmp_path)
    assert_refused(run("demo", "--quick", "--out", tmp_path), "dcgan", "holds a run already", "--overwrite")
    assert tree(tmp_path) == before


def test_page_escapes_what_it_is_given():
    page = Page("a <b>", 'c & "d"')
    page.heading("<script>")
    page.paragraph("1 < 2")
    html = page.html()
    assert "<script>" not in html
    assert "1 &lt; 2" in html
    assert "a &lt;b&gt;" in html
