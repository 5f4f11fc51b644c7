import pytest
import torch

from aigc_fast.generation import draw, interpolate, latent_manifold
from aigc_fast.generation.latent import slerp
from aigc_fast.models import ImageModel, create


class Plain(ImageModel):
    """Shows its latent: pixel i is tanh(z[i]), and the last pixel is the class."""

    name = "plain"

    def __init__(self, latent_dim=2, num_classes=None):
        super().__init__(image_shape=(1, 1, latent_dim + 1), latent_dim=latent_dim, num_classes=num_classes)
        self.weight = torch.nn.Parameter(torch.ones(()))

    def decode(self, z, labels=None):
        classes = torch.full((len(z), 1), -1.0) if labels is None else labels[:, None].float() / 10
        return torch.cat([torch.tanh(z) * self.weight, classes], dim=1)[:, None, None]


def latents(images):
    return torch.atanh(images[:, 0, 0, :-1].double())


def test_draws_depend_on_the_seed_alone():
    model = Plain(latent_dim=5)
    torch.manual_seed(1)
    first = draw(model, 20, seed=3)
    torch.manual_seed(2)
    assert torch.equal(draw(model, 20, seed=3), first)
    assert torch.equal(draw(model, Plain.decoded_at_once + 40, seed=3)[:20], first)
    assert not torch.equal(draw(model, 20, seed=4), first)
    assert not first.requires_grad


def test_training_mode_comes_back():
    model = Plain().train()
    draw(model, 3, seed=0)
    assert model.training


def test_classes_in_turn_over_batches_and_one_class_for_all():
    model = Plain(num_classes=10)
    images = draw(model, Plain.decoded_at_once + 25, seed=0)
    assert torch.equal((images[:, 0, 0, -1] * 10).round().long(), torch.arange(Plain.decoded_at_once + 25) % 10)
    assert (draw(model, 9, seed=0, labels=7)[:, 0, 0, -1] == 0.7).all()
    with pytest.raises(ValueError, match="labels"):
        draw(model, 9, seed=0, labels=10)
    with pytest.raises(ValueError, match="labels"):
        draw(Plain(), 9, seed=0, labels=1)


def test_walks_start_and_end_at_draws_and_keep_the_norm_between():
    model = Plain(latent_dim=8)
    walks = latents(interpolate(model, 7, rows=3, seed=5)).view(3, 7, 8)
    ends = latents(draw(model, 6, seed=5)).view(3, 2, 8)
    torch.testing.assert_close(walks[:, 0], ends[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(walks[:, -1], ends[:, 1], rtol=1e-4, atol=1e-5)


def test_slerp_turns_evenly():
    start, end = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    path = slerp(start, end, torch.linspace(0, 1, 4))
    angles = torch.atan2(path[:, 1], path[:, 0])
    torch.testing.assert_close(angles, torch.linspace(0, torch.pi / 2, 4))
    torch.testing.assert_close(path.norm(dim=1), torch.full((4,), 2.0))
    for other in (start, -start, 3 * start):
        assert torch.allclose(slerp(start, other, torch.tensor([0.5]))[0], (start + other) / 2)


def test_manifold_is_a_grid_of_normal_quantiles():
    scipy_stats = pytest.importorskip("scipy.stats")
    z = latents(latent_manifold(Plain(), 5, edge=0.1)).view(5, 5, 2)
    steps = torch.from_numpy(scipy_stats.norm.ppf([0.1, 0.3, 0.5, 0.7, 0.9]))
    torch.testing.assert_close(z[0, :, 0], steps, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(z[:, 2, 1], steps.flip(0), rtol=1e-4, atol=1e-5)


def test_bad_arguments():
    with pytest.raises(ValueError, match="2 latent dimensions, this one has 3"):
        latent_manifold(Plain(latent_dim=3))
    with pytest.raises(ValueError, match="side=0"):
        latent_manifold(Plain(), 0)
    with pytest.raises(ValueError, match=r"edge=0\.5"):
        latent_manifold(Plain(), edge=0.5)
    with pytest.raises(ValueError, match="steps=1"):
        interpolate(Plain(), 1)


@pytest.mark.parametrize("name", ["mlp-gan", "vae"])
def test_walks_between_classes_begin_in_one_and_end_in_the_other(name):
    model = create(name, hidden=8, num_classes=4)
    starts, ends = [0, 3], [2, 1]
    walks = interpolate(model, 5, rows=2, seed=3, labels=starts, to_labels=ends).unflatten(0, (2, 5))
    within = [
        interpolate(model, 5, rows=2, seed=3, labels=torch.tensor(side).repeat_interleave(5)) for side in (starts, ends)
    ]
    torch.testing.assert_close(walks[:, 0], within[0].unflatten(0, (2, 5))[:, 0])
    torch.testing.assert_close(walks[:, -1], within[1].unflatten(0, (2, 5))[:, -1])
    weights = torch.tensor([[0.5, 0.0, 0.5, 0.0], [0.0, 0.5, 0.0, 0.5]])
    generator = torch.Generator().manual_seed(3)
    z = model.prior(4, generator=generator)
    middle = torch.stack([slerp(z[0], z[1], torch.tensor([0.5]))[0], slerp(z[2], z[3], torch.tensor([0.5]))[0]])
    torch.testing.assert_close(walks[:, 2], model.sample(2, z=middle, labels=weights))
    mixed = interpolate(model, 5, rows=2, seed=3, labels=weights, to_labels=1).unflatten(0, (2, 5))
    torch.testing.assert_close(mixed[:, 0], model.sample(2, z=z[::2], labels=weights))


def test_weights_of_one_class_are_that_class():
    model = create("vae", hidden=8, num_classes=3)
    z = torch.randn(3, model.latent_dim)
    torch.testing.assert_close(model.sample(3, z=z, labels=torch.eye(3)), model.sample(3, z=z, labels=[0, 1, 2]))
    assert model.double().check_labels(torch.eye(3), 3).dtype is torch.float64


def test_classes_that_can_not_be_walked_between_are_named():
    with pytest.raises(ValueError, match="without classes"):
        interpolate(create("vae", hidden=8), 3, to_labels=1)
    model = create("vae", hidden=8, num_classes=3)
    with pytest.raises(ValueError, match="3 classes, expected 1 labels, got None"):
        interpolate(model, 3, to_labels=1)
    with pytest.raises(ValueError, match="expected classes 0 to 2"):
        interpolate(model, 3, labels=0, to_labels=3)
    with pytest.raises(ValueError, match="expected integers"):
        interpolate(model, 3, labels=torch.ones(1, 4), to_labels=1)
