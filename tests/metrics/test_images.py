import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from aigc_fast.data import digits
from aigc_fast.metrics import ImageClassifier, evaluate_images, load_classifier, train_classifier


@pytest.fixture(scope="module")
def training():
    return digits().batch()


def test_shipped_classifier_knows_the_digits(training):
    logits = load_classifier()(training)
    accuracy = (logits.argmax(dim=1) == digits().labels).double().mean().item()
    assert accuracy > 0.99


def test_training_generalises_and_is_repeatable(training):
    labels = digits().labels
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(1))
    fit, held_out = order[:1200], order[1200:]
    random_state = torch.random.get_rng_state()
    model = train_classifier(training[fit], labels[fit], epochs=4)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    accuracy = (model(training[held_out]).argmax(dim=1) == labels[held_out]).double().mean().item()
    assert accuracy > 0.7
    twins = [train_classifier(training[:100], labels[:100], epochs=1) for _ in range(2)]
    for a, b in zip(*(twin.state_dict().values() for twin in twins), strict=True):
        torch.testing.assert_close(a, b)


def test_other_sizes_and_colours_are_brought_to_28_grey(training):
    model = load_classifier()
    colour = training[:50].expand(-1, 3, -1, -1)
    torch.testing.assert_close(model.features(colour), model.features(training[:50]))
    larger = torch.nn.functional.interpolate(training[:200], scale_factor=2, mode="bilinear")
    agree = (model(larger).argmax(dim=1) == model(training[:200]).argmax(dim=1)).double().mean().item()
    assert agree > 0.97
    with pytest.raises(ValueError, match="images"):
        model.features(training[0])


def test_features_in_batches_are_the_features(training):
    model = load_classifier()
    torch.testing.assert_close(model.features_of(training[:1100]), model.features(training[:1100]))


def test_classifier_round_trips_through_safetensors(tmp_path, training):
    model = load_classifier()
    save_file(model.state_dict(), tmp_path / "classifier.safetensors")
    twin = ImageClassifier()
    twin.load_state_dict(load_file(tmp_path / "classifier.safetensors"))
    torch.testing.assert_close(twin(training[:20]), model(training[:20]))


def test_report_of_the_training_images_themselves(training):
    report = evaluate_images(training[:300], training[:600])
    assert report.precision == 1.0
    assert report.nearest == 0.0
    assert report.nearest_of_training > 0.05
    assert report.effective_classes > 9
    assert sum(report.class_histogram) == pytest.approx(1)
    assert json.loads(json.dumps(report.as_dict()))["count"] == 300


def test_report_orders_good_worse_and_useless_images(training):
    reference = training[:600]
    held_out = training[600:1000]
    noisy = held_out + 0.6 * torch.randn(held_out.shape, generator=torch.Generator().manual_seed(0))
    collapsed = training[600:601] + 0.02 * torch.randn(400, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    good, worse, one = (evaluate_images(images, reference) for images in (held_out, noisy, collapsed))
    assert good.frechet < worse.frechet < one.frechet
    assert good.coverage > worse.coverage > one.coverage
    assert good.recall > 0.5 > one.recall
    assert one.effective_classes == pytest.approx(1)


def test_too_few_or_wrong_images(training):
    with pytest.raises(ValueError, match="generated: expected images of shape"):
        evaluate_images(torch.zeros(40, 3, 28, 28), training)
    with pytest.raises(ValueError, match="expected at least 6 images, got 3"):
        evaluate_images(training[:3], training[:100])
