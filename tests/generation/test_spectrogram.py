"""Spectrograms show the right frequency at the right time, in the right grey."""

import math

import pytest
import torch

from aigc_fast.generation import Provenance, spectrogram_image, write_png

RATE = 16000


def tone(frequency, length=RATE):
    return torch.sin(2 * math.pi * frequency * torch.arange(length) / RATE)


@pytest.mark.parametrize(("width", "height"), [(512, 256), (100, 65), (1, 1), (3000, 700)])
@pytest.mark.parametrize("length", [1, 100, 20000])
def test_any_size(width, height, length):
    image = spectrogram_image(torch.randn(length), RATE, width=width, height=height)
    assert image.shape == (1, height, width)
    assert image.dtype == torch.float32
    assert -1 <= image.min() <= image.max() <= 1


@pytest.mark.parametrize("frequency", [500, 2000, 7000])
def test_a_tone_is_a_line_at_its_height(frequency):
    image = spectrogram_image(tone(frequency), RATE)[0]
    rows = image[:, 20:-20].argmax(0)
    assert (rows - (256 - 256 * frequency / 8000)).abs().max() <= 2
    assert image.max() > 0.9
    assert image[:, 20:-20].median() == -1


def test_time_runs_to_the_right():
    sound = torch.cat([torch.zeros(RATE), tone(1000), torch.zeros(2 * RATE)])
    bright = (spectrogram_image(sound, RATE, width=400)[0] > 0).any(0).nonzero()
    assert abs(bright.min() - 100) <= 4
    assert abs(bright.max() - 200) <= 4


def test_the_range_is_in_decibels():
    sound = torch.cat([tone(1000), 0.01 * tone(1000)])
    image = spectrogram_image(sound, RATE, decibels=80.0)[0].amax(0)
    assert image[100].item() == pytest.approx(1, abs=0.1)
    assert (image[100] - image[400]).item() == pytest.approx(40 / 80 * 2, abs=0.05)


def test_loudness_has_no_part_and_silence_is_black():
    sound = torch.randn(RATE)
    torch.testing.assert_close(spectrogram_image(sound, RATE), spectrogram_image(0.01 * sound, RATE), atol=1e-3, rtol=0)
    assert (spectrogram_image(torch.zeros(500), RATE) == -1).all()


def test_write_png_takes_it(tmp_path):
    write_png(tmp_path / "a.png", spectrogram_image(tone(300), RATE), Provenance("vocoder", 0))
    assert (tmp_path / "a.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"audio": torch.zeros(2, 9)}, "audio"),
        ({"audio": torch.zeros(0)}, "audio"),
        ({"audio": torch.zeros(9, dtype=torch.int16)}, "audio"),
        ({"sample_rate": 0}, "sample_rate=0"),
        ({"width": 0}, "width=0"),
        ({"height": -1}, "height=-1"),
        ({"decibels": 0.0}, "decibels=0.0"),
    ],
)
def test_bad_arguments_are_named(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        spectrogram_image(**{"audio": torch.zeros(9), "sample_rate": RATE, **arguments})
