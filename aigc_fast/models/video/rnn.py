"""A generator of video: convolutions read frames, a recurrent core remembers them, transposed convolutions draw."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from aigc_fast import functional
from aigc_fast.models.base import Labels, VideoModel, check_counts, evaluating, quarter_sides
from aigc_fast.models.likelihood import STEEPNESS, check_likelihood, pixel_log_likelihood, pixel_mean
from aigc_fast.models.video.cores import PRIORS, ConvLSTMCore, LatentCore
from aigc_fast.models.video.frames import MATCHES, Decoder, Encoder, Features
from aigc_fast.models.video.latents import Drawn, Expected, Inferred, Latents
from aigc_fast.runtime.rows import rows_of

CORES = ("convlstm", "latent")


class VideoRNN(VideoModel):
    """Foretells the frames of a clip one after the other, each from those before; for sides that are multiples of 4.

    Encoder: two Conv 4×4 of stride 2 with LeakyReLU, over a frame and the one before it, and how well these match when
    one is moved. Decoder: two ConvTranspose 4×4 of stride 2 with LeakyReLU, then Conv 3×3, of what the core says and
    the features of the frame before, drawn upon the pixels of that frame, which move as the core says. The core is one
    of

    - "convlstm": a convolutional LSTM. A clip begins with a latent vector, from which the state is made, or with frames
      that are given, of which it foretells one future.
    - "latent": LSTMs with a latent vector at every step, so that given frames go on in as many ways as are drawn.

    Args:
        frame_shape: (channels, height, width).
        frames: of a clip, unless more or fewer are asked for.
        given: frames that a prediction begins from, at least 1 and fewer than `frames`; in training they are true.
        core: one of `CORES`.
        prior: of the latent core's vectors: "learned" from the frames before, or "fixed", N(0, I).
        latent_dim: size of a latent vector.
        width: number of the encoder's maps.
        hidden: maps of the ConvLSTM's state, or units of the latent core's LSTMs.
        num_classes: makes it class-conditional.
        likelihood: one of `aigc_fast.models.likelihood.LIKELIHOODS`.

    Attributes:
        latent_dim: size of the latent vectors of a whole clip together.

    Raises:
        ValueError: on a size or a number that is not positive, sides that are not multiples of 4, an unknown core,
            prior or likelihood, or too few frames.
    """

    name = "video"
    family = "video"
    trainer = "aigc_fast.training.video:VideoTrainer"
    training_settings = MappingProxyType({"batch_size": 16})
    least_batch = 2

    def __init__(
        self,
        *,
        frame_shape: Sequence[int] = (1, 32, 32),
        frames: int = 15,
        given: int = 5,
        core: str = "convlstm",
        prior: str = "learned",
        latent_dim: int = 16,
        width: int = 32,
        hidden: int = 64,
        num_classes: int | None = None,
        likelihood: str = "bernoulli",
    ) -> None:
        for name, value, known in (("core", core, CORES), ("prior", prior, PRIORS)):
            if value not in known:
                raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}")
        check_likelihood(likelihood)
        super().__init__(
            frame_shape=frame_shape,
            frames=frames,
            given=given,
            core=core,
            prior=prior,
            latent_dim=latent_dim,
            width=width,
            hidden=hidden,
            num_classes=num_classes,
            likelihood=likelihood,
        )
        if given >= frames:
            raise ValueError(f"given={given}: expected fewer than frames={frames}")
        self.likelihood = likelihood
        channels, *side = quarter_sides(frame_shape)
        half = max(1, width // 2)
        self.encoder = Encoder(channels, half, width)
        shape = self.encoder.coarse, tuple(side), hidden, latent_dim, num_classes or 0
        self.core = ConvLSTMCore(*shape) if core == "convlstm" else LatentCore(*shape, prior)
        maps, longest = self.core.maps + self.encoder.coarse, max(frame_shape[1:])
        self.decoder = Decoder(maps, width, half, channels, longest, STEEPNESS[likelihood])
        self.log_scale = nn.Parameter(torch.zeros(())) if likelihood == "gaussian" else None
        self.latent_dim = latent_dim * self.core.latents_of(frames)

    def forward(
        self, clips: Tensor, labels: Labels | None = None, own: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One pass of training.

        Half of the clips tell their class, and to a ConvLSTM their latent vector; of the others it learns how frames go
        on of which nothing else is known, and to a ConvLSTM their first frame does not count.

        Args:
            clips: (N, T, channels, height, width) in [-1, 1].
            labels: for a conditional model.
            own: the steps, in order, that read the model's own frame before them instead of the true one, each at
                least 1. The steps between two of them are computed side by side.

        Returns:
            log p(x|z) (N,) and the KL divergence of the posterior from the prior (N,), both in nats a frame, and the
            posterior's μ and log σ² in units in which the prior is N(0, I), a row for each latent vector. The evidence
            lower bound a frame is the first less the second.
        """
        rows = rows_of(len(clips))
        known = rows.before(rows.total - rows.total // 2)
        count, half = len(clips), known.count
        classes = self._weights(self.check_labels(labels, count), count)
        classes = torch.cat([classes[:half], torch.zeros_like(classes[half:])])
        told = count if self.core.stepwise else half
        truth = clips.transpose(0, 1)
        features = _Features(self, truth, own)
        latents = Inferred(
            *self.core.infer(features.of(0, self.core.seen(len(truth))).coarse[:, :told], classes[:told]),
            rows if self.core.stepwise else known,
        )
        state = self.core.begin(latents, classes, told)
        decoded, before, read = [], self._nothing(count), self._no_frame(count)
        for begin, end in pairwise((0, *own, len(truth))):
            inputs = before.followed_by(features.of(begin, end - 1))
            found, state = self._steps(inputs, state, latents, classes)
            decoded.append(found)
            if end < len(truth):
                # What the last of these steps has read is the frame before their last.
                read = truth[end - 2] if end - begin > 1 else read
                shown = self._mean(found[-1])
                before, read = self._read(shown, read), shown
        return *self._bound(torch.cat(decoded), truth, latents, told), *latents.in_units_of_prior()

    def _bound(self, decoded: Tensor, truth: Tensor, latents: Inferred, told: int) -> tuple[Tensor, Tensor]:
        """log p(x|z) and the divergence of each clip, (N,), a frame."""
        frames, count = truth.shape[:2]
        found = pixel_log_likelihood(decoded.flatten(0, 1), truth.flatten(0, 1), self.likelihood, self.log_scale)
        found = found.view(frames, count)
        # Nobody can foretell the first frame of a clip of which nothing is told.
        first = torch.cat([found[:1, :told], torch.zeros_like(found[:1, told:])], dim=1)
        kl = nn.functional.pad(torch.cat(latents.kl).sum(0), (0, count - told))
        return (first.sum(0) + found[1:].sum(0)) / frames, kl / frames

    def prior(self, n: int, *, generator: torch.Generator | None = None, frames: int | None = None) -> Tensor:
        """z (n, latent_dim) from N(0, I); of clips of another length, z for `decode` with as many `frames`."""
        size = self.core.latent_dim * self.core.latents_of(frames or self.frames)
        device = self.device if generator is None else generator.device
        return functional.randn(n, size, generator=generator, dtype=self.dtype, device=device).to(self.device)

    def decode(self, z: Tensor, labels: Tensor | None = None, frames: int | None = None) -> Tensor:
        """z to N clips, differentiably. See `LatentModel.decode`.

        Args:
            z: as `prior` gives them.
            labels: as for `LatentModel.decode`.
            frames: of each clip; None for those that the model was built for.

        Returns:
            (N, frames, channels, height, width) in [-1, 1].
        """
        classes, latents = self._weights(labels, len(z)), self._drawn(z)
        state = self.core.begin(latents, classes, len(z))
        nothing, no_frame = self._nothing(len(z)), self._no_frame(len(z))
        return self._go_on(nothing, no_frame, state, latents, classes, frames or self.frames)

    def predict(
        self,
        given: Tensor,
        frames: int,
        *,
        labels: Labels | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """See `VideoModel.predict`; where the core is a ConvLSTM nothing is drawn, and classes tell nothing more."""
        if given.dim() != 5 or given.shape[2:] != self.frame_shape or not given.shape[1]:
            wanted = ", ".join(map(str, self.frame_shape))
            raise ValueError(f"given: expected (N, K, {wanted}), K at least 1, got {tuple(given.shape)}")
        check_counts(frames=frames)
        count, steps = given.shape[:2]
        classes = self._weights(None if labels is None else self.check_labels(labels, count), count)
        noise = self._drawn(self.prior(count, generator=generator, frames=frames))
        with evaluating(self):
            truth = given.to(self.device, self.dtype).transpose(0, 1)
            seen = _Features(self, truth, ()).of(0, steps)
            latents = Expected(self.core.infer(seen.coarse, classes)[0])
            state = self.core.begin(None, classes, 0)
            inputs = self._nothing(count).followed_by(seen.part(0, steps - 1))
            _, state = self.core(inputs.coarse, state, latents, classes)
            return self._go_on(seen.part(steps - 1, steps), truth[-1], state, noise, classes, frames)

    def _go_on(
        self, before: Features, read: Tensor, state: Any, latents: Latents, classes: Tensor, frames: int
    ) -> Tensor:
        """(N, frames, ...): the model's own frames after one, `read`, whose features are `before`."""
        found = []
        for _ in range(frames):
            decoded, state = self._steps(before, state, latents, classes)
            found.append(self._mean(decoded[0]))
            before, read = self._read(found[-1], read), found[-1]
        return torch.stack(found, dim=1)

    def _steps(self, inputs: Features, state: Any, latents: Latents, classes: Tensor) -> tuple[Tensor, Any]:
        """Frames (T, N, ...) before the likelihood's squashing, of the features of those before, and the state."""
        maps, state = self.core(inputs.coarse, state, latents, classes)
        return self.decoder(maps, inputs), state

    def _read(self, frame: Tensor, before: Tensor) -> Features:
        """The features of a frame (N, channels, height, width) that comes after another."""
        return Features(frame[None], *(each[None] for each in self.encoder(frame, before)))

    def _drawn(self, z: Tensor) -> Drawn:
        return Drawn(z.unflatten(1, (-1, self.core.latent_dim)).transpose(0, 1))

    def _no_frame(self, count: int) -> Tensor:
        """What stands for the frame before the first."""
        return torch.zeros(count, *self.frame_shape, dtype=self.dtype, device=self.device)

    def _nothing(self, count: int) -> Features:
        """The features of what comes before the first frame."""
        _, height, width = self.frame_shape
        nothing = self._no_frame(count)
        fine = nothing.new_zeros(1, count, self.encoder.fine, height // 2, width // 2)
        coarse = nothing.new_zeros(1, count, self.encoder.coarse, height // 4, width // 4)
        return Features(nothing[None], fine, coarse, nothing.new_zeros(1, count, MATCHES, height // 4, width // 4))

    def _weights(self, labels: Tensor | None, count: int) -> Tensor:
        """(N, num_classes): the classes of N clips, all 0 where nobody knows them."""
        nothing = torch.zeros(count, 0, dtype=self.dtype, device=self.device)
        if labels is None:
            return nothing.new_zeros(count, self.num_classes or 0)
        return self.with_classes(nothing, labels)

    def _mean(self, decoded: Tensor) -> Tensor:
        return pixel_mean(decoded, self.likelihood)


class _Features:
    """The features of a clip's true frames, as far as anything reads them, found side by side.

    Args:
        model: whose encoder finds them.
        truth: (T, N, channels, height, width).
        own: the steps that do not read the true frame before them.
    """

    def __init__(self, model: VideoRNN, truth: Tensor, own: Sequence[int]) -> None:
        length, count = truth.shape[:2]
        fed = set(range(length)) - {step - 1 for step in own}
        read = sorted({*range(model.core.seen(length)), *fed})
        self._place = {frame: place for place, frame in enumerate(read)}
        before = torch.cat([model._no_frame(count)[None], truth[:-1]])
        if len(read) < length:
            truth, before = truth[read], before[read]
        found = model.encoder(truth.flatten(0, 1), before.flatten(0, 1))
        self._all = Features(truth, *(each.unflatten(0, truth.shape[:2]) for each in found))

    def of(self, begin: int, end: int) -> Features:
        """Of the frames from `begin` to before `end`, all of which something reads."""
        first = self._place[begin] if end > begin else 0
        return self._all.part(first, first + end - begin)
