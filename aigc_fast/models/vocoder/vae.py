"""A generator of new sounds: a variational autoencoder that speaks in a vocoder's frames."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from aigc_fast import functional
from aigc_fast import nn as fast
from aigc_fast.models.base import Labels, SoundModel
from aigc_fast.models.vae import VariationalAutoencoder
from aigc_fast.models.vocoder.analysis import frame_count
from aigc_fast.models.vocoder.source_filter import SourceFilterVocoder, VocoderFrames
from aigc_fast.models.vocoder.spectral import spectral_distance
from aigc_fast.runtime.rows import alike

MIN_RATE = 2000

_FRAMES_PER_SECOND = 200
_WINDOW_SECONDS = 0.032
# Frames that share a number of the encoder's last maps; frames from one of the decoder's last numbers to the next.
_ENCODED, _DRAWN = 16, 8
_EXCITATION = 3
# Gains are within 6 nepers, 52 dB, of the typical one.
_TYPICAL_LOG_GAIN, _LOG_GAIN_RANGE = -4.0, 6.0
_MAX_REFLECTION = 0.99
# Distances whose exponential is the likelihood: a twentieth of a distance is a nat.
_TEMPERATURE = 0.05
_PITCH_WEIGHT, _LOG_GAIN_WEIGHT = 3.0, 0.25
_TENSORS = ("reflection", "gain", "pitch", "voicing")
_LOUDEST = 4.0
_STEEPEST = 5.0


@dataclass(frozen=True)
class AnalysedSounds:
    """Sounds and the frames that a vocoder found in them.

    Attributes:
        audio: (N, T).
        frames: of N sounds.
    """

    audio: Tensor
    frames: VocoderFrames

    def __len__(self) -> int:
        return len(self.audio)

    def __getitem__(self, indices: Tensor | slice) -> AnalysedSounds:
        return self._mapped(lambda tensor: tensor[indices])

    @staticmethod
    def concatenated(parts: Sequence[AnalysedSounds]) -> AnalysedSounds:
        """Several, of one length, as one."""
        first = parts[0].frames
        frames = {name: torch.cat([getattr(part.frames, name) for part in parts]) for name in _TENSORS}
        return AnalysedSounds(torch.cat([part.audio for part in parts]), dataclasses.replace(first, **frames))

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> AnalysedSounds:
        frames = {name: change(getattr(self.frames, name)) for name in _TENSORS}
        return AnalysedSounds(change(self.audio), dataclasses.replace(self.frames, **frames))


class VocoderVAE(VariationalAutoencoder, SoundModel):
    """Makes new sounds of one length, by a source and a filter whose frames a small network draws.

    The encoder sees the frames that `SourceFilterVocoder.analyse` finds in a sound. The decoder makes such frames of z:
    the filter's reflection coefficients, and the excitation's gain, pitch and voicing; the vocoder makes them sound.
    Training goes through the vocoder's recursion: log p(x|z) is, up to a constant, the negative distance of the two
    sounds' spectra, at several resolutions, and of their frames.

    Args:
        length: of one sound, in samples.
        sample_rate: in Hz, at least 2,000.
        latent_dim: size of z.
        width: number of maps of the hidden layers.
        num_classes: makes the model class-conditional: encoder and decoder see the class.
        min_pitch: in Hz, of what is drawn and looked for.
        max_pitch: in Hz.

    Attributes:
        vocoder: the `SourceFilterVocoder`, of 200 frames a second.

    Raises:
        ValueError: for a number that is not positive, a lower sample rate, or a range of pitches that does not lie
            between 0 and half of it.

    Method: Kingma and Welling, "Auto-Encoding Variational Bayes", 2013; the synthesiser as a part of the network:
    Engel, Hantrakul, Gu and Roberts, "DDSP: Differentiable Digital Signal Processing", 2020; through a time-varying
    all-pole filter: Yu and Fazekas, "Differentiable time-varying linear prediction in the context of end-to-end
    analysis-by-synthesis", 2024.
    """

    name = "vocoder"
    family = "vocoder"
    training_settings = MappingProxyType({"batch_size": 16, "epochs": 50, "learning_rate": 3e-3, "warmup": 120})

    def __init__(
        self,
        *,
        length: int = 16000,
        sample_rate: int = 16000,
        latent_dim: int = 16,
        width: int = 64,
        num_classes: int | None = None,
        min_pitch: float = 60.0,
        max_pitch: float = 500.0,
    ) -> None:
        if sample_rate < MIN_RATE:
            raise ValueError(f"sample_rate={sample_rate}: expected at least {MIN_RATE} Hz")
        super().__init__(
            length=length,
            sample_rate=sample_rate,
            latent_dim=latent_dim,
            width=width,
            num_classes=num_classes,
            min_pitch=min_pitch,
            max_pitch=max_pitch,
        )
        self.vocoder = SourceFilterVocoder(
            sample_rate=sample_rate,
            order=sample_rate // 1000 + 2,
            hop=sample_rate // _FRAMES_PER_SECOND,
            frame_size=round(_WINDOW_SECONDS * sample_rate),
            min_pitch=min_pitch,
            max_pitch=max_pitch,
        )
        self.frames = frame_count(length, self.vocoder.hop)
        channels, classes = self.vocoder.order + _EXCITATION, num_classes or 0
        self.encoder = nn.Sequential(
            *_stage(fast.Conv1d(channels, width, 4, 2, 1)),
            *(part for _ in range(3) for part in _stage(fast.Conv1d(width, width, 4, 2, 1))),
            nn.Flatten(),
        )
        self.code = nn.Linear(width * -(-self.frames // _ENCODED) + classes, 2 * latent_dim)
        coarse = -(-self.frames // (4 * _DRAWN))
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim + classes, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Linear(2 * width, width * coarse),
            nn.LeakyReLU(0.2),
            nn.Unflatten(1, (width, coarse)),
            *(part for _ in range(2) for part in _stage(fast.ConvTranspose1d(width, width, 4, 2, 1))),
            fast.Conv1d(width, channels, 5, 1, 2),
        )
        with torch.no_grad():
            # Filters that change wildly ring up without bound: training begins at steady, flat ones.
            self.decoder[-1].weight.mul_(0.1)

    def analyse(self, inputs: Tensor | AnalysedSounds) -> AnalysedSounds:
        """Sounds (N, length) with their frames, for the other methods: those of a data set need finding only once."""
        if isinstance(inputs, AnalysedSounds):
            return inputs
        return AnalysedSounds(inputs, self.vocoder.analyse(inputs))

    def encode(self, inputs: Tensor | AnalysedSounds, labels: Labels | None = None) -> tuple[Tensor, Tensor]:
        """μ and log σ² of q(z|x), each (N, latent_dim), of sounds (N, length)."""
        checked = self.check_labels(labels, len(inputs))
        features = nn.functional.pad(self._features(self.analyse(inputs).frames), (0, -self.frames % _ENCODED))
        mu, logvar = self.code(self.with_classes(self.encoder(features), checked)).chunk(2, dim=1)
        return mu.contiguous(), logvar.contiguous()

    def decode_frames(self, z: Tensor, labels: Tensor | None = None) -> VocoderFrames:
        """z (N, latent_dim) to the frames of N sounds, differentiably; labels as for `decode`."""
        return self._frames(self.decoder(self.with_classes(z, labels)))

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The sound (N, length) of `decode_frames`. See `LatentModel.decode`."""
        return self._sound(self.decode_frames(z, labels))

    def log_likelihood(self, inputs: Tensor | AnalysedSounds, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """See `VariationalAutoencoder.log_likelihood`; up to a constant, of sounds (N, length)."""
        wanted = self.analyse(inputs)
        drawn = self.decoder(self.with_classes(z, labels))
        heard = self._frames(_bounded_gradient(drawn))
        # A pitch's gradient through the phases of all that comes after it points anywhere, and drowns the others.
        sound = self._sound(dataclasses.replace(heard, pitch=heard.pitch.detach()))
        distance = spectral_distance(sound, wanted.audio)
        return -(distance + _frame_distance(self._frames(drawn), wanted.frames)) / _TEMPERATURE

    def forward(
        self, inputs: Tensor | AnalysedSounds, labels: Labels | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `VariationalAutoencoder.forward`; of sounds (N, length)."""
        return super().forward(self.analyse(inputs), labels)

    def _features(self, frames: VocoderFrames) -> Tensor:
        """(N, order + 3, F): what the encoder sees, all about within -1 to 1; a pitch of 0 where unvoiced."""
        middle = math.sqrt(math.prod(self.vocoder.pitch_range))
        octaves = torch.where(frames.pitch > 0, (frames.pitch / middle).log2(), 0.0)
        gain = (frames.gain.log() - _TYPICAL_LOG_GAIN) / _LOG_GAIN_RANGE
        levels = torch.stack([gain, octaves, frames.voicing], -1)
        return torch.cat([levels, frames.reflection], -1).transpose(1, 2)

    def _frames(self, drawn: Tensor) -> VocoderFrames:
        """Frames of the decoder's numbers (N, order + 3, F / 8)."""
        finer = nn.functional.interpolate(drawn, scale_factor=_DRAWN, mode="linear")[..., : self.frames]
        gain, pitch, voicing = finer[:, :_EXCITATION].unbind(1)
        low, high = self.vocoder.pitch_range
        return VocoderFrames(
            reflection=_MAX_REFLECTION * torch.tanh(finer[:, _EXCITATION:]).transpose(1, 2),
            gain=torch.exp(_TYPICAL_LOG_GAIN + _LOG_GAIN_RANGE * torch.tanh(gain / 3)),
            pitch=low * (high / low) ** torch.sigmoid(2 * pitch),
            voicing=torch.sigmoid(2 * voicing),
            length=self.length,
        )

    def _sound(self, frames: VocoderFrames) -> Tensor:
        excitation = self.vocoder.excitation(frames, noise=self._noise(frames.gain))
        # A filter that changes too fast can ring up without bound: what it makes is kept finite.
        sound = torch.nan_to_num(self.vocoder.synthesise(frames, excitation=excitation))
        return sound * (_LOUDEST / sound.detach().abs().amax(-1, keepdim=True)).clamp(max=1.0)

    def _noise(self, like: Tensor) -> Tensor:
        """White noise (length,): another in every step of training, and otherwise always the same."""
        generator = None if self.training else torch.Generator().manual_seed(0)
        device = like.device if generator is None else generator.device
        with alike():
            return functional.randn(self.length, generator=generator, dtype=like.dtype, device=device)


def _stage(layer: nn.Module) -> tuple[nn.Module, ...]:
    return layer, nn.BatchNorm1d(layer.out_channels), nn.LeakyReLU(0.2)


def _frame_distance(found: VocoderFrames, wanted: VocoderFrames) -> Tensor:
    """(N,): mean absolute differences, of octaves where there is a pitch, voicing, log gain and reflection."""
    voiced = (wanted.pitch > 0).to(found.pitch)
    octaves = (found.pitch / wanted.pitch.clamp(min=1.0)).log2().abs() * voiced
    pitch = octaves.sum(-1) / voiced.sum(-1).clamp(min=1.0)
    voicing = (found.voicing - wanted.voicing * voiced).abs().mean(-1)
    gain = (found.gain.log() - wanted.gain.log()).abs().mean(-1)
    reflection = (found.reflection - wanted.reflection).abs().mean((-2, -1))
    return _PITCH_WEIGHT * pitch + voicing + _LOG_GAIN_WEIGHT * gain + reflection


def _bounded_gradient(drawn: Tensor) -> Tensor:
    """`drawn` (N, C, F), whose gradient is scaled down where one sound's would outweigh all others'."""
    through = drawn.view_as(drawn)
    if through.requires_grad:
        through.register_hook(_bounded)
    return through


def _bounded(gradient: Tensor) -> Tensor:
    finite = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
    norm = len(finite) * torch.linalg.vector_norm(finite, dim=(1, 2), keepdim=True)
    return finite * (_STEEPEST / norm.clamp(min=_STEEPEST))
