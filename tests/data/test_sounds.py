"""The sounds that the package makes are what they are called; folders of WAV files become segments."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch

from aigc_fast.data import load_sounds, vowels_and_strings
from aigc_fast.data.sounds import plucked_string, vowels
from aigc_fast.errors import UserError
from aigc_fast.models import SourceFilterVocoder
from aigc_fast.models.vocoder.analysis import pre_emphasis
from aigc_fast.ops.recursion.reflection import coeffs_of_reflection

RATE = 16000


@pytest.fixture(scope="module")
def corpus():
    return vowels_and_strings(4000, each=2)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_corpus_is_labelled_and_loud(corpus):
    assert corpus.audio.shape == (36, 4000)
    assert corpus.audio.dtype == torch.float32
    assert len(corpus) == 36
    assert corpus.class_names == ("a", "e", "i", "o", "u", "string")
    assert torch.bincount(corpus.labels).tolist() == [6] * 6
    assert corpus.sample_rate == RATE
    torch.testing.assert_close(corpus.audio.abs().amax(1), torch.full((36,), 0.8))
    assert corpus.audio.mean(1).abs().max() < 0.02


def test_a_seed_gives_the_same_sounds_and_another_others():
    first, same, other = (vowels_and_strings(500, each=1, seed=seed).audio for seed in (3, 3, 4))
    assert torch.equal(first, same)
    assert (first != other).any(1).all()


def test_every_sound_is_different(corpus):
    normal = torch.nn.functional.normalize(corpus.audio)
    assert (normal @ normal.T - torch.eye(36)).abs().max() < 0.95


def test_without_a_folder_the_corpus_is_loaded():
    data = load_sounds(seconds=0.02, seed=5)
    assert torch.equal(data.audio, vowels_and_strings(320, seed=5).audio)
    assert (len(data), data.name) == (144, "vowels and strings")


@pytest.mark.parametrize("formants", [(730.0, 1090.0, 2440.0), (270.0, 2290.0, 3010.0), (570.0, 840.0, 2410.0)])
def test_a_vowel_has_its_formants(formants):
    audio = vowels(torch.tensor([80.0, 110.0]), formants, RATE, RATE, seeded())
    frequencies, power = scipy.signal.welch(pre_emphasis(audio, 0.95).numpy(), RATE, nperseg=256)
    for formant in formants:
        near = np.abs(frequencies - formant) < 100
        far = np.abs(np.abs(frequencies - formant) - 250) < 60
        assert (power[:, near].max(1) > power[:, far].min(1) * 2).all()


@pytest.mark.parametrize("pitch", [110.0, 220.0])
def test_a_vowel_has_its_pitch(pitch):
    audio = vowels(torch.tensor([pitch]), (530.0, 1840.0, 2480.0), RATE, RATE, seeded())
    found = SourceFilterVocoder().analyse(audio).pitch[0, 10:-10]
    expected = np.linspace(pitch, 0.9 * pitch, len(found) + 20)[10:-10]
    assert np.median(np.abs(found / expected - 1)) < 0.01


@pytest.mark.parametrize("pitch", [82.4, 196.0, 329.6])
def test_a_string_has_its_pitch_and_dies_away(pitch):
    audio = plucked_string(pitch, RATE, RATE, seeded())
    found = SourceFilterVocoder().analyse(audio).pitch[10:100]
    delay = round(RATE / pitch - 0.5)
    assert (found / (RATE / (delay + 0.5)) - 1).abs().median() < 0.01
    assert audio[-2000:].square().mean() < 0.25 * audio[:2000].square().mean()


def test_a_string_is_the_delay_line_of_karplus_and_strong():
    audio = plucked_string(1000.0, 300, RATE, seeded()).double().numpy()
    burst = audio[:16]
    expected = scipy.signal.lfilter([1], [1, *[0] * 15, -0.4995, -0.4995], np.pad(burst, (0, 284)))
    np.testing.assert_allclose(audio, expected, atol=1e-5)


def test_classes_differ_in_their_spectrum(corpus):
    frames = SourceFilterVocoder(order=10).analyse(corpus.audio)
    coeffs = coeffs_of_reflection(frames.reflection[:, 10:40].mean(1)).double()
    polynomial = torch.cat([torch.ones(36, 1, dtype=torch.float64), -coeffs], 1)
    envelope = -torch.fft.rfft(polynomial, 256).abs().log()
    envelope -= envelope.mean(1, keepdim=True)
    distance = torch.cdist(envelope, envelope).fill_diagonal_(float("inf"))
    assert (corpus.labels[distance.argmin(1)] == corpus.labels).float().mean() > 0.9


def test_a_folder_is_cut_into_segments(tmp_path):
    for name, length in (("a", 250), ("b", 100), ("c", 30)):
        soundfile.write(tmp_path / f"{name}.WAV", np.full(length, 0.5), 1000, "FLOAT")
    (tmp_path / "notes.txt").write_text("no sound")
    data = load_sounds(tmp_path, seconds=0.1, sample_rate=1000)
    assert data.audio.shape == (5, 100)
    assert (data.audio == 0.5).sum(1).tolist() == [100, 100, 50, 100, 30]
    assert (data.labels, data.class_names, data.sample_rate, data.name) == (None, (), 1000, tmp_path.name)


def test_short_ends_are_left_out_or_filled_up_and_told(tmp_path):
    for name, length in (("a", 210), ("b", 251), ("c", 3), ("d", 300)):
        soundfile.write(tmp_path / f"{name}.wav", np.full(length, 0.5), 1000, "FLOAT")
    data = load_sounds(tmp_path, seconds=0.1, sample_rate=1000)
    assert (data.audio == 0.5).sum(1).tolist() == [100, 100, 100, 100, 51, 3, 100, 100, 100]
    assert data.notes == (
        "1 file whose last segment, below half of a sound, was left out: a.wav (10 of 100 samples)",
        "1 file whose last segment was filled up with silence: b.wav (51 of 100 samples)",
        "1 file shorter than 100 samples, filled up with silence: c.wav (3 samples)",
    )


def test_labels_count_the_segments_that_are_kept(tmp_path):
    for name, length in (("ah/a", 210), ("oh/b", 190)):
        (tmp_path / name).parent.mkdir()
        soundfile.write(tmp_path / f"{name}.wav", np.full(length, 0.5), 1000, "FLOAT")
    assert load_sounds(tmp_path, seconds=0.1, sample_rate=1000).labels.tolist() == [0, 0, 1, 1]


def test_what_was_done_to_sounds_is_told(tmp_path):
    soundfile.write(tmp_path / "stereo.wav", np.full((200, 2), 0.5), 2000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(100), 1000)
    soundfile.write(tmp_path / "long.wav", np.full(100, 0.5), 1000)
    content = (tmp_path / "long.wav").read_bytes()
    (tmp_path / "long.wav").write_bytes(content[:40] + (244).to_bytes(4, "little") + content[44:])
    (tmp_path / "a.flac").write_bytes(b"")
    (tmp_path / "._long.wav").write_bytes(b"")
    data = load_sounds(tmp_path, seconds=0.1, sample_rate=1000)
    assert data.summary == f"3 sounds of {tmp_path.name}, 0.1 s at 1000 Hz, without classes"
    assert data.notes == (
        "1 file left out, no WAV files by their names: a.flac",
        "1 file not as long as the header says: long.wav (its header says 244 bytes of samples, the file holds 200)",
        "1 file of nothing but silence: silent.wav",
        "1 file brought to 1000 Hz: stereo.wav (from 2000 Hz)",
        "1 file mixed down to one channel: stereo.wav (from 2)",
    )


@pytest.mark.parametrize(("peak", "full"), [(20000, 2**15), (-32768, 2**15), (4e6, 2**23), (2**31, 2**31)])
def test_floats_that_are_integers_of_more_bits_are_scaled(tmp_path, peak, full):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 400).astype(np.float32)
    loud = samples * abs(peak)
    loud[7] = peak
    soundfile.write(tmp_path / "a.wav", samples, RATE, "FLOAT")
    soundfile.write(tmp_path / "b.wav", loud, RATE, "FLOAT")
    soundfile.write(tmp_path / "c.wav", 10 * samples, RATE, "FLOAT")
    audio = load_sounds(tmp_path, seconds=400 / RATE)
    assert torch.equal(audio.audio, torch.from_numpy(np.stack([samples, loud / np.float32(full), 10 * samples])))
    assert audio.notes == (
        f"1 file of floats as large as integers, {full} taken for full scale: b.wav (up to {abs(peak):g})",
    )


def test_floats_that_are_no_sound_are_named(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(400, 1e20), RATE, "DOUBLE")
    with pytest.raises(UserError, match=r"a\.wav: expected samples from -1 to 1, or integers, got 1e\+20"):
        load_sounds(tmp_path)


def test_a_folder_without_sounds_tells_what_it_holds(tmp_path):
    (tmp_path / "a.mp3").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds no WAV files \(\.wav, \.wave\), but 1 file: a\.mp3"):
        load_sounds(tmp_path)


def test_subfolders_are_classes(tmp_path):
    for name, length in (("oh", 150), ("ah", 50)):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "a.wav", np.full((2 * length, 2), 0.1), 2000)
    data = load_sounds(tmp_path, seconds=0.1, sample_rate=1000)
    assert data.audio.shape == (3, 100)
    assert data.class_names == ("ah", "oh")
    assert data.labels.tolist() == [0, 1, 1]


def test_bad_places_and_settings_are_named(tmp_path):
    with pytest.raises(UserError, match="holds no WAV files"):
        load_sounds(tmp_path)
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"a\.zip: expected a folder of WAV files, got a file"):
        load_sounds(tmp_path / "a.zip")
    with pytest.raises(UserError, match="no such folder"):
        load_sounds(tmp_path / "missing")
    (tmp_path / "bad.wav").write_bytes(b"hello")
    with pytest.raises(UserError, match=r"bad\.wav"):
        load_sounds(tmp_path)
    for seconds in (0, -1, float("nan"), float("inf"), 1e-9, 1.7e308):
        with pytest.raises(UserError, match="seconds="):
            load_sounds(seconds=seconds)
    with pytest.raises(UserError, match="sample_rate=0"):
        load_sounds(tmp_path, sample_rate=0)
    with pytest.raises(UserError, match="sample_rate=8000: expected at least 12000"):
        load_sounds(sample_rate=8000)
    with pytest.raises(UserError, match="each=0"):
        vowels_and_strings(each=0)
