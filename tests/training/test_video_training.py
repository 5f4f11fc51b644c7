"""Training of VideoRNN: what is scheduled, what is counted, and that frames move as they should."""

from __future__ import annotations

import pytest
import torch

from aigc_fast.data import moving_digits
from aigc_fast.errors import UserError
from aigc_fast.generation import read_provenance, read_video_provenance
from aigc_fast.media.video import foretell
from aigc_fast.metrics.video import centre
from aigc_fast.models import VideoRNN, load
from aigc_fast.models.base import evaluating
from aigc_fast.training import VideoConfig, VideoTrainer, default_config, train

TINY = {"frame_shape": (1, 16, 16), "frames": 6, "given": 2, "width": 4, "hidden": 4, "latent_dim": 2}


def tiny(**config):
    torch.manual_seed(0)
    return VideoRNN(**{**TINY, **config})


@pytest.fixture(scope="module")
def clips():
    return moving_digits(40, size=16, frames=6)


def trainer_of(**settings):
    return VideoTrainer(tiny(), VideoConfig(**settings))


@pytest.mark.parametrize("schedule", ["linear", "exponential", "inverse-sigmoid"])
def test_own_frames_come_in_from_none_to_their_share(schedule):
    trainer = trainer_of(schedule=schedule, schedule_steps=100, own_share=0.8)
    shares = []
    for trainer.step_count in range(0, 140, 20):
        shares.append(trainer.own_probability())
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(0, abs=0.01)
    assert shares[-1] == pytest.approx(0.8, abs=0.01)
    assert 0.1 < shares[3] < 0.8
    assert trainer_of(schedule="none").own_probability() == 0


def test_the_steps_that_read_own_frames_come_after_the_given_ones(clips, monkeypatch):
    model, read = tiny(), []
    forward = VideoRNN.forward
    monkeypatch.setattr(
        VideoRNN, "forward", lambda self, x, y, own, *a: read.append(own) or forward(self, x, y, own, *a)
    )
    for share in (0.0, 1.0, 0.5):
        trainer = VideoTrainer(model, VideoConfig(schedule_steps=1, own_share=share))
        trainer.step_count = 5
        values = [trainer.step(clips.batch(slice(0, 4)))["own"] for _ in range(8)]
        assert (sum(values) / 8 == share) or share == 0.5
    assert read[:8] == [[]] * 8
    assert read[8:16] == [[3, 4, 5]] * 8
    assert len({tuple(own) for own in read[16:]}) > 1


def test_clips_begin_at_other_places_in_each_step_and_always_before_their_last_frame(clips, monkeypatch):
    model, read = tiny(), []
    forward = VideoRNN.forward
    monkeypatch.setattr(VideoRNN, "forward", lambda self, *args: read.append(args[-1]) or forward(self, *args))
    trainer = VideoTrainer(model, VideoConfig(beginnings=3))
    torch.manual_seed(0)
    for _ in range(12):
        trainer.step(clips.batch(slice(0, 4)))
    assert all(len(set(places)) == 3 for places in read)
    assert {place for places in read for place in places} == set(range(5))
    assert len({tuple(places) for places in read}) > 6
    VideoTrainer(model, VideoConfig(beginnings=100)).step(clips.batch(slice(0, 4)))
    assert sorted(read[-1]) == [0, 1, 2, 3, 4]


def test_what_clips_begin_with_has_a_learning_rate_of_its_own(clips):
    trainer = trainer_of(learning_rate=1e-3, beginnings_rate=4.0, warm_up=2)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.step(clips.batch(slice(0, 4)))
    for name, value in trainer.model.named_parameters():
        # Adam's first step is the learning rate's, half of which the first of two has.
        rate = 5e-4 * (4 if name.startswith("beginnings") else 1)
        assert (value - before[name]).abs().max().item() == pytest.approx(rate, rel=1e-2), name


def test_the_learning_rate_warms_up_and_halves(clips):
    trainer = trainer_of(warm_up=4, halving=8, learning_rate=0.01)
    rates = []
    for _ in range(9):
        trainer.step(clips.batch(slice(0, 2)))
        rates.append(trainer.optimizers["model"].param_groups[0]["lr"])
    assert rates[:3] == pytest.approx([0.01 * (n + 1) / 4 * 2 ** (-n / 8) for n in range(3)])
    assert rates[8] == pytest.approx(0.005)


def test_the_weight_of_the_kl_and_free_bits_are_counted_in_the_loss(clips):
    batch = clips.batch(slice(0, 6))
    for settings in ({}, {"beta": 0.5}, {"warmup": 10}, {"free_bits": 3.0}):
        torch.manual_seed(1)
        config = VideoConfig(**{"beta": 1.0, "warmup": 0, **settings})
        values = VideoTrainer(tiny(core="latent"), config).step(batch)
        beta = {"beta": 0.5, "warmup": 0.1}.get(next(iter(settings), ""), 1.0)
        counted = 6.0 if "free_bits" in settings else values["kl"]
        assert values["beta"] == pytest.approx(beta)
        assert values["loss"] == pytest.approx(values["reconstruction"] + beta * counted, rel=1e-4)
        assert values["elbo"] == pytest.approx(-values["reconstruction"] - values["kl"], rel=1e-5)


@pytest.mark.parametrize("core", ["convlstm", "latent"])
def test_samples_show_the_truth_what_is_foretold_and_what_is_drawn(tmp_path, clips, core):
    model = tiny(core=core, num_classes=10)
    config = default_config(model, steps=2, batch_size=4, sample_interval=2)
    train(model, clips, config, tmp_path)
    for name, read in (("step-00000002.apng", read_video_provenance), ("step-00000002.png", read_provenance)):
        record = read(tmp_path / "samples" / name)
        assert (record.model, record.settings["step"]) == ("video", 2)
    assert load(tmp_path / "model.safetensors").metadata["data"]["digits"] == 1


def test_foretold_clips_begin_with_the_given_frames(clips):
    truth, foretold = foretell(tiny(num_classes=10), clips, 3, seed=0)
    assert truth.shape == foretold.shape == (3, 6, 1, 16, 16)
    assert torch.equal(truth[:, :2], foretold[:, :2])
    assert not torch.equal(truth[:, 2], foretold[:, 2])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"schedule": "cosine"}, "schedule='cosine': expected one of linear"),
        ({"schedule_steps": 0}, "schedule_steps=0"),
        ({"own_share": 1.5}, "own_share=1.5: expected 0 to 1"),
        ({"halving": -1}, "halving=-1"),
        ({"clip": 0}, "clip=0"),
        ({"beginnings": 0}, "beginnings=0: expected at least 1"),
        ({"beginnings_rate": 0.0}, "beginnings_rate=0.0: expected above 0"),
    ],
)
def test_settings_out_of_range_are_told(settings, words):
    with pytest.raises(UserError) as error:
        VideoConfig(**settings)
    assert words in str(error.value)


def test_clips_of_another_shape_and_shifts_are_refused(tmp_path, clips):
    for config, words in ((TINY | {"frames": 5}, "frames is 6"), (TINY | {"frame_shape": (1, 8, 8)}, "frame_shape is")):
        with pytest.raises(UserError, match=words):
            train(VideoRNN(**config), clips, default_config(VideoRNN, steps=1), tmp_path)
    with pytest.raises(UserError, match="shift=1: it moves images"):
        train(tiny(), clips, default_config(VideoRNN, steps=1, shift=1), tmp_path)
    with pytest.raises(UserError, match="batches of at least 2"):
        train(tiny(), clips, default_config(VideoRNN, steps=1, batch_size=1), tmp_path)


def test_digits_move_as_they_should_for_five_frames_and_training_foretells_more_of_them():
    """Where they meet no border: their displacement in each frame is within a pixel of the true one."""
    clips = moving_digits(600, frames=10)
    shown, paths = clips.batch(slice(0, 60)), clips.paths[:60, :, 0]
    steps = paths.diff(dim=1)
    straight = (steps[:, 3:] == steps[:, 3:4]).all(-1).all(-1)
    assert straight.sum() > 10
    torch.manual_seed(0)
    model = VideoRNN(frames=10, width=8, hidden=8)

    def displacements_off():
        foretold = torch.cat([shown[:, 4:5], model.predict(shown[:, :5], 5)], dim=1)[straight]
        return torch.linalg.vector_norm(centre(foretold).diff(dim=1) - steps[straight, 4:], dim=-1)

    def log_likelihood():
        with evaluating(model):
            return model(shown, own=range(6, 10))[0].mean()

    before = log_likelihood()
    assert (displacements_off() <= 1).float().mean() > 0.95
    trainer = VideoTrainer(model, default_config(model, schedule_steps=10, warm_up=5))
    for step in range(15):
        trainer.step(clips.batch(slice(60 + 8 * step, 68 + 8 * step)))
    assert log_likelihood() > before
    assert (displacements_off() <= 1).float().mean() > 0.8
