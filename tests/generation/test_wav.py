"""Sound files and the record that they carry, and sounds in a row."""

from __future__ import annotations

import os
import sys
import wave

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import aigc_fast
from aigc_fast.data import read_wav
from aigc_fast.errors import UserError
from aigc_fast.generation import (
    Provenance,
    read_provenance,
    read_wav_provenance,
    sound_sequence,
    write_sound,
    write_wav,
)

RATE = 16000
RECORD = Provenance("vocoder", 7, {"count": 3, "class": None, "note": "größer ≥ 2", "config": {"order": [1, 2]}})


def noise(*shape):
    return np.random.default_rng(0).uniform(-0.9, 0.9, shape)


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
        (torch.zeros(3), 2**31, RECORD, "sample_rate=2147483648: expected at most 2147483647"),
        (torch.zeros(3), RATE, Provenance("vocoder", 0, {"note": "x" * 2000}), "at most 2045 bytes"),
        (torch.zeros(2000, 2), RATE, RECORD, "at most 1024 channels, got 2000"),
    ):
        with pytest.raises(ValueError, match=error):
            write_wav(path, audio, rate, record)
    with pytest.raises(TypeError, match=r"sample_rate=16000\.0: expected an integer"):
        write_wav(path, torch.zeros(3), 16000.0, RECORD)
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


def test_what_carries_no_sound_is_named(tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"hello" * 99)
    with pytest.raises(UserError, match=r"bad\.wav: .*no WAV file"):
        read_wav_provenance(tmp_path / "bad.wav")


def test_files_and_records_need_no_soundfile(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    path = write_wav(tmp_path / "a.wav", torch.zeros(3), RATE, RECORD)
    assert read_wav_provenance(path) == RECORD
    with wave.open(str(path)) as file:
        assert (file.getnframes(), file.getframerate(), file.getnchannels()) == (3, RATE, 1)


@pytest.mark.parametrize(("channels", "rate"), [(1, RATE), (2, 44100), (1024, 8000), (3, 2**31 - 1)])
def test_files_are_libsndfile_s(tmp_path, channels, rate):
    audio = torch.from_numpy(noise(channels, 301)).float()
    path = write_wav(tmp_path / "a.wav", audio, rate, RECORD)
    with soundfile.SoundFile(path) as file:
        assert (file.format, file.subtype, file.channels, file.samplerate) == ("WAV", "PCM_16", channels, rate)
        expected = (audio.T * 32768).round().clamp(-32768, 32767).short()
        assert np.array_equal(file.read(dtype="int16", always_2d=True), expected.numpy())
    with soundfile.SoundFile(tmp_path / "theirs.wav", "w", rate, channels, "PCM_16") as file:
        file.title, file.software, file.comment = "title", "aigc_fast 0.1.0", read_comment(path)
        file.write(np.zeros((5, channels)))
    assert read_wav_provenance(tmp_path / "theirs.wav") == RECORD


@pytest.mark.parametrize("size", [0, 4, 11, 12, 19, 30, 60, 300])
def test_a_file_that_is_cut_off_is_told_in_one_line(tmp_path, size):
    path = write_wav(tmp_path / "a.wav", torch.zeros(3), RATE, RECORD)
    path.write_bytes(path.read_bytes()[:size])
    if size == 300:  # the record is whole, of the samples some are missing
        assert read_wav_provenance(path) == RECORD
        return
    with pytest.raises(UserError, match=r"a\.wav.*(no WAV file|carries no record|is damaged)"):
        read_wav_provenance(path)


@pytest.mark.parametrize(("count", "pause"), [(1, 0.1), (3, 0.25), (2, 0.0)])
def test_a_sequence_is_its_sounds_with_silence_between(count, pause):
    audio = torch.rand(count, 30) + 1
    found = sound_sequence(audio, 40, pause=pause)
    silence = round(40 * pause)
    assert len(found) == 30 * count + silence * (count - 1)
    for index in range(count):
        start = index * (30 + silence)
        assert torch.equal(found[start : start + 30], audio[index])
        assert not found[start + 30 : start + 30 + silence].any()


def test_bad_sequences_are_named():
    for audio in (torch.zeros(5), torch.zeros(0, 4), torch.zeros(2, 0)):
        with pytest.raises(ValueError, match="audio: expected"):
            sound_sequence(audio, RATE)
    with pytest.raises(ValueError, match="pause=-1"):
        sound_sequence(torch.zeros(2, 3), RATE, pause=-1)


def test_a_sound_is_written_with_its_picture(tmp_path):
    time = torch.arange(2 * RATE) / RATE
    wav, png = write_sound(tmp_path / "a.wav", 0.5 * torch.sin(2 * torch.pi * 2000 * time), RATE, RECORD)
    assert (wav.name, png.name) == ("a.wav", "a.png")
    assert read_wav_provenance(wav) == read_provenance(png) == RECORD
    with Image.open(png) as picture:
        pixels = np.asarray(picture)
        assert picture.size == (256, 256)
    # 2 kHz of 8 is a quarter of the way up.
    assert abs(pixels[:, 128].argmax() - 192) <= 2
