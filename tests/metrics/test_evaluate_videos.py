"""Metrics of video: PSNR and SSIM, motion, and a distance that sees what moves, and how."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from aigc_fast.data import moving_digits
from aigc_fast.media.video import VIDEO
from aigc_fast.metrics import evaluate_videos, frechet_distance, load_video_classifier, psnr, ssim
from aigc_fast.metrics.video import displacement, drift, motion
from aigc_fast.metrics.video_classifier import DIGITS, KINDS, VideoClassifier, train_video_classifier


@pytest.fixture(scope="module")
def clips():
    """Of digits that no training has seen, and where they are."""
    return moving_digits(400, frames=10, seed=5)


@pytest.fixture(scope="module")
def others():
    return moving_digits(400, frames=10, seed=6).batch()


def noise_like(clips, seed=0):
    return torch.rand(clips.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_ssim_is_that_of_a_gaussian_window():
    """By scipy's filter, which reaches as far, where it lies inside."""
    x, y = torch.rand(2, 3, 1, 24, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    y = 0.7 * x + 0.3 * y

    def blurred(image):
        return gaussian_filter(image, 1.5, truncate=3.5, mode="constant")[5:-5, 5:-5]

    for frame, reference, found in zip(x[:, 0].numpy(), y[:, 0].numpy(), ssim(x, y), strict=True):
        a, b = blurred(frame), blurred(reference)
        variances = blurred(frame**2) - a**2, blurred(reference**2) - b**2
        covariance = blurred(frame * reference) - a * b
        c1, c2 = 0.02**2, 0.06**2
        expected = (2 * a * b + c1) * (2 * covariance + c2) / ((a**2 + b**2 + c1) * (sum(variances) + c2))
        assert found.item() == pytest.approx(expected.mean(), abs=1e-9)


def test_ssim_and_psnr_of_equal_and_unlike_frames():
    frames = noise_like(torch.empty(2, 5, 3, 20, 20))
    torch.testing.assert_close(ssim(frames, frames), torch.ones(2, 5, dtype=torch.float64))
    assert (psnr(frames, frames) > 80).all()
    assert psnr(frames, frames + 0.2).numpy() == pytest.approx(20.0, abs=1e-5)
    worse = [ssim(frames, frames + level * noise_like(frames, 1)).mean() for level in (0.1, 0.5, 2.0)]
    assert worse == sorted(worse, reverse=True)
    assert ssim(frames[..., :4, :7], frames[..., :4, :7]).shape == (2, 5)


def test_drift_is_the_way_between_centres_of_what_is_bright(clips):
    frames, paths = clips.batch()[:20], clips.paths[:20, :, 0].double()
    expected = (paths - paths[:, :1]).norm(dim=-1)
    torch.testing.assert_close(drift(frames, frames[:, :1].expand_as(frames)), expected, atol=1e-4, rtol=1e-4)
    dark = -torch.ones(1, 1, 9, 9)
    assert drift(dark, dark) == 0


def test_displacement_is_that_of_each_step(clips):
    frames, steps = clips.batch()[:20], clips.paths[:20, :, 0].double().diff(dim=1)
    still = frames[:, :1].expand(-1, 9, -1, -1, -1)
    found = displacement(still, frames[:, 1:], frames[:, 0])
    torch.testing.assert_close(found, steps.norm(dim=-1), atol=1e-3, rtol=1e-3)
    late = displacement(frames[:, :9], frames[:, 1:], frames[:, 0])
    lag = torch.cat([steps[:, :1], steps.diff(dim=1)], dim=1)
    torch.testing.assert_close(late, lag.norm(dim=-1), atol=1e-3, rtol=1e-3)


def test_what_cannot_be_compared_is_told():
    for measure in (psnr, ssim, drift):
        with pytest.raises(ValueError, match="reference: expected frames' shape"):
            measure(torch.zeros(1, 4, 4), torch.zeros(1, 4, 5))
        with pytest.raises(ValueError, match="frames: expected"):
            measure(torch.zeros(4, 4), torch.zeros(4, 4))
        with pytest.raises(TypeError):
            measure([0.0], torch.zeros(1, 4, 4))


def test_the_shipped_network_knows_what_moves_and_how(clips):
    model = load_video_classifier()
    digits, kinds, velocity = model(clips.batch()[:100])
    known = digits.argmax(1) == clips.labels[:100]
    assert known.float().mean() > 0.6
    assert (kinds.argmax(1) == KINDS.index("moves")).float().mean() > 0.9
    steps = clips.paths[:100].diff(dim=1).float().mean((1, 2))
    assert (velocity[:, :2] - steps).abs().mean() < 0.6
    _, kinds, velocity = model(clips.batch()[:50, :1].expand(-1, 10, -1, -1, -1))
    assert (kinds.argmax(1) == KINDS.index("stands still")).float().mean() > 0.9
    assert velocity.abs().mean() < 0.6


def test_the_distance_is_small_between_clips_alike_and_large_to_others(clips, others):
    model, real = load_video_classifier(), clips.batch()
    features = model.features_of(real)
    alike = frechet_distance(features, model.features_of(others))
    order = torch.rand(400, 10, generator=torch.Generator().manual_seed(0)).argsort(1)
    unlike = {
        "still": others[:, :1].expand_as(others),
        "jumping": others[torch.arange(400)[:, None], order],
        "noise": noise_like(others),
        "noisy": others + 0.6 * noise_like(others),
        "one": others[:1] + 0.01 * noise_like(others),
        "slow": others[:, :5].repeat_interleave(2, 1),
    }
    for name, other in unlike.items():
        assert frechet_distance(features, model.features_of(other)) > 5 * alike, name


def test_training_is_repeatable_and_leaves_chance_alone():
    state = torch.random.get_rng_state()
    first, second = (train_video_classifier(steps=2) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value)


def test_clips_of_any_size_colour_and_length_have_features(clips):
    model = load_video_classifier()
    grey = clips.batch()[:4]
    torch.testing.assert_close(model.features(grey.expand(-1, -1, 3, -1, -1)), model.features(grey))
    assert model.features(torch.zeros(2, 2, 3, 12, 20)).shape == (2, 48)
    torch.testing.assert_close(model.features_of(clips.batch()[:70]), model.features(clips.batch()[:70]))
    assert [part.shape[1] for part in model(grey)] == [DIGITS, len(KINDS), 3]
    for wrong in (torch.zeros(2, 1, 1, 8, 8), torch.zeros(2, 3, 8, 8)):
        with pytest.raises(ValueError, match="clips: expected"):
            model.features(wrong)


def test_the_weights_are_small():
    model = VideoClassifier()
    assert 4 * sum(parameter.numel() for parameter in model.parameters()) < 300_000


def test_the_report_tells_motion_and_what_stands_still(clips, others):
    report = evaluate_videos(others[:100], clips.batch())
    assert report.frechet < 5 * report.frechet_of_training
    assert report.motion == pytest.approx(report.motion_of_training, rel=0.2)
    assert report.still < 0.1
    assert report.psnr is None
    still = evaluate_videos(others[:100, :1].expand(-1, 10, -1, -1, -1), clips.batch())
    assert (still.motion, still.still) == (0, 1)
    assert json.loads(json.dumps(still.as_dict()))["count"] == 100
    half = evaluate_videos(others[:100, :6].repeat_interleave(2, 1), clips.batch())
    assert half.still == pytest.approx(6 / 11, abs=0.05)


def test_predictions_are_measured_frame_by_frame(clips, others):
    truth = clips.batch()[:20]
    report = evaluate_videos(others[:50], clips.batch())
    found = report.with_predictions(truth[:, 4:] + 0.02, truth[:, 4:], truth[:, 3])
    assert found.psnr_by_frame == pytest.approx([40.0] * 6, abs=1e-3)
    assert found.psnr == pytest.approx(40, abs=1e-3)
    assert found.psnr_of_copies < 25
    assert found.drift < 0.1 < 2 < found.drift_of_copies
    assert found.displacement < 0.1 < 1 < found.displacement_of_copies
    assert found.ssim > 0.9 > found.ssim_of_copies
    assert (
        np.diff(
            report.with_predictions(truth[:, 3:4].expand(-1, 6, -1, -1, -1), truth[:, 4:], truth[:, 3]).drift_by_frame
        ).min()
        > 0
    )


def test_futures_alike_are_told(clips, others):
    report = evaluate_videos(others[:50], clips.batch())
    assert report.variety is None
    assert VIDEO.remarks(report) == []
    first, second = clips.batch()[:20, 4:], others[:20, 4:]
    apart = report.with_futures(first, second)
    assert apart.variety == pytest.approx((first - second).abs().mean().item())
    assert VIDEO.remarks(apart) == []
    alike = report.with_futures(first, first + 0.05 * report.motion_of_training)
    assert "all alike" in VIDEO.remarks(alike)[0]


def test_motion_is_a_mean_of_differences():
    clips = torch.zeros(1, 3, 1, 2, 2)
    clips[0, 1, 0, 0, 0] = 1.0
    torch.testing.assert_close(motion(clips), torch.tensor([[0.25, 0.25]]))


@pytest.mark.parametrize(
    ("generated", "words"),
    [
        (torch.zeros(1, 4, 1, 8, 8), "generated: expected at least 2 clips"),
        (torch.zeros(4, 1, 1, 8, 8), "of 2 frames and more"),
        (torch.zeros(4, 4, 3, 8, 8), r"frames of shape \(1, 8, 8\)"),
        (torch.full((4, 4, 1, 8, 8), torch.nan), "finite"),
    ],
)
def test_clips_that_cannot_be_measured_are_told(generated, words):
    with pytest.raises(ValueError, match=words):
        evaluate_videos(generated, torch.zeros(8, 4, 1, 8, 8))
