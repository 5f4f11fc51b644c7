"""The training loop: resuming, interrupting, and refusing what would destroy a run."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import logging
import signal
import sys

import pytest
import torch
from rich.console import Console

from aigc_fast.data import ImageDataset
from aigc_fast.errors import UserError
from aigc_fast.generation import read_provenance
from aigc_fast.models import MODELS, LatentModel, create, load
from aigc_fast.training import (
    TrainingConfig,
    TrainingInterrupted,
    VAETrainer,
    default_config,
    loop,
    make_trainer,
    train,
)
from aigc_fast.training.log import ProgressBar


def stop_at(step, number=signal.SIGINT):
    def callback(now, values):
        if now == step:
            signal.raise_signal(number)

    return callback


def same(first, second):
    state, other = first.state_dict(), second.state_dict()
    return list(state) == list(other) and all(torch.equal(value, other[key]) for key, value in state.items())


def steps_of(folder):
    return [int(path.stem.removeprefix("step-")) for path in sorted((folder / "checkpoints").iterdir())]


TEXTS = ("ngram", "char-rnn", "gpt2", "llama", "seq2seq")
SUFFIXES = {"vocoder": {"png", "wav"}, "video": {"apng", "png"}, **{name: {"txt", "txt.json"} for name in TEXTS}}


@pytest.mark.parametrize(
    ("name", "conditional"),
    [
        (name, kind)
        for name, model in MODELS.items()
        for kind in (False, True)
        if not kind or issubclass(model, LatentModel)
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(run, tmp_path, name, conditional):
    shift = {} if name in SUFFIXES else {"shift": 1}
    settings = {"name": name, "conditional": conditional, "sample_interval": 4, **shift}
    whole = run(tmp_path / "whole", **settings)
    with pytest.raises(TrainingInterrupted):
        run(tmp_path / "parts", callbacks=(stop_at(7),), **settings)
    parts = run(tmp_path / "parts", resume=True, **settings)
    assert same(parts.model, whole.model)
    assert parts.rows == whole.rows
    assert steps_of(tmp_path / "parts") == [7, 10, 12]
    samples = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole" / "samples").iterdir()]
    stems, suffixes = ({path.name.split(".", 1)[part] for path in samples} for part in (0, 1))
    assert stems == {"step-00000004", "step-00000008", "step-00000012"}
    assert suffixes == SUFFIXES.get(name, {"png"})
    for file in ("log.jsonl", *samples):
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_wgan_gp_resumes_between_two_generator_steps(run, tmp_path):
    settings = {"name": "dcgan", "loss": "wgan-gp", "critic_steps": 3, "steps": 10}
    whole = run(tmp_path / "whole", **settings)
    with pytest.raises(TrainingInterrupted):
        run(tmp_path / "parts", callbacks=(stop_at(4),), **settings)
    assert same(run(tmp_path / "parts", resume="latest", **settings).model, whole.model)


def test_a_run_depends_on_its_seed_alone_and_leaves_the_default_generator(run, tmp_path):
    first = run(tmp_path / "first")
    state = torch.get_rng_state()
    torch.rand(7)
    second = run(tmp_path / "second")
    other = run(tmp_path / "other", seed=43)
    assert same(first.model, second.model)
    assert not same(first.model, other.model)
    torch.manual_seed(1)
    create("vae", image_shape=(1, 8, 8), hidden=8)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_longer_run_goes_on_from_a_finished_one(run, tmp_path):
    whole = run(tmp_path / "whole", steps=12)
    run(tmp_path / "parts", steps=6)
    assert same(run(tmp_path / "parts", steps=12, resume=True).model, whole.model)


def test_a_finished_run_resumed_elsewhere_leaves_its_model_there(run, tmp_path):
    whole = run(tmp_path / "whole", steps=12)
    checkpoint = tmp_path / "whole" / "checkpoints" / "step-00000012.safetensors"
    again = run(tmp_path / "other", steps=12, resume=checkpoint)
    assert (again.rows, again.steps, again.items_per_second) == ([], 12, 0)
    assert same(load(tmp_path / "other" / "model.safetensors"), whole.model)


def test_a_checkpoint_beyond_the_steps_asked_for_is_refused(run, tmp_path, snapshot):
    run(tmp_path, steps=12)
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=r"step-00000012\.safetensors: is at step 12 already, 3 were asked for"):
        run(tmp_path, steps=3, resume=True)
    assert snapshot(tmp_path) == before


def test_resuming_from_an_earlier_checkpoint_drops_the_later_ones(run, tmp_path):
    whole = run(tmp_path, steps=12)
    earlier = tmp_path / "checkpoints" / "step-00000005.safetensors"
    again = run(tmp_path, steps=12, resume=earlier, checkpoint_interval=3)
    assert same(again.model, whole.model)
    assert [row["step"] for row in again.rows] == [3, 6, 9, 12]
    assert steps_of(tmp_path) == [6, 9, 12]


SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
]


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupted_run_leaves_a_checkpoint_and_the_signal_handlers(run, tmp_path, number):
    before = signal.getsignal(number)
    with pytest.raises(TrainingInterrupted) as caught:
        run(tmp_path, callbacks=(stop_at(4, number),))
    assert caught.value.checkpoint == tmp_path / "checkpoints" / "step-00000004.safetensors"
    assert isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.checkpoint.exists()
    assert load(tmp_path / "model.safetensors").metadata["step"] == 4
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", SIGNALS[2:])
def test_a_signal_that_comes_again_does_not_stop_the_checkpoint(run, tmp_path, number):
    def twice(step, values):
        for again in (number, number, signal.SIGTERM):
            signal.raise_signal(again)

    with pytest.raises(TrainingInterrupted):
        run(tmp_path, callbacks=(twice,))
    assert steps_of(tmp_path) == [1]


@pytest.mark.parametrize("number", SIGNALS[1:])
def test_signals_that_are_ignored_or_handled_by_others_are_left_to_them(run, tmp_path, number):
    """As nohup ignores SIGHUP, and job launchers handle SIGUSR1 themselves."""
    heard = []
    before = signal.getsignal(number)
    try:
        for handler in (signal.SIG_IGN, lambda number, frame: heard.append(number)):
            signal.signal(number, handler)
            assert run(tmp_path, callbacks=(stop_at(4, number),), overwrite=True).steps == 12
            assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)
    assert heard == [number]


def test_a_signal_during_the_last_checkpoint_does_not_keep_it_from_being_written(run, tmp_path, monkeypatch):
    write = loop.write_checkpoint

    def signalled(*args):
        signal.raise_signal(signal.SIGTERM)
        return write(*args)

    monkeypatch.setattr(loop, "write_checkpoint", signalled)
    assert run(tmp_path, checkpoint_interval=0).steps == 12
    assert steps_of(tmp_path) == [12]


def test_a_terminal_that_is_gone_costs_no_steps(run, dataset, tmp_path):
    class Gone(io.StringIO):
        def write(self, text):
            if dead:
                raise OSError(errno.EIO, "Input/output error")
            return super().write(text)

    def hang_up(step, values):
        if step == 2:
            dead.append(True)
            signal.raise_signal(signal.SIGHUP)

    dead = []
    model = create("vae", image_shape=(1, 8, 8), hidden=4)
    console = Console(width=100, force_terminal=True, file=Gone())
    config = default_config(model, steps=5, sample_interval=0)
    with pytest.raises(TrainingInterrupted):
        train(model, dataset, config, tmp_path, console=console, callbacks=(hang_up,))
    assert steps_of(tmp_path) == [2]


def test_a_second_interrupt_stops_at_once(run, tmp_path):
    def twice(step, values):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        run(tmp_path, callbacks=(twice,))
    assert not isinstance(caught.value, TrainingInterrupted)
    assert steps_of(tmp_path) == []


def test_checkpoints_rotate(run, tmp_path):
    run(tmp_path, steps=12, checkpoint_interval=2, keep_checkpoints=2)
    assert steps_of(tmp_path) == [10, 12]
    assert not list(tmp_path.rglob("*.part"))


def test_the_saved_model_is_the_trained_one(run, tmp_path):
    result = run(tmp_path, name="dcgan")
    saved = load(result.model_path)
    assert same(saved, result.model)
    assert saved.metadata["training"]["seed"] == 42
    assert saved.metadata["data"]["name"] == "noise"
    assert result.steps == 12
    assert not result.model.training


def test_the_log_holds_means_of_every_step(run, tmp_path):
    seen = []
    result = run(tmp_path, callbacks=(lambda step, values: seen.append(values["loss"]),), steps=8)
    assert [row["step"] for row in result.rows] == [3, 6, 8]
    expected = [sum(seen[:3]) / 3, sum(seen[3:6]) / 3, sum(seen[6:]) / 2]
    assert [row["loss"] for row in result.rows] == pytest.approx(expected, rel=1e-12)
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == result.rows


def test_sample_grids_carry_their_provenance(run, tmp_path):
    run(tmp_path, name="mlp-gan", sample_interval=5, conditional=True)
    grids = sorted((tmp_path / "samples").iterdir())
    assert [grid.name for grid in grids] == [f"step-{step:08d}.png" for step in (5, 10, 12)]
    provenance = read_provenance(grids[0])
    assert (provenance.model, provenance.seed, provenance.settings["step"]) == ("mlp-gan", 42, 5)


def test_tensorboard_gets_losses_and_grids(run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run(tmp_path, tensorboard=True, sample_interval=6)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [3, 6, 9, 12]
    assert events.Scalars("loss")[0].value == pytest.approx(result.rows[0]["loss"])
    assert len(events.Images("samples")) == 2


def test_the_progress_bar_shows_losses_and_speed(dataset, tmp_path):
    model = create("vae", image_shape=(1, 8, 8), hidden=4)
    console = Console(width=100, record=True, force_terminal=True, file=io.StringIO())
    train(model, dataset, default_config(model, steps=3, sample_interval=0), tmp_path, console=console)
    text = console.export_text()
    assert "3/3" in text
    assert "loss" in text
    assert "images/s" in text


def test_on_a_narrow_terminal_the_bar_gives_way_and_not_the_numbers():
    console = Console(width=80, record=True, force_terminal=True, file=io.StringIO())
    with ProgressBar("char-rnn", 6150, "characters", console) as bar:
        bar.show(6130, {"bits": 1.46, "held_out": 1.65}, 31338)
    assert "6130/6150 bits 1.46  held_out 1.65 31338 characters/s left -:--:--" in console.export_text()


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_a_run_is_not_overwritten_unasked(run, tmp_path, snapshot, resume):
    run(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="another run" if resume else "holds a run already"):
        run(tmp_path, learning_rate=0.1, resume=resume)
    assert snapshot(tmp_path) == before


def test_a_run_is_overwritten_when_asked(run, tmp_path):
    run(tmp_path, sample_interval=5)
    result = run(tmp_path, steps=4, checkpoint_interval=2, overwrite=True)
    assert steps_of(tmp_path) == [2, 4]
    assert [row["step"] for row in result.rows] == [3, 4]
    assert not list((tmp_path / "samples").iterdir())


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "model"])
def test_a_damaged_checkpoint_is_named_and_nothing_is_overwritten(run, tmp_path, snapshot, damage):
    run(tmp_path)
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    content = bytearray(newest.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    cut = {"truncate": len(content) // 2, "empty": 0}.get(damage, len(content))
    newest.write_bytes((tmp_path / "model.safetensors").read_bytes() if damage == "model" else content[:cut])
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=r"step-00000012\.safetensors"):
        run(tmp_path, resume=True, steps=20)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "mlp-gan"}, "model is vae there and mlp-gan here"),
        ({"conditional": True}, "config.num_classes is None there and 3 here"),
        ({"seed": 1}, "training.seed is 42 there and 1 here"),
        ({"batch_size": 4}, "training.batch_size is 8 there and 4 here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(run, tmp_path, snapshot, changes, expected):
    run(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=expected):
        run(tmp_path, resume=True, **changes)
    assert snapshot(tmp_path) == before


def test_a_checkpoint_on_other_data_is_refused(run, dataset, tmp_path):
    run(tmp_path)
    other = ImageDataset(dataset.images.flip(0), dataset.labels, dataset.class_names, dataset.name)
    with pytest.raises(UserError, match=r"data\.checksum is"):
        run(tmp_path, data=other, resume=True)


def test_a_checkpoint_whose_tensors_do_not_fit_is_refused(run, tmp_path, snapshot):
    from aigc_fast.models.storage import read_tensors, write_tensors

    run(tmp_path)
    path = tmp_path / "checkpoints" / "step-00000012.safetensors"
    tensors, record = read_tensors(path)
    key = next(name for name in tensors if name.endswith("exp_avg"))
    write_tensors(path, {**tensors, key: torch.zeros(2, 2)}, record)
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="does not fit"):
        run(tmp_path, resume=True, steps=20)
    assert snapshot(tmp_path) == before


def _without(*parts):
    return lambda tensors, record: [tensors.pop(name) for name in list(tensors) if any(part in name for part in parts)]


def _of_tensors(changes):
    return lambda tensors, record: tensors.update(changes)


def _of_record(**changes):
    return lambda tensors, record: record.update(changes)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_of_record(averages=[1]), "averages"),
        (_of_record(averages={"loss": "x"}), "averages"),
        (_of_record(averages={"loss": [1.0, 0]}), "averages"),
        (_of_record(averages={"loss": [1.0, 10**400]}), "averages"),
        (_of_record(training=[1]), "training"),
        (_of_record(config="x"), "config"),
        (_of_record(data=None), "data"),
        (_of_record(training={"seed": json.loads("[" * 900 + "]" * 900)}), "training"),
        (_of_record(step=10**30), "step 1000000000000000000000000000000 already"),
        (_without(".step"), "does not fit"),
        (_without(".exp_avg"), "does not fit"),
        (_without("optimizer."), "does not fit"),
        (_without("random."), "not a checkpoint's"),
        (_of_tensors({"optimizer.model.0.step": torch.tensor(12)}), "does not fit"),
        (_of_tensors({"model.code.0.bias": torch.zeros(8, dtype=torch.cfloat)}), "expected torch.float32"),
        (_of_tensors({"random.cpu": torch.zeros(3)}), "does not fit"),
    ],
)
def test_a_checkpoint_that_holds_nonsense_is_refused(run, tmp_path, snapshot, change, expected):
    from aigc_fast.models.storage import read_tensors, write_tensors

    run(tmp_path)
    path = tmp_path / "checkpoints" / "step-00000012.safetensors"
    tensors, record = read_tensors(path)
    change(tensors, record)
    write_tensors(path, tensors, record)
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=rf"step-00000012\.safetensors: .*{expected}"):
        run(tmp_path, resume=True, steps=20)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("line", ["[" * 100_000 + "}", '{"step": 3, "loss": {}}', '{"step": "x"}', '{"loss": 1.0}'])
def test_a_damaged_log_is_named(run, tmp_path, line):
    run(tmp_path)
    (tmp_path / "log.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"log\.jsonl: the log is damaged"):
        run(tmp_path, resume=True, steps=20)


def test_a_damaged_newest_checkpoint_names_the_newest_intact_one(run, tmp_path):
    run(tmp_path)
    ten, twelve = (tmp_path / "checkpoints" / f"step-000000{step}.safetensors" for step in (10, 12))
    twelve.write_bytes(twelve.read_bytes()[:-10])
    with pytest.raises(UserError, match=rf"{twelve}: .*damaged.*; {ten} is intact"):
        run(tmp_path, resume=True)
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=rf"{twelve}: .*damaged.*; no other is intact"):
        run(tmp_path, resume="latest")


@pytest.mark.parametrize("place", ["samples/step-00000012.png", "checkpoints/step-00000012.safetensors"])
def test_folders_in_the_way_are_named(run, tmp_path, place):
    (tmp_path / place).mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{tmp_path / place}: aigc_fast did not write this file"):
        run(tmp_path, overwrite=True, sample_interval=5)
    assert (tmp_path / place).is_dir()


def test_a_file_in_tensorboard_s_place_is_named(run, tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(UserError, match=rf"cannot write to folder {tmp_path / 'tensorboard'}"):
        run(tmp_path, tensorboard=True)
    assert (tmp_path / "tensorboard").read_text() == "in the way"


def test_nothing_to_resume_is_named(run, tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        run(tmp_path, resume=True)
    with pytest.raises(UserError, match="no such file"):
        run(tmp_path, resume=tmp_path / "none.safetensors")


def test_an_unwritable_folder_is_named(run, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        run(tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "in the way"


def test_data_that_does_not_suit_the_model_is_named(run, dataset, tmp_path):
    wide = ImageDataset(torch.zeros(9, 1, 8, 12, dtype=torch.uint8), None, (), "wide")
    with pytest.raises(UserError, match=r"wide: image_shape is \(1, 8, 12\), vae was built for \(1, 8, 8\)"):
        run(tmp_path, data=wide)
    plain = ImageDataset(dataset.images, None, (), "plain")
    with pytest.raises(UserError, match="plain: has no classes, vae was built for 3"):
        run(tmp_path, data=plain, conditional=True)
    with pytest.raises(UserError, match="shift=9: expected at most 8"):
        run(tmp_path, shift=9)
    assert not list(tmp_path.iterdir())


def test_sounds_are_not_shifted_and_need_no_library_to_be_written(run, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="shift=1"):
        run(tmp_path, name="vocoder", shift=1)
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "soundfile", None)
    run(tmp_path, name="vocoder", steps=2, sample_interval=2)
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {"step-00000002.wav", "step-00000002.png"}


def test_data_of_another_medium_is_named(run, dataset, sounds, tmp_path):
    with pytest.raises(UserError, match="hiss: holds sounds, which vae does not make"):
        run(tmp_path, data=sounds)
    with pytest.raises(UserError, match="noise: holds images, which vocoder does not make"):
        run(tmp_path, name="vocoder", data=dataset)


def test_data_smaller_than_a_batch_is_one_batch(run, dataset, tmp_path):
    few = ImageDataset(dataset.images[:5], dataset.labels[:5], dataset.class_names, "few")
    result = run(tmp_path, data=few, steps=None, epochs=3)
    assert result.steps == 3


def test_a_batch_that_is_too_small_is_named(run, dataset, tmp_path):
    with pytest.raises(UserError, match="batch_size=1, of 50 images: dcgan trains on batches of at least 2"):
        run(tmp_path, name="dcgan", batch_size=1)
    one = ImageDataset(dataset.images[:1], dataset.labels[:1], dataset.class_names, "one")
    with pytest.raises(UserError, match="batch_size=8, of 1 image:"):
        run(tmp_path, name="dcgan", data=one)
    assert not list(tmp_path.iterdir())
    assert run(tmp_path, name="mlp-gan", batch_size=1, steps=2).steps == 2


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float64) for name in MODELS), ("dcgan", torch.bfloat16), ("vae", torch.bfloat16)]
)
def test_items_come_in_the_models_dtype(run, tmp_path, name, dtype):
    result = run(tmp_path, name=name, dtype=dtype, steps=2, sample_interval=1)
    assert {result.model.dtype, *(parameter.dtype for parameter in result.model.parameters())} == {dtype}


def test_every_image_of_an_epoch_is_seen_once(dataset, tmp_path, monkeypatch):
    seen = []
    model = create("vae", image_shape=(1, 8, 8), hidden=4, num_classes=3)
    config = default_config(model, epochs=2, batch_size=10, sample_interval=0)
    step = type(make_trainer(model, config)).step

    def watched(self, images, labels, split):
        seen.append((images, labels))
        return step(self, images, labels, split)

    monkeypatch.setattr("aigc_fast.training.vae.VAETrainer.step", watched, raising=False)
    train(model, dataset, config, tmp_path)
    assert len(seen) == 10
    for epoch in (seen[:5], seen[5:]):
        images = torch.cat([images for images, _ in epoch]).flatten(1)
        distances = torch.cdist(images, dataset.batch().flatten(1))
        order = distances.argmin(1)
        assert sorted(order.tolist()) == list(range(50))
        assert torch.equal(torch.cat([labels for _, labels in epoch]), dataset.labels[order])


def test_a_diverged_run_says_so_and_keeps_its_last_checkpoint(run, tmp_path):
    with pytest.raises(UserError, match=r"diverged at step \d+.*learning rate"):
        run(tmp_path, name="conv-vae", learning_rate=1e30)
    assert 12 not in steps_of(tmp_path)


@pytest.mark.parametrize("name", ["vae", "mlp-gan"])
def test_weights_that_diverge_in_the_last_step_are_not_saved(run, tmp_path, name):
    with pytest.raises(UserError, match=r"diverged at step 1: .*(is not finite|nan).*learning rate"):
        run(tmp_path, name=name, learning_rate=1e39, steps=1)
    assert not (tmp_path / "model.safetensors").exists()
    assert steps_of(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "setting"),
    [("mlp-gan", "learning_rate"), ("mlp-gan", "discriminator_learning_rate"), ("mlp-gan", "gradient_penalty")]
    + [("vae", setting) for setting in ("learning_rate", "beta", "free_bits")],
)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_settings_that_are_not_finite_are_refused(name, setting, value):
    with pytest.raises(UserError, match=rf"{setting}={value}: expected .*finite"):
        default_config(MODELS[name], **{setting: value})


@pytest.mark.parametrize("length", [{"steps": 10**20}, {"steps": None, "epochs": 10**20}])
def test_more_steps_than_machines_count_are_begun(run, tmp_path, length):
    with pytest.raises(InterruptedError):
        run(tmp_path, **length, callbacks=(_interrupting,))


def _interrupting(step, values):
    raise InterruptedError


@pytest.mark.parametrize("value", ["3", [], 2.5j], ids=repr)
@pytest.mark.parametrize("name", ["mlp-gan", "vae", "video", "char-rnn", "gpt2", "seq2seq", "ngram"])
def test_settings_of_another_kind_are_named(name, value):
    for setting in dataclasses.fields(default_config(MODELS[name])):
        if setting.type != "str" or value != "3":
            with pytest.raises(TypeError, match=rf"^{setting.name} is {type(value).__name__}: expected "):
                default_config(MODELS[name], **{setting.name: value})


def test_a_familys_own_settings_may_be_of_any_kind():
    own = [("rate", float | None, None), ("ways", tuple[int, ...], (1, 2)), ("steady", bool, True)]
    config = dataclasses.make_dataclass("Own", own, bases=(TrainingConfig,), frozen=True, kw_only=True)
    assert config(ways=[3]).ways == [3]
    for name, value in (("rate", "3"), ("steady", 2.5), ("epochs", 2.5)):
        with pytest.raises(TypeError, match=rf"^{name} is {type(value).__name__}: expected "):
            config(**{name: value})


def test_a_collapsed_generator_is_reported(run, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("aigc_fast.training.gan.diversity", lambda fake, real: torch.tensor(0.05))
    with caplog.at_level(logging.WARNING, logger="aigc_fast"):
        result = run(tmp_path, name="mlp-gan")
    assert [record.getMessage() for record in caplog.records if "repeats itself" in record.getMessage()] == [
        "step 3: the generator repeats itself: diversity 0.05, where the data has 1"
    ]
    assert result.rows[0]["diversity"] == pytest.approx(0.05)


def collapses(caplog):
    return [record.getMessage() for record in caplog.records if "collapsed" in record.getMessage()]


@pytest.mark.parametrize(
    ("kls", "warned"),
    [
        ([3.0, 5e-5, 5e-5, 5e-5], "step 9: "),
        ([5e-5, 5e-5, 5e-5, 3.0], "step 9: "),
        ([3.0, 3.0, 3.0, 5e-5], "step 12: "),
        ([5e-5, 5e-5, 0.3, 0.3], None),
        ([3.0, 5e-5, 3.0, 3.0], None),
        ([0.2, 0.2, 0.2, 0.2], None),
    ],
)
def test_a_collapsed_posterior_is_reported(run, tmp_path, caplog, monkeypatch, kls, warned):
    step = VAETrainer._step

    def collapsing(self, inputs, labels):
        return {**step(self, inputs, labels), "kl": kls[self.step_count // 3]}

    monkeypatch.setattr(VAETrainer, "_step", collapsing)
    with caplog.at_level(logging.WARNING, logger="aigc_fast"):
        run(tmp_path, name="vae")
    assert len(collapses(caplog)) == (warned is not None)
    if warned is not None:
        assert collapses(caplog)[0].startswith(warned)
        assert "KL of 5e-05 nats" in collapses(caplog)[0]
        assert "nothing of its image" in collapses(caplog)[0]


@pytest.mark.parametrize(("log_variance", "silent"), [(0.0, True), (-3.0, False)])
@pytest.mark.parametrize("name", ["vae", "conv-vae", "vocoder"])
def test_a_code_that_says_nothing_is_found(small, data_of, tmp_path, caplog, name, log_variance, silent):
    """μ and log σ² are the same for every item: with a log σ² of 0 too they are the prior's."""
    model = small(name)
    last = model.code if isinstance(model.code, torch.nn.Linear) else model.code[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
        last.bias[model.latent_dim :] = log_variance
    config = default_config(model, steps=4, learning_rate=1e-12, sample_interval=0, log_interval=1)
    with caplog.at_level(logging.WARNING, logger="aigc_fast"):
        train(model, data_of(name), config, tmp_path)
    assert len(collapses(caplog)) == silent


def test_a_generator_that_would_never_be_trained_is_refused(run, tmp_path):
    for settings in ({"steps": 3}, {"steps": None, "epochs": 1, "batch_size": 16}):
        with pytest.raises(UserError, match=r"steps=3: the generator is never trained.*at least 5 steps"):
            run(tmp_path, name="mlp-gan", loss="wgan-gp", **settings)
    assert not list(tmp_path.iterdir())
    rows = run(tmp_path, name="mlp-gan", loss="wgan-gp", steps=5, log_interval=1).rows
    assert ["g_loss" in row for row in rows] == [False] * 4 + [True]
