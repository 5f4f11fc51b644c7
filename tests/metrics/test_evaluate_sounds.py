"""Distances of sounds, each from each, and what they say of copies, collapse and noise."""

from __future__ import annotations

import pytest
import torch

from aigc_fast.data.sounds import vowels_and_strings
from aigc_fast.metrics import evaluate_sounds, multi_resolution_spectral_distance, pairwise_spectral_distance


@pytest.fixture(scope="module")
def corpus():
    return vowels_and_strings(3000, each=2)


@pytest.mark.parametrize(("count", "references", "length"), [(3, 2, 700), (65, 3, 60), (1, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_pair_has_the_spectral_distance(count, references, length, dtype):
    audio, other = torch.randn(count, length, dtype=dtype), torch.randn(references, length, dtype=dtype)
    found = pairwise_spectral_distance(audio, other)
    assert (found.shape, found.dtype) == ((count, references), dtype)
    for row, sound in zip(found, audio, strict=True):
        expected = multi_resolution_spectral_distance(sound.expand_as(other), other, reduction="none")
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)


def test_silence_is_a_sound_as_others(corpus):
    silence = torch.zeros(2, 3000)
    assert pairwise_spectral_distance(silence, silence).abs().max() < 1e-6
    to_silence, from_silence = (
        pairwise_spectral_distance(*pair) for pair in ((corpus.audio, silence), (silence, corpus.audio))
    )
    # The logarithms alone are apart as far as from the quietest that is heard.
    assert to_silence.max() < 50
    assert from_silence.max() < 10
    report = evaluate_sounds(corpus.audio, torch.cat([corpus.audio, silence]))
    assert report.reach < 1.5
    expected = [
        multi_resolution_spectral_distance(sound.expand_as(silence), silence, reduction="none")
        for sound in corpus.audio
    ]
    torch.testing.assert_close(to_silence, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_no_sounds_are_no_distances():
    assert pairwise_spectral_distance(torch.zeros(0, 9), torch.zeros(3, 9)).shape == (0, 3)


def test_copies_collapse_and_noise_are_seen(corpus):
    copied = evaluate_sounds(corpus.audio[::2], corpus.audio)
    assert copied.nearest == pytest.approx(0, abs=1e-3)
    assert copied.spread > 0.1
    assert 0 < copied.reach < copied.nearest_of_noise
    assert copied.nearest_of_training < 0.5 * copied.nearest_of_noise
    collapsed = evaluate_sounds(corpus.audio[3].expand(5, -1), corpus.audio)
    assert collapsed.spread == pytest.approx(0, abs=1e-3)
    assert collapsed.reach > 2 * copied.reach
    hiss = evaluate_sounds(corpus.audio.square().mean().sqrt() * torch.randn(6, 3000), corpus.audio)
    assert hiss.nearest == pytest.approx(hiss.nearest_of_noise, rel=0.02)
    assert (hiss.count, hiss.training_count) == (6, len(corpus))
    assert hiss.as_dict()["nearest"] == hiss.nearest


def test_wrong_shapes_are_named(corpus):
    for audio in (torch.zeros(3000), torch.zeros(1, 3000), torch.zeros(2, 0)):
        with pytest.raises(ValueError, match="generated: expected at least 2 sounds"):
            evaluate_sounds(audio, corpus.audio)
    with pytest.raises(ValueError, match="training: expected at least 2 sounds"):
        evaluate_sounds(corpus.audio, corpus.audio[:1])
    with pytest.raises(ValueError, match=r"of one length and not empty, got \(2, 5\) and \(2, 6\)"):
        pairwise_spectral_distance(torch.zeros(2, 5), torch.zeros(2, 6))
