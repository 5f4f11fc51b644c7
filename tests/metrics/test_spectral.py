"""The spectral distance against its formula, and as a loss."""

import numpy as np
import pytest
import scipy.signal
import torch

from aigc_fast.metrics import multi_resolution_spectral_distance

RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))


def by_formula(audio, reference):
    total = 0
    for size, hop, length in RESOLUTIONS:
        window = np.zeros(size)
        start = (size - length) // 2
        window[start : start + length] = scipy.signal.get_window("hann", length)
        S, R = (
            np.array([np.fft.rfft(window * frame[:size]) for frame in framed(signal, size, hop)])
            for signal in (audio, reference)
        )
        S, R = (np.sqrt(np.maximum(np.abs(spectrum) ** 2, 1e-7)) for spectrum in (S, R))
        norm = max(np.linalg.norm(R), 0.01 * np.sqrt(R.size * (window**2).sum()))
        total += np.linalg.norm(R - S) / norm + np.abs(np.log(R) - np.log(S)).mean()
    return total / len(RESOLUTIONS)


def framed(signal, size, hop):
    padded = np.pad(signal, size // 2)
    return [padded[at : at + size] for at in range(0, len(signal) + 1, hop)]


@pytest.mark.parametrize("level", [1.0, 0.02, 0.005, 0.0])
@pytest.mark.parametrize("length", [1, 300, 5001])
def test_distance_is_the_paper_s_with_a_floor(length, level):
    audio, reference = torch.randn(2, length, dtype=torch.float64)
    reference *= level
    found = multi_resolution_spectral_distance(audio, reference)
    assert found.shape == ()
    assert found.item() == pytest.approx(by_formula(audio.numpy(), reference.numpy()), rel=1e-9)


def test_each_signal_of_a_batch_is_on_its_own():
    audio, reference = torch.randn(2, 3, 900, dtype=torch.float64)
    each = multi_resolution_spectral_distance(audio, reference, reduction="none")
    alone = [multi_resolution_spectral_distance(a, b) for a, b in zip(audio, reference, strict=True)]
    torch.testing.assert_close(each, torch.stack(alone))
    torch.testing.assert_close(multi_resolution_spectral_distance(audio, reference), each.mean())


def test_zero_for_itself_and_blind_to_the_sign():
    audio = torch.randn(2000)
    assert multi_resolution_spectral_distance(audio, audio) == 0
    assert multi_resolution_spectral_distance(-audio, audio) == 0


def test_a_smaller_error_is_nearer():
    reference, error = torch.randn(2, 4000)
    distances = [multi_resolution_spectral_distance(reference + scale * error, reference) for scale in (0.01, 0.1, 1)]
    assert distances == sorted(distances)


@pytest.mark.parametrize("level", [0.0, 1e-6, 1e-4])
def test_a_silent_reference_does_not_outweigh_the_others(level):
    noise = torch.randn(2, 16000)
    sound = (0.2 * noise[0]).requires_grad_()
    loud = multi_resolution_spectral_distance(sound, 0.2 * noise[1])
    silent = multi_resolution_spectral_distance(sound, level * noise[1])
    assert silent < 30 * loud
    silent.backward()
    assert sound.grad.isfinite().all()


def test_silence_has_a_finite_distance_and_gradient():
    silence = torch.zeros(700, requires_grad=True)
    distance = multi_resolution_spectral_distance(silence, torch.zeros(700))
    distance.backward()
    assert distance == 0
    assert torch.isfinite(silence.grad).all()
    assert torch.isfinite(multi_resolution_spectral_distance(torch.randn(700), torch.zeros(700)))


def test_gradients():
    reference = torch.randn(40, dtype=torch.float64)
    audio = torch.randn(40, dtype=torch.float64, requires_grad=True)
    small = ((32, 8, 24), (16, 8, 16))
    assert torch.autograd.gradcheck(
        lambda x: multi_resolution_spectral_distance(x, reference, resolutions=small), audio, atol=1e-4
    )


@pytest.mark.parametrize("shapes", [((5,), (6,)), ((1, 1, 5), (1, 1, 5)), ((0,), (0,)), ((), ())])
def test_shapes_that_do_not_fit_are_named(shapes):
    with pytest.raises(ValueError, match="audio and reference"):
        multi_resolution_spectral_distance(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def test_an_unknown_reduction_is_named():
    with pytest.raises(ValueError, match="reduction='sum'"):
        multi_resolution_spectral_distance(torch.zeros(5), torch.zeros(5), reduction="sum")
