"""The vocoder's parts against scipy and against sounds of known pitch, and what it makes of the package's own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import torch

from aigc_fast.data.sounds import vowels_and_strings
from aigc_fast.functional import ar_recursion
from aigc_fast.generation import provenance_of
from aigc_fast.metrics import multi_resolution_spectral_distance
from aigc_fast.models import SourceFilterVocoder, VocoderFrames
from aigc_fast.models.vocoder import pulse_train
from aigc_fast.models.vocoder.analysis import (
    autocorrelation,
    frames_of,
    frames_within,
    levinson,
    normalised_difference,
    pre_emphasis,
    root_mean_square,
    yin,
    yin_frame_size,
)
from aigc_fast.models.vocoder.synthesis import inverse_filter, pitch_of_samples, to_samples
from aigc_fast.ops.recursion.reflection import coeffs_of_reflection

RATE = 16000


@pytest.fixture(scope="module")
def corpus():
    return vowels_and_strings(8000, each=1)


@pytest.fixture(scope="module")
def vocoder():
    return SourceFilterVocoder()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("order", [1, 2, 18])
def test_levinson_solves_the_toeplitz_equations(order):
    frames = torch.randn(2, 3, 200, dtype=torch.float64)
    correlation = autocorrelation(frames, order)
    reflection, error = levinson(correlation)
    coeffs = coeffs_of_reflection(reflection)
    assert reflection.shape == (2, 3, order)
    assert (reflection.abs() < 1).all()
    for index in np.ndindex(2, 3):
        r = correlation[index].numpy()
        expected = scipy.linalg.solve_toeplitz(r[:-1], r[1:])
        np.testing.assert_allclose(coeffs[index], expected, atol=1e-10)
        np.testing.assert_allclose(error[index], r[0] - r[1:] @ expected, rtol=1e-10)


def test_autocorrelation_is_numpy_s():
    frame = torch.randn(33, dtype=torch.float64)
    expected = np.correlate(frame, frame, "full")[32:41]
    np.testing.assert_allclose(autocorrelation(frame, 8), expected, atol=1e-12)


def test_frames_are_centred_and_cover_all():
    frames = frames_of(torch.arange(1.0, 11.0), 4, 3)
    assert frames.tolist() == [[0, 0, 1, 2], [2, 3, 4, 5], [5, 6, 7, 8], [8, 9, 10, 0], [0, 0, 0, 0]]
    assert frames_of(torch.arange(9.0), 4, 3).shape == (4, 4)


def test_frames_within_stay_inside():
    frames = frames_within(torch.arange(1.0, 11.0), 4, 3)
    assert frames.tolist() == [[1, 2, 3, 4], [2, 3, 4, 5], [5, 6, 7, 8], [7, 8, 9, 10], [7, 8, 9, 10]]
    assert frames_within(torch.ones(2, 2), 4, 3).tolist() == [[[1, 1, 0, 0]] * 2] * 2


def test_pre_emphasis_and_inverse_filter_are_scipy_s():
    audio = torch.randn(2, 50, dtype=torch.float64)
    np.testing.assert_allclose(pre_emphasis(audio, 0.9), scipy.signal.lfilter([1, -0.9], [1], audio), atol=1e-12)
    coeffs = torch.tensor([0.5, -0.3, 0.1], dtype=torch.float64)
    found = inverse_filter(audio, coeffs.expand(2, 50, 3))
    np.testing.assert_allclose(found, scipy.signal.lfilter([1, -0.5, 0.3, -0.1], [1], audio), atol=1e-12)


def test_frames_become_samples_on_straight_lines():
    frames = torch.tensor([[0.0], [4.0], [2.0]])
    assert to_samples(frames, 4, 7)[:, 0].tolist() == [0, 1, 2, 3, 4, 3.5, 3]


def test_the_pitch_does_not_glide_from_silence():
    pitch = pitch_of_samples(torch.tensor([0.0, 100.0, 200.0, 0.0]), 4, 12)
    assert pitch.tolist() == pytest.approx([0, 0, 0, 100, 100, 125, 150, 175, 200, 200, 0, 0])


@pytest.mark.parametrize("pitch", [60.0, 101.3, 250.0, 439.0])
def test_a_pulse_train_has_its_harmonics_and_unit_power(pitch):
    pulses = pulse_train(torch.full((RATE,), pitch, dtype=torch.float64), RATE)
    harmonics = int(np.ceil(RATE / 2 / pitch)) - 1
    at = np.arange(RATE) * pitch / RATE
    expected = 2 * sum(np.cos(2 * np.pi * k * at) for k in range(1, harmonics + 1)) / np.sqrt(2 * harmonics)
    np.testing.assert_allclose(pulses, expected, atol=1e-6)
    assert pulses.square().mean().item() == pytest.approx(1, rel=0.02)


def test_a_pulse_train_of_no_pitch_is_silent():
    assert not pulse_train(torch.zeros(2, 9), RATE).any()


@pytest.mark.parametrize("pitch", [65.0, 82.4, 129.7, 233.1, 311.0, 480.0])
@pytest.mark.parametrize("filtered", [False, True])
def test_the_pitch_of_a_pulse_train(vocoder, pitch, filtered):
    audio = pulse_train(torch.full((6000,), pitch), RATE)
    if filtered:
        audio = ar_recursion(audio, torch.tensor([1.6, -0.8]))
    frames = vocoder.analyse(audio)
    np.testing.assert_allclose(frames.pitch, pitch, rtol=0.01)
    assert (frames.voicing > 0.9).all()


def test_a_gliding_pitch_is_followed(vocoder):
    pitch = torch.linspace(100, 200, RATE)
    frames = vocoder.analyse(pulse_train(pitch, RATE))
    np.testing.assert_allclose(frames.pitch[10:-10], pitch[:: vocoder.hop][10:-9], rtol=0.01)


def test_noise_and_silence_have_no_pitch(vocoder):
    assert (vocoder.analyse(torch.randn(RATE)).pitch > 0).float().mean() < 0.02
    silent = vocoder.analyse(torch.zeros(2, 999))
    assert not silent.pitch.any()
    assert not silent.voicing.any()
    assert vocoder.synthesise(silent).abs().max() < 1e-3


def test_the_difference_function_is_yin_s():
    frame = torch.randn(40, dtype=torch.float64)
    lags, width = 15, 25
    x = frame.numpy()
    d = np.array([((x[:width] - x[lag : lag + width]) ** 2).sum() for lag in range(lags + 1)])
    expected = np.concatenate([[1], d[1:] * np.arange(1, lags + 1) / d[1:].cumsum()])
    np.testing.assert_allclose(normalised_difference(frame, lags), expected, atol=1e-10)


def test_pitch_of_a_batch_is_that_of_each():
    size = yin_frame_size(RATE, 60)
    frames = torch.stack([pulse_train(torch.full((size,), pitch), RATE) for pitch in (100.0, 150.0)])
    pitch, voicing = yin(frames, RATE, 60, 500)
    alone = [yin(frame, RATE, 60, 500) for frame in frames]
    assert torch.equal(pitch, torch.stack([one[0] for one in alone]))
    assert torch.equal(voicing, torch.stack([one[1] for one in alone]))


def test_a_known_filter_is_found(vocoder):
    coeffs = torch.tensor([1.2, -0.8], dtype=torch.float64)
    audio = torch.from_numpy(scipy.signal.lfilter([1], [1, -1.2, 0.8], np.random.default_rng(0).normal(size=RATE)))
    model = SourceFilterVocoder(order=2, emphasis=0.0, frame_size=2048)
    found = coeffs_of_reflection(model.analyse(audio).reflection)[20:-20].mean(0)
    np.testing.assert_allclose(found, coeffs, atol=0.02)
    np.testing.assert_allclose(model.analyse(audio).gain[20:-20].mean(), 1, atol=0.05)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 5e-4)])
def test_the_residual_gives_the_sound_back(corpus, vocoder, dtype, tolerance):
    audio = corpus.audio.to(dtype)
    frames = vocoder.analyse(audio)
    again = vocoder.synthesise(frames, excitation=vocoder.residual(audio, frames))
    torch.testing.assert_close(again, audio, atol=tolerance, rtol=0)


def test_resynthesis_is_much_nearer_than_another_class(corpus, vocoder):
    found = vocoder.resynthesise(corpus.audio, generator=seeded())
    own = multi_resolution_spectral_distance(found, corpus.audio, reduction="none")
    count = len(corpus)
    pairs = torch.cartesian_prod(torch.arange(count), torch.arange(count))
    other = pairs[corpus.labels[pairs[:, 0]] != corpus.labels[pairs[:, 1]]]
    distance = multi_resolution_spectral_distance(
        corpus.audio[other[:, 0]], corpus.audio[other[:, 1]], reduction="none"
    )
    nearest = torch.stack([distance[other[:, 1] == index].min() for index in range(count)])
    assert own.mean() < distance.mean() / 3
    assert (own < nearest).all()


def test_resynthesis_keeps_pitch_and_loudness(corpus, vocoder):
    audio = corpus.audio[:15]
    before, found = vocoder.analyse(audio), vocoder.resynthesise(audio, generator=seeded())
    after = vocoder.analyse(found)
    both = (before.pitch > 0) & (after.pitch > 0)
    assert both.float().mean() > 0.95
    error = (after.pitch / before.pitch - 1)[both].abs()
    assert error.median() < 0.01
    loudness = found.square().mean(-1) / audio.square().mean(-1)
    # Of single sounds it depends on the noise that was drawn: 0.68 to 2.3 over seeds.
    assert 0.8 < loudness.median() < 1.4
    assert ((loudness > 0.4) & (loudness < 4)).all()


def test_the_pitch_can_be_changed(corpus, vocoder):
    frames = vocoder.analyse(corpus.audio[5:10])
    lower = dataclasses.replace(frames, pitch=frames.pitch * 0.7)
    again = vocoder.analyse(vocoder.synthesise(lower, generator=seeded()))
    both = (lower.pitch > 0) & (again.pitch > 0)
    assert both.float().mean() > 0.9
    assert (again.pitch / lower.pitch - 1)[both].abs().median() < 0.01


@pytest.mark.parametrize("length", [1, 79, 80, 81, 1000])
def test_any_length_comes_back(vocoder, length):
    audio = torch.randn(2, length)
    frames = vocoder.analyse(audio)
    found = vocoder.resynthesise(audio)
    assert found.shape == audio.shape
    assert torch.isfinite(found).all()
    assert frames.gain.shape == (2, -(-length // 80) + 1)
    assert vocoder.resynthesise(audio[0]).shape == (length,)


def test_a_seed_makes_the_noise_repeatable(vocoder):
    audio = torch.randn(2000)
    first, same, other = (vocoder.resynthesise(audio, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_gradients_of_the_analysis_and_the_synthesis():
    model = SourceFilterVocoder(order=3, hop=8, frame_size=16, min_pitch=1000, max_pitch=4000, emphasis=0.5)
    audio = torch.randn(30, dtype=torch.float64, requires_grad=True)

    def analysed(x):
        frames = model.analyse(x)
        return frames.reflection, frames.gain

    assert torch.autograd.gradcheck(analysed, audio)
    frames = model.analyse(audio.detach())

    def synthesised(reflection, gain, pitch, voicing):
        return model.synthesise(VocoderFrames(reflection, gain, pitch, voicing, frames.length), generator=seeded())

    pitch = torch.linspace(1650, 1900, 5, dtype=torch.float64)
    voicing = torch.linspace(0.2, 0.9, 5, dtype=torch.float64)
    inputs = (frames.reflection, frames.gain, pitch, voicing)
    assert torch.autograd.gradcheck(synthesised, [tensor.requires_grad_() for tensor in inputs])


def test_gradients_at_no_and_full_voicing_are_finite(vocoder):
    frames = vocoder.analyse(torch.randn(400))
    pitch = torch.tensor([0.0, 0.0, 100.0, 100.0, 0.0, 100.0], requires_grad=True)
    voicing = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0, 1.0], requires_grad=True)
    vocoder.synthesise(dataclasses.replace(frames, pitch=pitch, voicing=voicing)).square().sum().backward()
    assert torch.isfinite(pitch.grad).all()
    assert torch.isfinite(voicing.grad).all()


def test_silence_has_finite_gradients(vocoder):
    audio = torch.zeros(500, requires_grad=True)
    frames = vocoder.analyse(audio)
    (frames.reflection.sum() + frames.gain.sum()).backward()
    assert torch.isfinite(audio.grad).all()


def test_loudness_under_the_window():
    window = torch.hann_window(64, dtype=torch.float64)
    assert root_mean_square(torch.full((64,), 0.25, dtype=torch.float64), window).item() == pytest.approx(0.25)


def test_a_twin_is_built_from_the_configuration(vocoder):
    twin = SourceFilterVocoder(**vocoder.config)
    audio = torch.randn(1000)
    assert torch.equal(twin.analyse(audio).reflection, vocoder.analyse(audio).reflection)
    assert provenance_of(vocoder, 3).settings == {"config": vocoder.config}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"sample_rate": 0}, "sample_rate=0"),
        ({"order": 0}, "order=0"),
        ({"hop": -1}, "hop=-1"),
        ({"frame_size": 18}, "frame_size=18"),
        ({"min_pitch": 500.0}, "min_pitch=500.0"),
        ({"max_pitch": 9000.0}, "max_pitch=9000.0"),
        ({"emphasis": 1.0}, "emphasis=1.0"),
    ],
)
def test_a_configuration_out_of_range_is_named(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        SourceFilterVocoder(**arguments)


@pytest.mark.parametrize(
    "audio", [torch.zeros(1, 2, 3), torch.zeros(0), torch.zeros(5, dtype=torch.int16), torch.zeros(5).half()]
)
def test_audio_that_does_not_fit_is_named(vocoder, audio):
    with pytest.raises(ValueError, match="audio: expected"):
        vocoder.analyse(audio)


def test_frames_that_do_not_fit_are_named(vocoder):
    frames = vocoder.analyse(torch.randn(2, 500))
    for changes, expected in (
        ({"length": 700}, r"frames\.reflection: expected \(10, 18\)"),
        ({"reflection": frames.reflection[..., :5]}, r"frames\.reflection"),
        ({"gain": frames.gain[0]}, r"frames\.gain"),
        ({"pitch": frames.pitch[:, 1:]}, r"frames\.pitch"),
        ({"voicing": frames.voicing[:, 1:]}, r"frames\.voicing"),
    ):
        with pytest.raises(ValueError, match=expected):
            vocoder.synthesise(dataclasses.replace(frames, **changes))
    with pytest.raises(ValueError, match=r"excitation: expected shape \(2, 500\)"):
        vocoder.synthesise(frames, excitation=torch.zeros(2, 499))
