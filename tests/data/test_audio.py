"""WAV files of every kind, what is said of damaged ones, and the record that the package's own carry."""

from __future__ import annotations

import os
import struct
import sys

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch

import aigc_fast
from aigc_fast.data import read_wav, read_wav_provenance, resample, write_wav
from aigc_fast.errors import UserError
from aigc_fast.generation import Provenance

RATE = 16000
RECORD = Provenance("vocoder", 7, {"count": 3, "class": None, "note": "größer ≥ 2", "config": {"order": [1, 2]}})


def noise(*shape):
    return np.random.default_rng(0).uniform(-0.9, 0.9, shape)


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "whole.wav"
    soundfile.write(path, noise(400, 2), RATE, "PCM_16")
    return path.read_bytes()


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize(
    ("subtype", "tolerance"),
    [
        ("PCM_U8", 2**-7),
        ("PCM_16", 2**-15),
        ("PCM_24", 2**-23),
        ("PCM_32", 2**-24),
        ("FLOAT", 2**-24),
        ("DOUBLE", 2**-24),
        ("ULAW", 2**-5),
        ("ALAW", 2**-5),
    ],
)
def test_every_sample_format(tmp_path, subtype, tolerance, channels):
    samples = noise(300, channels)
    soundfile.write(tmp_path / "a.wav", samples, 11025, subtype)
    audio, rate = read_wav(tmp_path / "a.wav", mono=False)
    assert (rate, audio.dtype, tuple(audio.shape)) == (11025, torch.float32, (channels, 300))
    np.testing.assert_allclose(audio.T, samples, atol=1.01 * tolerance, rtol=0)
    mixed, _ = read_wav(tmp_path / "a.wav")
    torch.testing.assert_close(mixed, audio.mean(0))


@pytest.mark.parametrize("container", ["WAVEX", "RF64"])
def test_wav_s_relatives(tmp_path, container):
    soundfile.write(tmp_path / "a.wav", noise(50), RATE, "PCM_24", format=container)
    np.testing.assert_allclose(read_wav(tmp_path / "a.wav")[0], noise(50), atol=2**-23)


@pytest.mark.parametrize(
    "rates", [(44100, 16000), (8000, 16000), (16000, 44100), (22050, 16001), (3, 7), (48000, 8000)]
)
@pytest.mark.parametrize("length", [1, 17, 3001])
def test_resampling_is_scipy_s(rates, length):
    samples = noise(2, length)
    found = resample(torch.from_numpy(samples), *rates)
    expected = scipy.signal.resample_poly(samples, rates[1], rates[0], axis=-1)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_resampling_a_long_signal_in_parts():
    samples = noise(150_000)
    found = resample(torch.from_numpy(samples), 3, 2)
    np.testing.assert_allclose(found, scipy.signal.resample_poly(samples, 2, 3), atol=1e-12)


def test_resampling_has_gradients():
    audio = torch.rand(2, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: resample(x, 5, 3), audio)


def test_reading_at_another_rate(tmp_path):
    tone = np.sin(2 * np.pi * 440 * np.arange(44100) / 44100)
    soundfile.write(tmp_path / "a.wav", tone, 44100, "FLOAT")
    audio, rate = read_wav(tmp_path / "a.wav", RATE)
    assert (rate, len(audio)) == (RATE, RATE)
    expected = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    np.testing.assert_allclose(audio[100:-100], expected[100:-100], atol=2e-3)
    assert torch.equal(read_wav(tmp_path / "a.wav", 44100)[0], read_wav(tmp_path / "a.wav")[0])


def test_truncated_files_are_named(tmp_path, whole):
    start = whole.index(b"data")
    for end in (*range(1, start + 8), len(whole) // 2, len(whole) - 1):
        path = tmp_path / f"cut{end}.wav"
        path.write_bytes(whole[:end])
        with pytest.raises(
            UserError, match=rf"cut{end}\.wav: (truncated|damaged|expected at least one sample)"
        ) as error:
            read_wav(path)
        assert "\n" not in str(error.value)
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match="expected 1600 bytes of samples, got 1599"):
        read_wav(path)


def test_a_recording_of_unknown_length_ends_with_the_file(tmp_path, whole):
    start = whole.index(b"data") + 4
    (tmp_path / "a.wav").write_bytes(whole[:start] + struct.pack("<I", 0xFFFFFFFF) + whole[start + 4 :])
    assert len(read_wav(tmp_path / "a.wav")[0]) == 400


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "empty file"), (b"hello" * 99, "no WAV file"), (b"RIFF\4\0\0\0AVI ", "no WAV file"), (bytes(99), "no WAV")],
)
def test_what_is_not_wav_is_named(tmp_path, content, expected):
    (tmp_path / "bad.wav").write_bytes(content)
    for read in (read_wav, read_wav_provenance):
        with pytest.raises(UserError, match=rf"bad\.wav: .*{expected}"):
            read(tmp_path / "bad.wav")


def test_other_bad_files_are_named(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 1)), RATE)
    soundfile.write(tmp_path / "nan.wav", np.full(5, np.nan), RATE, "FLOAT")
    soundfile.write(tmp_path / "flac.wav", noise(50), RATE, format="FLAC")
    for name, expected in (
        ("none", "at least one sample"),
        ("nan", "finite samples"),
        ("flac", "expected a WAV file, got FLAC"),
        ("missing", "No such file"),
    ):
        with pytest.raises(UserError, match=rf"{name}\.wav: .*{expected}"):
            read_wav(tmp_path / f"{name}.wav")
    with pytest.raises(UserError, match="cannot be read"):
        read_wav(tmp_path)


@pytest.mark.parametrize("shape", [(1,), (401,), (2, 300)])
def test_record_and_samples_come_back(tmp_path, shape):
    audio = torch.from_numpy(noise(*shape)).mul(32768).round().div(32768).float()
    path = write_wav(tmp_path / "a.wav", audio, RATE, RECORD)
    assert read_wav_provenance(path) == RECORD
    found, rate = read_wav(path, mono=False)
    assert rate == RATE
    assert torch.equal(found, audio.reshape(-1, shape[-1]))


def test_anyone_can_see_that_it_is_generated(tmp_path):
    with soundfile.SoundFile(write_wav(tmp_path / "a.wav", torch.zeros(9), RATE, RECORD)) as file:
        assert file.title == "AI-generated audio"
        assert file.software.startswith(f"aigc_fast {aigc_fast.__version__}")
        assert '"seed": 7' in file.comment
        assert (file.format, file.subtype) == ("WAV", "PCM_16")


def test_what_is_too_loud_is_clipped(tmp_path):
    audio = torch.tensor([2.0, 1.0, -1.0, -3.0, float("nan"), float("inf")])
    found, _ = read_wav(write_wav(tmp_path / "a.wav", audio, RATE, RECORD))
    top = 32767 / 32768
    assert found.tolist() == [top, top, -1, -1, 0, top]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"old")
    for audio, rate, record, error in (
        (torch.zeros(1, 2, 3), RATE, RECORD, "audio"),
        (torch.zeros(0), RATE, RECORD, "audio"),
        (torch.zeros(3, dtype=torch.int16), RATE, RECORD, "audio"),
        (torch.zeros(3), 0, RECORD, "sample_rate=0"),
        (torch.zeros(3), RATE, Provenance("vocoder", 0, {"note": "x" * 2000}), "at most 2045 bytes"),
        (torch.zeros(2000, 2), RATE, RECORD, "cannot write"),
    ):
        with pytest.raises(ValueError, match=error):
            write_wav(path, audio, rate, record)
    with pytest.raises(UserError, match="cannot write"):
        write_wav(tmp_path / "missing" / "a.wav", torch.zeros(3), RATE, RECORD)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.wav"]


def test_the_longest_record_comes_back(tmp_path):
    short = len(str(read_comment(write_wav(tmp_path / "a.wav", torch.zeros(3), RATE, Provenance("v", 0, {"n": ""})))))
    record = Provenance("v", 0, {"n": "x" * (2045 - short)})
    assert read_wav_provenance(write_wav(tmp_path / "a.wav", torch.zeros(3), RATE, record)) == record


def read_comment(path):
    with soundfile.SoundFile(path) as file:
        return file.comment


def test_files_without_a_good_record(tmp_path):
    soundfile.write(tmp_path / "plain.wav", noise(9), RATE)
    with pytest.raises(UserError, match="no record"):
        read_wav_provenance(tmp_path / "plain.wav")
    with soundfile.SoundFile(tmp_path / "odd.wav", "w", RATE, 1) as file:
        file.software, file.comment = "aigc_fast 0.1.0", '{"model": "vocoder"}'
        file.write(noise(9))
    with pytest.raises(UserError, match="record of aigc_fast is damaged"):
        read_wav_provenance(tmp_path / "odd.wav")


def test_without_soundfile_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    for call in (
        lambda: read_wav(tmp_path / "a.wav"),
        lambda: write_wav(tmp_path / "a.wav", torch.zeros(3), 1, RECORD),
    ):
        with pytest.raises(UserError, match=r"pip install 'aigc-fast\[audio\]'"):
            call()


def test_bad_rates_are_named(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(9), RATE)
    with pytest.raises(ValueError, match="to_rate=0"):
        read_wav(tmp_path / "a.wav", 0)
    with pytest.raises(ValueError, match="from_rate=-1"):
        resample(torch.zeros(3), -1, 1)
    with pytest.raises(ValueError, match="floating-point"):
        resample(torch.zeros(3, dtype=torch.int16), 1, 2)
