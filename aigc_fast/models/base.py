"""What every model has, and what those have that turn latent vectors into images or sounds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from aigc_fast import functional
from aigc_fast.runtime.arguments import check_generator, whole

Labels = int | Sequence[int] | Tensor


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Runs the block with `module` in eval mode and without gradients, then restores the mode of each module in it."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def quarter_sides(image_shape: Sequence[int]) -> tuple[int, int, int]:
    """(channels, height / 4, width / 4), where a decoder that doubles the sides twice begins.

    Raises:
        ValueError: when a side is not a multiple of 4.
    """
    channels, height, width = image_shape
    if height % 4 or width % 4:
        raise ValueError(f"image_shape={tuple(image_shape)}: expected height and width to be multiples of 4")
    return channels, height // 4, width // 4


def _checked_shape(name: str, shape: Any) -> tuple[int, int, int]:
    sizes = tuple(shape) if isinstance(shape, Sequence) else ()
    if len(sizes) != 3 or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"{name}={shape!r}: expected (channels, height, width), all positive")
    return sizes


MOST_LAYERS = 10_000
"""More than any model has; layers are objects, which take memory however small their tensors are."""


def check_counts(**values: Any) -> None:
    """Refuses, by ValueError, what is not a positive int, and more layers than any model has."""
    for name, value in values.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}={value!r}: expected a positive number")
        if name.endswith("layers") and value > MOST_LAYERS:
            raise ValueError(f"{name}={value}: expected at most {MOST_LAYERS}")


class Model(nn.Module):
    """The base of all models: what files, training and the command line need to know of one.

    Media and trainers are named, as "module:object", not imported: they build on the models.

    Args:
        **config: the constructor's keyword arguments, JSON-able.

    Attributes:
        name: the model's name in the registry, in files and on the command line.
        family: the name, in the plural, of the models that share a trainer and its defaults.
        medium: the `aigc_fast.media.Medium` that it generates and learns from.
        trainer: the `aigc_fast.training.Trainer` that trains it.
        training_settings: training defaults that differ from its trainer's.
        data_defaults: options for reading its training data, where the medium's own defaults do not suit it.
        least_batch: the fewest items that a training step needs.
        num_classes: number of classes of a class-conditional model; None for an unconditional one.
        config: the constructor's keyword arguments: `type(model)(**model.config)` builds an equal model.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    medium: ClassVar[str]
    trainer: ClassVar[str]
    training_settings: ClassVar[Mapping[str, Any]] = {}
    data_defaults: ClassVar[Mapping[str, Any]] = {}
    least_batch: ClassVar[int] = 1
    num_classes: int | None = None

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = config

    @property
    def device(self) -> torch.device:
        """Where the parameters are; of a model without any, the buffers."""
        return next(chain(self.parameters(), self.buffers())).device

    @property
    def dtype(self) -> torch.dtype:
        """What the parameters are; of a model without any, the floating-point buffers."""
        floats = (buffer for buffer in self.buffers() if buffer.is_floating_point())
        return next(chain(self.parameters(), floats)).dtype


class LatentModel(Model):
    """A model that turns latent vectors into items: images, sounds or clips.

    Args:
        latent_dim: size of the latent vector z.
        num_classes: number of classes of a class-conditional model; None for an unconditional one.
        **config: the subclass's other constructor arguments, JSON-able; kept in `config` to build the model again.

    Attributes:
        decoded_at_once: how many items to decode in one call, to limit the memory it takes.

    Raises:
        ValueError: for a size or a number that is not positive.
    """

    decoded_at_once: ClassVar[int] = 256

    def __init__(self, *, latent_dim: int, num_classes: int | None = None, **config: Any) -> None:
        check_counts(latent_dim=latent_dim, **{name: value for name, value in config.items() if type(value) is int})
        if num_classes is not None:
            check_counts(num_classes=num_classes)
        super().__init__(**config, latent_dim=latent_dim, num_classes=num_classes)
        self.latent_dim = latent_dim
        self.num_classes = num_classes

    def check_labels(self, labels: Labels | None, n: int) -> Tensor | None:
        """Labels as an int64 tensor (n,) on the model's device; None for an unconditional model.

        Args:
            labels: one class for all, or one for each of n items; or class weights for each item, floating-point
                (n, num_classes), which are returned in the model's dtype.
            n: how many items.

        Raises:
            ValueError: if labels are given to an unconditional model or missing for a conditional one, or if their
                number or range is wrong.
            TypeError: if they are not numbers.
        """
        if self.num_classes is None:
            if labels is not None:
                raise ValueError(f"labels: {self.name} was built without classes, expected None")
            return None
        if labels is None:
            raise ValueError(f"labels: this {self.name} has {self.num_classes} classes, expected {n} labels, got None")
        try:
            found = torch.as_tensor(labels)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"labels is {type(labels).__name__}: expected classes as integers or a Tensor") from None
        if found.dtype.is_floating_point and found.shape == (n, self.num_classes):
            return found.to(self.device, self.dtype)
        if found.dtype.is_floating_point or found.dtype.is_complex or found.dtype == torch.bool:
            raise ValueError(f"labels: expected integers, got {found.dtype}")
        if found.dim() == 0:
            found = found.expand(n)
        if found.shape != (n,):
            raise ValueError(f"labels: expected shape ({n},), got {tuple(found.shape)}")
        lowest, highest = (int(found.min()), int(found.max())) if n and not found.is_meta else (0, 0)
        if lowest < 0 or highest >= self.num_classes:
            raise ValueError(f"labels: expected classes 0 to {self.num_classes - 1}, got {lowest} to {highest}")
        return found.to(self.device, torch.int64)

    def with_classes(self, features: Tensor, labels: Tensor | None) -> Tensor:
        """Features (N, F) with the labels' one-hot vectors, or class weights, appended; unchanged without labels."""
        if labels is None:
            return features
        weights = labels if labels.is_floating_point() else nn.functional.one_hot(labels, self.num_classes)
        return torch.cat([features, weights.to(features.dtype)], dim=1)

    def prior(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """z (n, latent_dim) from N(0, I)."""
        check_generator(generator)
        device = self.device if generator is None else generator.device
        return functional.randn(n, self.latent_dim, generator=generator, dtype=self.dtype, device=device).to(
            self.device
        )

    def sample(
        self,
        n: int,
        *,
        labels: Labels | None = None,
        generator: torch.Generator | None = None,
        z: Tensor | None = None,
    ) -> Tensor:
        """Samples items, in eval mode and without gradients.

        Args:
            n: how many.
            labels: for a conditional model, one class for all, n classes, or class weights (n, num_classes); None
                takes 0, 1, 2, ... in turn.
            generator: makes the draw reproducible; None uses PyTorch's default generator.
            z: (n, latent_dim), in place of a draw from N(0, I).

        Returns:
            n items, as `decode` returns them.

        Raises:
            ValueError: if labels or z do not match the model.
            TypeError: for arguments of other types.
        """
        n = whole("n", n)
        if n < 0:
            raise ValueError(f"n={n}: expected the number of items, 0 or more")
        if labels is None and self.num_classes is not None:
            labels = torch.arange(n) % self.num_classes
        checked = self.check_labels(labels, n)
        if z is None:
            z = self.prior(n, generator=generator)
        elif z.shape != (n, self.latent_dim):
            raise ValueError(f"z: expected shape ({n}, {self.latent_dim}), got {tuple(z.shape)}")
        with evaluating(self):
            return self.decode(z.to(self.device, self.dtype), checked)

    @abstractmethod
    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Decodes z (N, latent_dim) to N items; differentiable, and in eval mode a function of z and the labels only.

        Args:
            z: latent vectors.
            labels: int64 (N,), or class weights (N, num_classes), for a conditional model, else None.
        """


class ImageModel(LatentModel):
    """A model that turns latent vectors into images (N, channels, height, width) in [-1, 1].

    Args:
        image_shape: (channels, height, width) of one image.
        **config: as for `LatentModel`.

    Raises:
        ValueError: for a size or a number that is not positive.
    """

    medium = "aigc_fast.media.images:IMAGES"

    def __init__(self, *, image_shape: Sequence[int], **config: Any) -> None:
        shape = _checked_shape("image_shape", image_shape)
        super().__init__(image_shape=list(shape), **config)
        self.image_shape = shape


class SoundModel(LatentModel):
    """A model that turns latent vectors into sounds (N, length), about within [-1, 1].

    Args:
        length: of one sound, in samples.
        sample_rate: in Hz.
        **config: as for `LatentModel`.

    Raises:
        ValueError: for a size or a number that is not positive.
    """

    medium = "aigc_fast.media.audio:AUDIO"
    decoded_at_once = 16

    def __init__(self, *, length: int, sample_rate: int, **config: Any) -> None:
        check_counts(length=length, sample_rate=sample_rate)
        super().__init__(length=length, sample_rate=sample_rate, **config)
        self.length, self.sample_rate = length, sample_rate


class VideoModel(LatentModel):
    """A model that turns latent vectors into clips (N, frames, channels, height, width) in [-1, 1].

    Args:
        frame_shape: (channels, height, width) of one frame.
        frames: number of frames of a clip.
        given: number of frames that a prediction starts from.
        **config: as for `LatentModel`.

    Raises:
        ValueError: for a size or a number that is not positive, or fewer than 2 frames.
    """

    medium = "aigc_fast.media.video:VIDEO"
    decoded_at_once = 16

    def __init__(self, *, frame_shape: Sequence[int], frames: int, given: int, **config: Any) -> None:
        shape = _checked_shape("frame_shape", frame_shape)
        if type(frames) is int and frames < 2:
            raise ValueError(f"frames={frames}: expected at least 2")
        super().__init__(frame_shape=list(shape), frames=frames, given=given, **config)
        self.frame_shape, self.frames, self.given = shape, frames, given

    @property
    def draws_futures(self) -> bool:
        """Whether what it predicts is drawn, so that it may go on in several ways from the same frames."""
        return False

    @abstractmethod
    def predict(
        self,
        given: Tensor,
        frames: int,
        *,
        labels: Labels | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Predicts how clips continue, in eval mode and without gradients.

        Args:
            given: (N, K, channels, height, width), their first frames, K at least 1.
            frames: how many to predict.
            labels: for a conditional model, one class for all or N classes; None if unknown.
            generator: makes the draw reproducible; None uses PyTorch's default generator.

        Returns:
            (N, frames, channels, height, width), the frames that follow the given ones.

        Raises:
            ValueError: if the frames or labels do not match the model.
        """
