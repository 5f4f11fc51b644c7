"""WAV files of every kind, and what is said of damaged ones."""

from __future__ import annotations

import struct
import sys

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
from memory import forget_peak, peak

from aigc_fast.data import read_wav, resample
from aigc_fast.errors import UserError

RATE = 16000


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


@pytest.mark.parametrize("subtype", ["GSM610", "G721_32", "NMS_ADPCM_16"])
@pytest.mark.parametrize("sample_rate", [None, 8000])
def test_codecs_that_cannot_seek(tmp_path, subtype, sample_rate):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    soundfile.write(tmp_path / "a.wav", tone, RATE, subtype)
    audio, rate = read_wav(tmp_path / "a.wav", sample_rate)
    assert rate == (sample_rate or RATE)
    assert rate <= len(audio) < 1.1 * rate
    assert audio.std() == pytest.approx(0.5 / 2**0.5, rel=0.1)


@pytest.mark.parametrize(
    "rates", [(44100, 16000), (8000, 16000), (16000, 44100), (22050, 16001), (3, 7), (48000, 8000), (99991, 100)]
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


def test_odd_rates_take_little_memory_and_impossible_ones_are_refused(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(900), RATE, "PCM_16")
    content = bytearray(path.read_bytes())
    for rate, length in ((1, None), (99, None), (101, 71_288), (999_983, 8), (2**31 - 1, None)):
        struct.pack_into("<II", content, 24, rate, min(2 * rate, 2**32 - 1))
        path.write_bytes(content)
        forget_peak()
        before = peak()
        if length:
            assert read_wav(path, 8000)[0].shape == (length,)
        else:
            with pytest.raises(UserError, match=rf"a\.wav: has {rate} samples? a second: expected 100 to 1000000"):
                read_wav(path, 8000)
        assert peak() - before < 400_000_000
        assert read_wav(path)[0].shape == (900,)


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


@pytest.mark.parametrize("size", [0x7FFFF000, 0x7FFFFFFF])
def test_what_a_writer_to_a_pipe_puts_for_the_length_is_unknown_too(tmp_path, whole, size):
    start = whole.index(b"data") + 4
    (tmp_path / "a.wav").write_bytes(whole[:start] + struct.pack("<I", size) + whole[start + 4 :])
    assert len(read_wav(tmp_path / "a.wav")[0]) == 400


def resized(content, size, total=None, order="<"):
    """The file with the size of its samples, and its own, as given."""
    at = content.index(b"data") + 4
    content = content[:at] + struct.pack(f"{order}I", size) + content[at + 4 :]
    return content if total is None else content[:4] + struct.pack(f"{order}I", total) + content[8:]


def read_repaired(path, content, caplog):
    path.write_bytes(content)
    caplog.clear()
    audio, _ = read_wav(path, mono=False)
    assert [record.name for record in caplog.records] == ["aigc_fast"]
    assert str(path) in caplog.text
    return audio


# What a recorder leaves that was switched off, a writer to a pipe, and one that counted the header.
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT", "DOUBLE", "ULAW"])
@pytest.mark.parametrize("format", ["WAV", "WAVEX"])
def test_a_wrong_size_of_the_samples_is_put_right_and_told(tmp_path, caplog, subtype, format):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(400, 2), RATE, subtype, format=format)
    whole = path.read_bytes()
    expected, _ = read_wav(path, mono=False)
    (size,) = struct.unpack_from("<I", whole, whole.index(b"data") + 4)
    wrong = [(0, None), (0, 0), (0, 36), (1, None), (size // 2, None), (size // 2, 0), (size - 8, len(whole) - 8)]
    wrong += [(size + more, None) for more in (1, 2, 8, 36, 44, 4000)]
    wrong += [(unknown, None) for unknown in (0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFF000, 0xFFFFFFFF)]
    wrong += [(unknown, min(unknown + 36, 0xFFFFFFFF)) for unknown in (0x7FFFF000, 0x80000000, 0xFFFFFFFF)]
    wrong += [(len(whole), len(whole) + 36), (len(whole) - 8, len(whole) + 28)]
    for claimed, total in wrong:
        found = read_repaired(path, resized(whole, claimed, total), caplog)
        assert torch.equal(found, expected), (claimed, total)
        assert "its header says" in caplog.text


def test_relatives_with_a_wrong_size_are_put_right(tmp_path, caplog):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(400), RATE, "PCM_16", endian="BIG")
    whole = path.read_bytes()
    expected, _ = read_wav(path, mono=False)
    for size in (0, 844, 0x80000000, 0xFFFFFFFF):
        assert torch.equal(read_repaired(path, resized(whole, size, order=">"), caplog), expected)
    soundfile.write(path, noise(400), RATE, "PCM_16", format="RF64")
    whole = path.read_bytes()
    at = whole.index(b"ds64") + 16
    for size in (0, 844, 2**63, 2**64 - 1):
        content = whole[:at] + struct.pack("<Q", size) + whole[at + 8 :]
        assert torch.equal(read_repaired(path, content, caplog), expected)


def test_what_follows_the_samples_is_no_sound(tmp_path, caplog, whole):
    path = tmp_path / "a.wav"
    path.write_bytes(whole)
    expected, _ = read_wav(path, mono=False)
    chunk = b"LIST" + struct.pack("<I", 4) + b"INFO"
    for content in (whole + chunk, resized(whole + chunk, 1600, len(whole + chunk) - 8)):
        path.write_bytes(content)
        assert torch.equal(read_wav(path, mono=False)[0], expected)
    assert not caplog.records
    assert torch.equal(read_repaired(path, whole + b"TAG" + bytes(125), caplog), expected)
    assert "128 bytes after its end left out" in caplog.text
    path.write_bytes(resized(whole[: whole.index(b"data") + 8] + chunk, 0))
    with pytest.raises(UserError, match="expected at least one sample, got none"):
        read_wav(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((b"LIST", b"INFOabcdef"), (b"LIST", b"INFOINAM\xff\xff\xff\0ab"), (b"bext", b"abc\0"), (b"smpl", b"abcd")),
        *((b"LIST", b"INFOabcde"), (b"cue ", struct.pack("<I", 99999)), (b"id3 ", b"ID3abcd")),
    ],
)
def test_metadata_that_libsndfile_does_not_read_cost_no_samples(tmp_path, whole, name, content):
    chunk = name + struct.pack("<I", len(content)) + content
    for at in (12, whole.index(b"data")):
        (tmp_path / "a.wav").write_bytes(whole[:at] + chunk + whole[at:])
        audio, _ = read_wav(tmp_path / "a.wav")
        assert torch.equal(audio, read_wav(tmp_path / "whole.wav")[0])


def test_a_second_chunk_of_samples_is_left_out_and_told(tmp_path, caplog, whole):
    (tmp_path / "a.wav").write_bytes(whole + b"data" + struct.pack("<I", 400) + bytes(400))
    audio, _ = read_wav(tmp_path / "a.wav")
    assert torch.equal(audio, read_wav(tmp_path / "whole.wav")[0])
    assert "read without the chunks that tell more than the format" in caplog.text


def test_a_tag_in_front_costs_no_samples(tmp_path, whole):
    (tmp_path / "a.wav").write_bytes(whole)
    (tmp_path / "b.wav").write_bytes(b"ID3\3\0\0\0\0\1\2" + bytes(130) + whole)
    assert torch.equal(read_wav(tmp_path / "b.wav")[0], read_wav(tmp_path / "a.wav")[0])


@pytest.mark.parametrize("layout", [{"format": "RF64"}, {"endian": "BIG"}])
def test_truncated_relatives_are_named(tmp_path, layout):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(400), RATE, "PCM_16", **layout)
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(UserError, match="truncated: expected 800 bytes of samples, got 790"):
        read_wav(path)
    for end in range(1, content.index(b"data") + 8):
        path.write_bytes(content[:end])
        with pytest.raises(UserError, match=r"a\.wav: (truncated|damaged|expected at least one sample)"):
            read_wav(path)


@pytest.mark.parametrize(("channels", "rate"), [(2, None), (1, 8000)])
def test_samples_that_overflow_when_mixed_or_resampled_are_named(tmp_path, channels, rate):
    soundfile.write(tmp_path / "a.wav", np.full((400, channels), 3.4e38, np.float32), RATE, "FLOAT")
    assert read_wav(tmp_path / "a.wav", mono=False)[0].isfinite().all()
    with pytest.raises(UserError, match=r"a\.wav: expected finite samples.*3\.4e\+38"):
        read_wav(tmp_path / "a.wav", rate)


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "empty file"), (b"hello" * 99, "no WAV file"), (b"RIFF\4\0\0\0AVI ", "no WAV file"), (bytes(99), "no WAV")],
)
def test_what_is_not_wav_is_named(tmp_path, content, expected):
    (tmp_path / "bad.wav").write_bytes(content)
    with pytest.raises(UserError, match=rf"bad\.wav: .*{expected}") as error:
        read_wav(tmp_path / "bad.wav")
    assert "BytesIO" not in str(error.value)


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


def test_without_soundfile_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(UserError, match=r"pip install 'aigc-fast\[audio\]'"):
        read_wav(tmp_path / "a.wav")


def test_bad_rates_are_named(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(9), RATE)
    with pytest.raises(ValueError, match="to_rate=0"):
        read_wav(tmp_path / "a.wav", 0)
    with pytest.raises(ValueError, match="from_rate=-1"):
        resample(torch.zeros(3), -1, 1)
    with pytest.raises(ValueError, match="floating-point"):
        resample(torch.zeros(3, dtype=torch.int16), 1, 2)
    with pytest.raises(TypeError, match=r"to_rate=16000\.0: expected an integer"):
        resample(torch.zeros(3), 8000, 16000.0)


@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_resampling_nothing_gives_nothing(shape):
    assert resample(torch.zeros(shape), 16000, 44100).shape == shape
