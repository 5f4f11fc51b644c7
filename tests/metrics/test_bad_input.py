"""Every metric refuses by name what it cannot measure, and takes every real dtype that it can."""

from __future__ import annotations

import math

import pytest
import torch

from aigc_fast import metrics
from aigc_fast.metrics.video import displacement
from aigc_fast.models.vocoder.spectral import spectral_distance

FEATURES = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
IMAGES = 2 * torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(1)) - 1
CLIPS = 2 * torch.rand(6, 3, 1, 16, 16, generator=torch.Generator().manual_seed(3)) - 1
SOUNDS = torch.randn(4, 300, generator=torch.Generator().manual_seed(2))

# Each metric of one argument or two, the arguments' names, and what fits.
MEASURES = {
    "frechet_distance": (("real", "generated"), FEATURES),
    "precision_recall": (("real", "generated"), FEATURES),
    "density_coverage": (("real", "generated"), FEATURES),
    "class_spread": (("logits",), FEATURES),
    "nearest_neighbours": (("images", "training"), IMAGES),
    "evaluate_images": (("generated", "training"), IMAGES),
    "evaluate_videos": (("generated", "training"), CLIPS),
    "psnr": (("frames", "reference"), CLIPS),
    "ssim": (("frames", "reference"), CLIPS),
    "evaluate_sounds": (("generated", "training"), SOUNDS),
    "pairwise_spectral_distance": (("audio", "references"), SOUNDS),
    "multi_resolution_spectral_distance": (("audio", "reference"), SOUNDS),
}
ARGUMENTS = [(measure, place) for measure, (names, _) in MEASURES.items() for place in range(len(names))]
OF_SOUNDS = [measure for measure, (_, good) in MEASURES.items() if good is SOUNDS]
OF_PIXELS = ["evaluate_images", "evaluate_videos", "psnr", "ssim"]
OF_SAMPLES = ["frechet_distance", "precision_recall", "density_coverage", "class_spread", "nearest_neighbours"]


def given(measure, place, value):
    """The arguments' name in that place, and a call with this value there."""
    names, good = MEASURES[measure]
    arguments = [good] * len(names)
    arguments[place] = value
    return names[place], lambda: getattr(metrics, measure)(*arguments)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("measure", "place"), ARGUMENTS)
def test_what_is_not_finite_is_named(measure, place, wrong):
    value = MEASURES[measure][1].clone()
    value.flatten()[-2] = wrong
    name, call = given(measure, place, value)
    with pytest.raises(ValueError, match=rf"^{name}: expected finite values, got 1 that are NaN or infinite"):
        call()


@pytest.mark.parametrize(("measure", "place"), ARGUMENTS)
def test_what_is_no_tensor_is_named(measure, place):
    for value in (MEASURES[measure][1].numpy(), MEASURES[measure][1].tolist(), None):
        name, call = given(measure, place, value)
        with pytest.raises(TypeError, match=rf"^{name} is {type(value).__name__}: expected a Tensor"):
            call()


@pytest.mark.parametrize(("measure", "place"), ARGUMENTS)
def test_what_is_not_real_is_named(measure, place):
    for dtype in (torch.bool, torch.complex64):
        name, call = given(measure, place, MEASURES[measure][1].to(dtype))
        with pytest.raises(ValueError, match=rf"^{name}: expected .*, got {dtype}"):
            call()


@pytest.mark.parametrize("measure", [*OF_PIXELS, *OF_SOUNDS])
def test_integers_are_not_taken_for_values_from_minus_1_to_1(measure):
    for place, name in enumerate(MEASURES[measure][0]):
        _, call = given(measure, place, (100 * MEASURES[measure][1]).to(torch.int16))
        with pytest.raises(ValueError, match=rf"^{name}: expected a floating-point type, got torch\.int16"):
            call()


@pytest.mark.parametrize("measure", OF_SOUNDS)
def test_sounds_are_of_one_dtype_that_has_spectra(measure):
    names = MEASURES[measure][0]
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match=rf"^{names[0]}: expected float32 or float64, got {dtype}"):
            getattr(metrics, measure)(SOUNDS.to(dtype), SOUNDS.to(dtype))
    with pytest.raises(ValueError, match=rf"^{names[1]}: expected {names[0]}'s dtype torch\.float32"):
        getattr(metrics, measure)(SOUNDS, SOUNDS.double())


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("measure", OF_SAMPLES)
def test_every_real_dtype_is_measured_as_its_numbers(measure, dtype):
    names, good = MEASURES[measure]
    values = [(100 * good.abs() + 30 * place).to(dtype) for place in range(len(names))]
    found = getattr(metrics, measure)(*values)
    expected = getattr(metrics, measure)(*(value.double() for value in values))
    if measure == "nearest_neighbours":
        assert torch.equal(found.index, expected.index)
        torch.testing.assert_close(found.distance, expected.distance)
    else:
        assert found == expected


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_the_unit_of_the_features_does_not_matter(scale):
    real, generated = FEATURES.double(), FEATURES.double() * 0.5 + 0.7
    for measure in (metrics.precision_recall, metrics.density_coverage):
        expected = measure(real, generated)
        assert measure(real * scale, generated * scale) == expected
        assert expected != measure(real, real)
    images, training = IMAGES[:5].double(), IMAGES[3:].double()
    found = metrics.nearest_neighbours(images * scale, training * scale)
    expected = metrics.nearest_neighbours(images, training)
    assert torch.equal(found.index, expected.index)
    torch.testing.assert_close(found.distance / scale, expected.distance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_frechet_distance_grows_with_the_square_of_the_unit(scale):
    real, generated = FEATURES.double(), FEATURES.double() * 0.5 + 0.7
    found = metrics.frechet_distance(real * scale, generated * scale)
    assert found / scale / scale == pytest.approx(metrics.frechet_distance(real, generated), rel=1e-9)


def test_features_whose_squares_overflow_are_named():
    with pytest.raises(ValueError, match=r"^generated: expected features whose squares float64 holds"):
        metrics.frechet_distance(FEATURES, FEATURES.double() * 1e200)


@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.float32, 1e13), (torch.float32, 1e30), (torch.float64, 1e148), (torch.float64, 1e300)]
)
@pytest.mark.parametrize("measure", OF_SOUNDS)
def test_sounds_whose_spectra_overflow_are_named(measure, dtype, scale):
    for place, name in enumerate(MEASURES[measure][0]):
        given = [SOUNDS.to(dtype)] * 2
        given[place] = given[place] * scale
        with pytest.raises(ValueError, match=rf"^{name}: expected values within ±"):
            getattr(metrics, measure)(*given)


@pytest.mark.parametrize("scale", [1e-30, 1e5, 1e11])
def test_loud_sounds_are_measured(scale):
    found = metrics.evaluate_sounds(SOUNDS * scale, SOUNDS)
    assert all(math.isfinite(figure) for figure in found.as_dict().values())
    assert metrics.evaluate_sounds(SOUNDS, SOUNDS * scale).nearest > 1


@pytest.mark.parametrize("measure", OF_PIXELS)
def test_pixels_whose_figures_overflow_are_named(measure):
    names, good = MEASURES[measure]
    for place, name in enumerate(names):
        given = [good.double()] * 2
        given[place] = good.double() * 1e200
        with pytest.raises(ValueError, match=rf"^{name}: expected values within ±.*, got one of size"):
            getattr(metrics, measure)(*given)


@pytest.mark.parametrize("measure", OF_PIXELS)
def test_pictures_without_pixels_are_named(measure):
    good = MEASURES[measure][1]
    for empty in (good[..., :0], good[..., :0, :], good[..., :0, :, :]):
        with pytest.raises(ValueError, match=r"^(generated|training|frames): expected .* with pixels.*, got shape"):
            getattr(metrics, measure)(empty, empty)


def test_the_frames_that_displacements_begin_from_are_checked():
    assert displacement(CLIPS[:0], CLIPS[:0], CLIPS[:0, 0]).shape == (0, 3)
    for wrong in (CLIPS, CLIPS[:5, 0], CLIPS[:, 0, 0]):
        with pytest.raises(ValueError, match=r"^last: expected one of frames \(6, 3, 1, 16, 16\) for each, got shape"):
            displacement(CLIPS, CLIPS, wrong)
    with pytest.raises(ValueError, match=r"^last: expected finite values, got 1536 that"):
        displacement(CLIPS, CLIPS, CLIPS[:, 0] * math.inf)
    with pytest.raises(TypeError, match=r"^last is list"):
        displacement(CLIPS, CLIPS, [0])
    with pytest.raises(ValueError, match=r"^frames: expected \(N, T, C, H, W\)"):
        displacement(CLIPS[0], CLIPS[0], CLIPS[0, 0])


@pytest.mark.parametrize("measure", ["frechet_distance", "precision_recall", "density_coverage"])
def test_sets_that_do_not_compare_are_named(measure):
    measure = getattr(metrics, measure)
    for real in (FEATURES[:1], FEATURES[:0], FEATURES[:, :0], FEATURES[0], FEATURES[None]):
        with pytest.raises(ValueError, match=r"^real: expected \(N, D\) features with N >"):
            measure(real, FEATURES)
        with pytest.raises(ValueError, match=r"^generated: expected \(N, D\) features with N >"):
            measure(FEATURES, real)
    with pytest.raises(ValueError, match=r"^generated: expected 3 features as in real, got 2"):
        measure(FEATURES, FEATURES[:, :2])
    with pytest.raises(ValueError, match=r"^generated: expected real's device cpu, got meta"):
        measure(FEATURES, FEATURES.to("meta"))


def test_images_that_do_not_compare_are_named():
    nearest = metrics.nearest_neighbours
    with pytest.raises(ValueError, match=r"^images: expected \(N, C, H, W\) with pixels"):
        nearest(IMAGES[:, 0], IMAGES[:, 0])
    with pytest.raises(ValueError, match=r"^images: expected \(N, C, H, W\) with pixels"):
        nearest(IMAGES[:, :, :0], IMAGES[:, :, :0])
    for training, skip in ((IMAGES[:0], False), (IMAGES[:1], True)):
        with pytest.raises(ValueError, match=r"^training: expected images of shape \(1, 28, 28\), at least"):
            nearest(IMAGES, training, skip_self=skip)
    assert nearest(IMAGES[:0], IMAGES).distance.shape == (0,)
    with pytest.raises(ValueError, match=r"^neighbours: expected those of images"):
        metrics.pairing_grid(IMAGES[:3], IMAGES, nearest(IMAGES[:2], IMAGES))
    with pytest.raises(TypeError, match="images is list: expected a Tensor"):
        metrics.pairing_grid([1.0], IMAGES, nearest(IMAGES[:2], IMAGES))


@pytest.mark.parametrize(("k", "least"), [(1, 4), (2, 5), (5, 11)])
def test_the_least_images_are_enough(k, least):
    assert metrics.evaluate_images(IMAGES[: max(k, 3) + 1], IMAGES[:least], k=k).training_count == least
    with pytest.raises(ValueError, match=rf"^training: expected at least {least} images, got {least - 1}"):
        metrics.evaluate_images(IMAGES, IMAGES[: least - 1], k=k)


def test_bad_numbers_of_neighbours_are_named():
    for measure, good in ((metrics.precision_recall, FEATURES), (metrics.evaluate_images, IMAGES)):
        with pytest.raises(ValueError, match=r"^k=0: expected at least 1"):
            measure(good, good, k=0)
        with pytest.raises(TypeError, match=r"^k is float: expected an integer"):
            measure(good, good, k=1.5)


@pytest.mark.parametrize("resolutions", [(), ((64, 0, 64),), ((64, 16, 65),), ((0, 16, 0),), ((64, 16),)])
@pytest.mark.parametrize("measure", OF_SOUNDS[1:])
def test_resolutions_without_spectra_are_named(measure, resolutions):
    with pytest.raises(ValueError, match=r"^resolutions=.*: expected \(FFT size, hop, window length\)"):
        getattr(metrics, measure)(SOUNDS, SOUNDS, resolutions=resolutions)


def test_sounds_of_unlike_lengths_are_named():
    with pytest.raises(ValueError, match=r"^generated: expected 299 samples as in training, got 300"):
        metrics.evaluate_sounds(SOUNDS, SOUNDS[:, 1:])


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_a_loss_within_a_graph_passes_nan_on():
    """A training loop looks at its loss; the model's own is not refused for what its weights became."""
    wrong = torch.where(torch.arange(300) == 7, math.nan, SOUNDS)
    assert spectral_distance(wrong, SOUNDS).isnan().all()
    compiled = torch.compile(metrics.multi_resolution_spectral_distance, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(SOUNDS, SOUNDS.flip(0)), spectral_distance(SOUNDS, SOUNDS.flip(0)).mean())
    mapped = torch.vmap(metrics.multi_resolution_spectral_distance)(SOUNDS, SOUNDS.flip(0))
    torch.testing.assert_close(mapped, spectral_distance(SOUNDS, SOUNDS.flip(0)))


@pytest.mark.parametrize(
    ("name", "images", "labels"),
    [
        ("images", IMAGES[:0], torch.zeros(0, dtype=torch.int64)),
        ("images", IMAGES[:, 0], torch.zeros(20, dtype=torch.int64)),
        ("images", IMAGES.to(torch.uint8), torch.zeros(20, dtype=torch.int64)),
        ("images", IMAGES * math.nan, torch.zeros(20, dtype=torch.int64)),
        ("labels", IMAGES, torch.zeros(19, dtype=torch.int64)),
        ("labels", IMAGES, torch.zeros(20)),
        ("labels", IMAGES, torch.full((20,), 10)),
        ("labels", IMAGES, torch.full((20,), -1)),
    ],
)
def test_what_the_classifier_cannot_learn_from_is_named(name, images, labels):
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        metrics.train_classifier(images, labels)
