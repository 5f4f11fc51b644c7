"""A generator of video: convolutions read frames, a recurrent core remembers them, transposed convolutions draw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from aigc_fast import functional
from aigc_fast.models.base import Labels, VideoModel, check_counts, evaluating, quarter_sides
from aigc_fast.models.likelihood import STEEPNESS, check_likelihood, pixel_log_likelihood, pixel_mean
from aigc_fast.models.video.beginnings import FRAMES, Beginnings
from aigc_fast.models.video.cores import PRIORS, ConvLSTMCore, LatentCore
from aigc_fast.models.video.frames import Decoder, Encoder, Features, contrasted
from aigc_fast.models.video.latents import Drawn, Expected, Inferred, Latents
from aigc_fast.runtime.rows import Rows, rows_of

CORES = ("convlstm", "latent")


class VideoRNN(VideoModel):
    """Predicts the frames of a clip one after the other, each from those before; for sides that are multiples of 4.

    A clip begins with given frames, or with two frames that are generated from latent vectors, one for each moving
    thing.

    Encoder: two Conv 4×4 of stride 2 with LeakyReLU, over a frame and the one before it, and a correlation of the two
    over displacements. Decoder: two ConvTranspose 4×4 of stride 2 with LeakyReLU, then Conv 3×3, from the core's output
    and the features of the frame before, painted over the pixels of that frame, which are moved as the core says. The
    core is one of

    - "convlstm": a convolutional LSTM, which predicts one future.
    - "latent": LSTMs with a latent vector at every step, from which many different futures can be sampled.

    Args:
        frame_shape: (channels, height, width).
        frames: number of frames of a clip, unless more or fewer are asked for.
        given: number of frames that a prediction starts from, at least 1 and fewer than `frames`; in training these are
            the true ones.
        core: one of `CORES`.
        prior: of the latent core's vectors: "learned" from the frames before, or "fixed", N(0, I).
        things: number of moving things in a clip without given frames.
        latent_dim: size of a latent vector.
        width: number of the encoder's channels.
        hidden: channels of the ConvLSTM's state, or units of the latent core's LSTMs.
        num_classes: makes the model class-conditional.
        likelihood: one of `aigc_fast.models.likelihood.LIKELIHOODS`.

    Attributes:
        latent_dim: total size of the latent vectors of a whole clip.

    Raises:
        ValueError: for a size or a number that is not positive, sides that are not multiples of 4, an unknown core,
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
        things: int = 1,
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
            things=things,
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
        shape, classes = (self.encoder.coarse, tuple(side), hidden), num_classes or 0
        self.core = ConvLSTMCore(*shape) if core == "convlstm" else LatentCore(*shape, latent_dim, classes, prior)
        maps, longest = self.core.maps + self.encoder.coarse, max(frame_shape[1:])
        self.decoder = Decoder(maps, width, half, channels, longest, STEEPNESS[likelihood])
        self.beginnings = Beginnings(self.frame_shape, things, latent_dim, 4 * hidden, classes)
        self.log_scale = nn.Parameter(torch.zeros(())) if likelihood == "gaussian" else None
        self._of_each = latent_dim
        self.latent_dim = self._numbers(frames)

    def forward(
        self,
        clips: Tensor,
        labels: Labels | None = None,
        own: Sequence[int] = (),
        beginnings: Sequence[int] = (0,),
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One pass of training.

        For half of the clips the core is told the class; from the others it learns to continue frames without it. The
        second frame counts by half as generated with the first, and by half as predicted from it.

        Args:
            clips: (N, T, channels, height, width) in [-1, 1].
            labels: for a conditional model.
            own: the steps, in order, whose input is the model's own previous frame in place of the true one, each at
                least 2. The steps between two of them are computed in parallel.
            beginnings: the frames, each followed by another, that a clip could as well begin with: the loss of the
                beginning is the mean over them.

        Returns:
            log p(x|z) (N,) and the KL divergence of the posterior from the prior (N,), both in nats per frame, and the
            posterior's μ and log σ² in units in which the prior is N(0, I), one row per latent vector. The evidence
            lower bound per frame is the first minus the second.
        """
        rows = rows_of(len(clips))
        classes = self._weights(self.check_labels(labels, len(clips)), len(clips))
        begun, of_beginnings = self._begun(clips, classes, beginnings, rows)
        half = rows.before(rows.total - rows.total // 2).count
        classes = torch.cat([classes[:half], torch.zeros_like(classes[half:])])
        foretold, of_steps = self._foretold(clips.transpose(0, 1), classes, own, rows)
        nats = (begun[:, 0] + (begun[:, 1] + foretold[0]) / 2 + foretold[1:].sum(0)) / clips.shape[1]
        kl = torch.cat(of_beginnings.kl).sum(0) / len(beginnings)
        if of_steps is None:
            return nats, kl / clips.shape[1], *of_beginnings.in_units_of_prior()
        kl = kl + torch.cat(of_steps.kl).sum(0)
        units = zip(of_beginnings.in_units_of_prior(), of_steps.in_units_of_prior(), strict=True)
        return nats, kl / clips.shape[1], *map(torch.cat, units)

    def _begun(self, clips: Tensor, classes: Tensor, beginnings: Sequence[int], rows: Rows) -> tuple[Tensor, Inferred]:
        """log p(x|z) of the two frames that clips begin with, (N, 2), the mean of the beginnings, and the latents."""
        pairs = torch.stack([clips[:, begin : begin + FRAMES] for begin in beginnings])
        classes = classes.repeat(len(beginnings), 1)
        # A row for each thing and beginning, then for each clip.
        mu, logvar = (
            each.view(-1, len(clips), self._of_each) for each in self.beginnings.infer(pairs.flatten(0, 1), classes)
        )
        latents, zeros = Inferred(mu, logvar, rows), torch.zeros_like(mu)
        z = latents.take(zeros, zeros).view(self.beginnings.things, -1, self._of_each)
        decoded = self.beginnings(z, classes)
        found = pixel_log_likelihood(decoded.flatten(0, 1), pairs.flatten(0, 2), self.likelihood, self.log_scale)
        return found.view(pairs.shape[:3]).mean(0), latents

    def _foretold(
        self, truth: Tensor, classes: Tensor, own: Sequence[int], rows: Rows
    ) -> tuple[Tensor, Inferred | None]:
        """log p(x|z) of all frames (T, N, ...) but the first, (T - 1, N), and the latents of their steps."""
        length, seen = len(truth), self.core.seen(len(truth))
        features = _Features(self, truth, set(range(length - 1)) - {step - 1 for step in own} | set(range(seen)))
        posterior = self.core.infer(features.of(0, seen), classes)
        latents = None if posterior is None else Inferred(*(each[1:] for each in posterior), rows)
        decoded, state, before, read = [], self.core.begin(classes), features.of(0, 1), truth[0]
        for begin, end in pairwise((1, *own, length)):
            inputs = before.followed_by(features.of(begin, end - 1))
            found, state = self._steps(inputs, state, latents, classes)
            decoded.append(found)
            if end < length:
                # What the last of these steps has read is the frame before their last.
                read = truth[end - 2] if end - begin > 1 else read
                shown = self._mean(found[-1])
                before, read = self._read(shown, read), shown
        found = torch.cat(decoded).flatten(0, 1)
        return (
            pixel_log_likelihood(found, truth[1:].flatten(0, 1), self.likelihood, self.log_scale).view(length - 1, -1),
            latents,
        )

    def _numbers(self, frames: int) -> int:
        """Of the latent vectors of a clip of so many frames."""
        return self._of_each * (self.beginnings.things + self.core.latents_of(max(0, frames - FRAMES)))

    def prior(self, n: int, *, generator: torch.Generator | None = None, frames: int | None = None) -> Tensor:
        """z (n, latent_dim) from N(0, I); with `frames`, z for `decode` with as many frames."""
        return self._noise(n, self._numbers(frames or self.frames), generator)

    def _noise(self, n: int, numbers: int, generator: torch.Generator | None) -> Tensor:
        device = self.device if generator is None else generator.device
        return functional.randn(n, numbers, generator=generator, dtype=self.dtype, device=device).to(self.device)

    def decode(self, z: Tensor, labels: Tensor | None = None, frames: int | None = None) -> Tensor:
        """z to N clips, differentiably. See `LatentModel.decode`.

        Args:
            z: as `prior` gives them.
            labels: as for `LatentModel.decode`.
            frames: of each clip; None for those that the model was built for.

        Returns:
            (N, frames, channels, height, width) in [-1, 1].
        """
        frames, classes, vectors = frames or self.frames, self._weights(labels, len(z)), self._vectors(z)
        begun = self._shown(self.beginnings(vectors[: self.beginnings.things], classes))
        if frames <= FRAMES:
            return begun[:, :frames]
        noise = Drawn(vectors[self.beginnings.things :])
        return torch.cat(
            [begun, self._go_on(begun.transpose(0, 1), frames - FRAMES, noise, classes, self._shown)], dim=1
        )

    @property
    def draws_futures(self) -> bool:
        """See `VideoModel.draws_futures`."""
        return self.core.latents_of(1) > 0

    def predict(
        self,
        given: Tensor,
        frames: int,
        *,
        labels: Labels | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """See `VideoModel.predict`; with a ConvLSTM core nothing is sampled, and labels have no effect."""
        if given.dim() != 5 or given.shape[2:] != self.frame_shape or not given.shape[1]:
            wanted = ", ".join(map(str, self.frame_shape))
            raise ValueError(f"given: expected (N, K, {wanted}), K at least 1, got {tuple(given.shape)}")
        check_counts(frames=frames)
        count = len(given)
        classes = self._weights(None if labels is None else self.check_labels(labels, count), count)
        numbers = self._of_each * self.core.latents_of(frames)
        noise = Drawn(self._vectors(self._noise(count, numbers, generator)))
        with evaluating(self):
            return self._go_on(given.to(self.device, self.dtype).transpose(0, 1), frames, noise, classes, self._mean)

    def _go_on(
        self, given: Tensor, frames: int, noise: Latents, classes: Tensor, show: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """(N, frames, ...): the model's own frames after (K, N, ...), each as it is shown of what was decoded."""
        steps = len(given)
        features, state, found = _Features(self, given, range(steps)), self.core.begin(classes), []
        if steps > 1:
            posterior = self.core.infer(features.of(0, steps), classes)
            latents = None if posterior is None else Expected(posterior[0][1:])
            *_, state = self.core(features.of(0, steps - 1), state, latents, classes)
        before, read = features.of(steps - 1, steps), given[-1]
        for _ in range(frames):
            decoded, state = self._steps(before, state, noise, classes)
            found.append(show(decoded[0]))
            before, read = self._read(found[-1], read), found[-1]
        return torch.stack(found, dim=1)

    def _steps(self, inputs: Features, state: Any, latents: Latents | None, classes: Tensor) -> tuple[Tensor, Any]:
        """Frames (T, N, ...) before the likelihood's squashing, of the features of those before, and the state."""
        maps, expected, state = self.core(inputs, state, latents, classes)
        return self.decoder(maps, inputs._replace(matches=expected)), state

    def _read(self, frame: Tensor, before: Tensor) -> Features:
        """The features of a frame (N, channels, height, width) that comes after another."""
        return Features(frame[None], *(each[None] for each in self.encoder(frame, before)))

    def _vectors(self, z: Tensor) -> Tensor:
        """(N, numbers) to latent vectors (numbers / latent_dim, N, latent_dim)."""
        return z.view(len(z), z.shape[1] // self._of_each, self._of_each).transpose(0, 1)

    def _weights(self, labels: Tensor | None, count: int) -> Tensor:
        """(N, num_classes): the classes of N clips, all 0 where nobody knows them."""
        nothing = torch.zeros(count, 0, dtype=self.dtype, device=self.device)
        if labels is None:
            return nothing.new_zeros(count, self.num_classes or 0)
        return self.with_classes(nothing, labels)

    def _shown(self, decoded: Tensor) -> Tensor:
        """Of frames that nobody knows better, for which sharp ones are worth more than their mean."""
        return self._mean(contrasted(decoded, STEEPNESS[self.likelihood]))

    def _mean(self, decoded: Tensor) -> Tensor:
        return pixel_mean(decoded, self.likelihood)


class _Features:
    """The features of a clip's true frames, as far as anything reads them, found side by side.

    Args:
        model: whose encoder finds them.
        truth: (T, N, channels, height, width).
        read: the frames that something reads.
    """

    def __init__(self, model: VideoRNN, truth: Tensor, read: Iterable[int]) -> None:
        order = sorted(read)
        self._place = {frame: place for place, frame in enumerate(order)}
        # What stands for the frame before the first.
        before = torch.cat([torch.zeros_like(truth[:1]), truth[:-1]])
        if len(order) < len(truth):
            truth, before = truth[order], before[order]
        found = model.encoder(truth.flatten(0, 1), before.flatten(0, 1))
        self._all = Features(truth, *(each.unflatten(0, truth.shape[:2]) for each in found))

    def of(self, begin: int, end: int) -> Features:
        """Of the frames from `begin` to before `end`, all of which something reads."""
        first = self._place[begin] if end > begin else 0
        return self._all.part(first, first + end - begin)
