"""A source-filter vocoder: linear prediction, pitch, and back to sound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from aigc_fast import functional
from aigc_fast.models.vocoder.analysis import (
    frame_count,
    frames_of,
    frames_within,
    linear_prediction,
    pre_emphasis,
    root_mean_square,
    yin,
    yin_frame_size,
)
from aigc_fast.models.vocoder.synthesis import (
    coeffs_of_samples,
    excitation_of,
    inverse_filter,
    pitch_of_samples,
    to_samples,
)


@dataclass(frozen=True)
class VocoderFrames:
    """A sound's parameters, F frames of them, one centred on every multiple of the vocoder's hop.

    Attributes:
        reflection: (..., F, order), the filter's reflection coefficients, within -1 to 1.
        gain: (..., F), the excitation's root mean square.
        pitch: (..., F), in Hz; 0 where unvoiced.
        voicing: (..., F), 0 to 1: the share of the power that repeats from period to period.
        length: T, the sound's number of samples.
    """

    reflection: Tensor
    gain: Tensor
    pitch: Tensor
    voicing: Tensor
    length: int


class SourceFilterVocoder(nn.Module):
    """Takes a sound apart into an excitation and a filter (linear predictive coding), and makes sound of such parts.

    The filter is all-pole and changes at least every 16 samples, interpolated between frames in the reflection domain;
    the excitation is a pulse train at the pitch with as much white noise as the voicing leaves, or noise alone.
    Synthesis is differentiable in all of the frames' tensors; analysis in the audio, filter and gain alone. It has no
    parameters.

    Args:
        sample_rate: in Hz.
        order: of the linear predictor; about the sample rate in kHz and 2 besides.
        hop: samples from frame to frame.
        frame_size: samples that the predictor is fitted to, under a Hann window.
        min_pitch: in Hz.
        max_pitch: in Hz.
        emphasis: coefficient of the pre-emphasis before the analysis, undone after the synthesis.

    Attributes:
        name: what files call the model.
        config: the constructor's keyword arguments, JSON-able: `type(model)(**model.config)` builds its twin.

    Raises:
        ValueError: for a number out of range.

    Method: Atal and Hanauer, "Speech analysis and synthesis by linear prediction of the speech wave", 1971.

    Example:
        >>> vocoder = SourceFilterVocoder()
        >>> frames = vocoder.analyse(audio)
        >>> lower = vocoder.synthesise(dataclasses.replace(frames, pitch=frames.pitch / 2))
    """

    name: ClassVar[str] = "source-filter-vocoder"

    def __init__(
        self,
        *,
        sample_rate: int = 16000,
        order: int = 18,
        hop: int = 80,
        frame_size: int = 512,
        min_pitch: float = 60.0,
        max_pitch: float = 500.0,
        emphasis: float = 0.97,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "sample_rate": sample_rate,
            "order": order,
            "hop": hop,
            "frame_size": frame_size,
            "min_pitch": min_pitch,
            "max_pitch": max_pitch,
            "emphasis": emphasis,
        }
        _check_config(**self.config)
        self.sample_rate, self.order, self.hop, self.emphasis = sample_rate, order, hop, emphasis
        self.pitch_range = (min_pitch, max_pitch)
        self.frame_size = frame_size

    def analyse(self, audio: Tensor) -> VocoderFrames:
        """The frames of audio (T,) or (B, T), float32 or float64; the pitch and the voicing have no gradient.

        Raises:
            ValueError: for another shape or type, or no samples.
        """
        if audio.dim() not in (1, 2) or audio.dtype not in (torch.float32, torch.float64) or not audio.numel():
            raise ValueError(
                "audio: expected (T,) or (B, T), float32 or float64 and not empty, "
                f"got {tuple(audio.shape)}, {audio.dtype}"
            )
        window = torch.hann_window(self.frame_size, dtype=audio.dtype, device=audio.device)
        emphasised = pre_emphasis(audio, self.emphasis)
        fitted = frames_of(emphasised, len(window), self.hop)
        reflection = linear_prediction(fitted, window, self.order, self.sample_rate)
        residual = inverse_filter(emphasised, coeffs_of_samples(reflection, self.hop, audio.shape[-1]))
        gain = root_mean_square(frames_of(residual, len(window), self.hop), window)
        # Silence before and after would pass for a change of the sound: no pitch.
        periods = frames_within(audio, yin_frame_size(self.sample_rate, self.pitch_range[0]), self.hop)
        pitch, voicing = yin(periods, self.sample_rate, *self.pitch_range)
        return VocoderFrames(reflection, gain, pitch, voicing, audio.shape[-1])

    def residual(self, audio: Tensor, frames: VocoderFrames) -> Tensor:
        """The excitation (T,) or (B, T) of which `synthesise` makes just this audio, gain included."""
        return inverse_filter(pre_emphasis(audio, self.emphasis), self._coeffs(frames))

    def synthesise(
        self, frames: VocoderFrames, *, excitation: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The sound of frames.

        Args:
            frames: as `analyse` gives them.
            excitation: (T,) or (B, T), instead of the frames' pulses and noise with their gain.
            generator: makes the noise reproducible; None uses PyTorch's default generator.

        Returns:
            (T,) or (B, T), of the frames' dtype.

        Raises:
            ValueError: for frames or an excitation of shapes that don't fit.
        """
        if excitation is None:
            excitation = self.excitation(frames, generator=generator)
        expected = (*frames.gain.shape[:-1], frames.length)
        if excitation.shape != expected:
            raise ValueError(f"excitation: expected shape {expected}, got {tuple(excitation.shape)}")
        emphasised = functional.ar_recursion(excitation, self._coeffs(frames))
        return functional.ar_recursion(emphasised, emphasised.new_tensor([self.emphasis]))

    def excitation(
        self, frames: VocoderFrames, *, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The frames' pulses and noise with their gain, (T,) or (B, T), which `synthesise` filters.

        Args:
            frames: as `analyse` gives them.
            noise: white, of unit power, (T,) or (B, T), instead of a draw.
            generator: makes the draw reproducible; None uses PyTorch's default generator.

        Raises:
            ValueError: for frames of shapes that don't fit.
        """
        self._check_frames(frames)
        levels = torch.stack([frames.gain, frames.voicing], -1)
        gain, voicing = to_samples(levels, self.hop, frames.length).unbind(-1)
        pitch = pitch_of_samples(frames.pitch, self.hop, frames.length)
        if noise is None:
            device = pitch.device if generator is None else generator.device
            noise = functional.randn(pitch.shape, generator=generator, dtype=pitch.dtype, device=device)
        return gain * excitation_of(pitch, voicing, self.sample_rate, noise.to(pitch.device))

    def resynthesise(self, audio: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """`synthesise` of what `analyse` finds: audio (T,) or (B, T) in the model's own words, of the same shape."""
        return self.synthesise(self.analyse(audio), generator=generator)

    def _coeffs(self, frames: VocoderFrames) -> Tensor:
        self._check_frames(frames)
        return coeffs_of_samples(frames.reflection, self.hop, frames.length)

    def _check_frames(self, frames: VocoderFrames) -> None:
        shape = tuple(frames.reflection.shape)
        count = frame_count(frames.length, self.hop)
        if len(shape) not in (2, 3) or shape[-2:] != (count, self.order):
            raise ValueError(
                f"frames.reflection: expected ({count}, {self.order}) or (B, {count}, {self.order}) for "
                f"{frames.length} samples, got {shape}"
            )
        for name in ("gain", "pitch", "voicing"):
            found = tuple(getattr(frames, name).shape)
            if found != shape[:-1]:
                raise ValueError(f"frames.{name}: expected {shape[:-1]} as in frames.reflection, got {found}")


def _check_config(
    sample_rate: int, order: int, hop: int, frame_size: int, min_pitch: float, max_pitch: float, emphasis: float
) -> None:
    for name, value in (("sample_rate", sample_rate), ("order", order), ("hop", hop)):
        if value < 1:
            raise ValueError(f"{name}={value}: expected a positive number")
    if frame_size <= order:
        raise ValueError(f"frame_size={frame_size}: expected more samples than the order, {order}")
    if not 0 < min_pitch < max_pitch <= sample_rate / 2:
        raise ValueError(
            f"min_pitch={min_pitch}, max_pitch={max_pitch}: expected 0 < min_pitch < max_pitch <= {sample_rate / 2}"
        )
    if not 0 <= emphasis < 1:
        raise ValueError(f"emphasis={emphasis}: expected at least 0 and below 1")
