"""How clips begin: what is found of things, and what is drawn of them."""

from __future__ import annotations

import pytest
import torch

from aigc_fast.data import moving_digits
from aigc_fast.data.videos import as_floats
from aigc_fast.models import VideoRNN
from aigc_fast.models.likelihood import pixel_log_likelihood, pixel_mean
from aigc_fast.models.video.beginnings import Beginnings, find


def beginnings(shape=(1, 16, 16), things=1, latent_dim=6, classes=0):
    torch.manual_seed(0)
    return Beginnings(shape, things, latent_dim, 8, classes).double()


def squares(*places, side=32, size=5, channels=1):
    """A frame in which bright squares have their upper left corners at places."""
    frame = torch.full((1, channels, side, side), -1.0, dtype=torch.float64)
    for row, column in places:
        frame[..., row : row + size, column : column + size] = 1.0
    return frame


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("first", "second"), [((4, 20), (6, 19)), ((27, 0), (27, 3)), ((13, 13), (13, 13))])
def test_what_moves_or_stands_out_is_found(first, second, channels):
    pair = torch.stack([squares(place, channels=channels) for place in (first, second)], dim=1)
    ((before, after),) = find(pair, 1)
    wanted = torch.tensor([first, second], dtype=torch.float64) + 2
    torch.testing.assert_close(torch.cat([before, after]), wanted, atol=0.6, rtol=0)


def test_each_thing_is_found_once():
    pair = torch.stack([squares((3, 4), (22, 20)), squares((5, 4), (22, 23))], dim=1)
    found = sorted(middle[0].tolist() for middle, _ in find(pair, 2))
    torch.testing.assert_close(torch.tensor(found), torch.tensor([[5.0, 6.0], [24.0, 22.0]]), atol=1.5, rtol=0)


def test_the_middles_of_digits_are_found():
    clips = moving_digits(100)
    paths = clips.paths[:, :2, 0].double()
    ((first, second),) = find(clips.batch()[:, :2].double(), 1)
    # A digit's middle is its picture's; that of what is bright may be elsewhere in it.
    apart = torch.linalg.vector_norm(torch.stack([first, second], dim=1) - paths, dim=-1)
    assert apart.median() < 1.5
    moved = torch.linalg.vector_norm((second - first) - (paths[:, 1] - paths[:, 0]), dim=-1)
    assert moved.median() < 0.5


def test_two_digits_near_each_other_are_two_things():
    clips = moving_digits(200, digits=2)
    paths = clips.paths[:, :2].double()
    found = torch.stack([torch.stack(each, dim=1) for each in find(clips.batch()[:, :2].double(), 2)], dim=2)
    # Either may be found first.
    apart = [torch.linalg.vector_norm(found.roll(turn, 2) - paths, dim=-1).amax((1, 2)) for turn in (0, 1)]
    apart = torch.minimum(*apart)
    between = torch.linalg.vector_norm(paths[:, 0, 0] - paths[:, 0, 1], dim=-1)
    assert (apart[between > 10] > 3).double().mean() < 0.1
    assert (apart > 3).double().mean() < 0.2


def test_of_two_things_each_is_read_without_the_other():
    model, seen = beginnings((1, 32, 32), things=2), []
    model.code.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    both = torch.stack([squares((10, 6), (10, 14)), squares((11, 6), (10, 15))], dim=1)
    model.infer(both, both.new_zeros(1, 0))
    bright = seen[0][:, 0, : 2 * model.side**2].view(2, 2, -1).sum(-1)
    torch.testing.assert_close(bright, torch.full_like(bright, 2 * 25), atol=6, rtol=0)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 8, 12)])
def test_places_are_where_pictures_are_drawn(shape):
    """Of pictures with one bright pixel next to their middle."""
    model = beginnings(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        half = model.side // 2
        model.what[-1].bias.view(-1, model.side, model.side)[:, half, half] = 9.0
    rows, columns = shape[1:]
    # The middle of the frame in the middle of both frames, and two pixels down, one to the left from one to the other.
    places = torch.tensor([0.0, 0.0, 2 / (0.1 * rows), -1 / (0.1 * columns), 0.0, 0.0], dtype=torch.float64)
    drawn = model(places[None, None], torch.zeros(1, 0, dtype=torch.float64))[0]
    assert drawn.shape == (2, *shape)
    for frame, (row, column) in zip(drawn, ((-1, 0), (1, -1)), strict=True):
        wanted = torch.zeros(shape, dtype=torch.float64)
        # Half a pixel to a side is half of it on either.
        wanted[:, rows // 2 + row, [columns // 2 + column, columns // 2 + column + 1]] = 4.5
        torch.testing.assert_close(frame, wanted)


def test_what_is_inferred_begins_where_things_were_found_and_is_drawn_there():
    model = beginnings((1, 32, 32))
    pair = torch.stack([squares((4, 18)), squares((6, 16))], dim=1)
    mu, logvar = model.infer(pair, pair.new_zeros(1, 0))
    middle, move = model._in_pixels(mu[0, :, :4])
    torch.testing.assert_close(middle, torch.tensor([[7.0, 19.0]], dtype=torch.float64), atol=1.5, rtol=0)
    torch.testing.assert_close(move, torch.tensor([[2.0, -2.0]], dtype=torch.float64), atol=1.5, rtol=0)
    assert (logvar < -2).all()


@pytest.mark.parametrize("latent_dim", [1, 2, 5, 9])
@pytest.mark.parametrize(("shape", "things", "classes"), [((1, 4, 4), 1, 0), ((3, 8, 12), 2, 4), ((1, 64, 4), 3, 2)])
def test_shapes_and_gradients(shape, things, classes, latent_dim):
    model = beginnings(shape, things, latent_dim, classes)
    pairs = torch.rand(5, 2, *shape, dtype=torch.float64) * 2 - 1
    weights = torch.rand(5, classes, dtype=torch.float64)
    mu, logvar = model.infer(pairs, weights)
    assert mu.shape == logvar.shape == (things, 5, latent_dim)
    drawn = model(mu + (logvar / 2).exp(), weights)
    assert drawn.shape == pairs.shape
    drawn.sin().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_frames_of_one_grey_level_have_something_to_look_at():
    model = beginnings(things=2)
    for level in (-1.0, 0.0, 1.0):
        pairs = torch.full((2, 2, 1, 16, 16), level, dtype=torch.float64)
        assert all(each.isfinite().all() for each in model.infer(pairs, pairs.new_zeros(2, 0)))


def test_things_are_alike_and_their_order_says_nothing():
    model = VideoRNN(frame_shape=(1, 16, 16), width=4, hidden=4, latent_dim=5, things=3).double()
    z = torch.randn(2, 15, dtype=torch.float64)
    turned = z.view(2, 3, 5).roll(1, 1).flatten(1)
    torch.testing.assert_close(model.sample(2, z=z), model.sample(2, z=turned))


def test_what_clips_begin_with_is_learned_in_a_few_steps():
    """Of clips that it has not seen, it draws more than where digits are on average: each in its place and moving."""
    clips = moving_digits(300)
    torch.manual_seed(0)
    model = Beginnings((1, 32, 32), 1, 8, 32, 0)
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    none = torch.zeros(30, 0)
    for step in range(60):
        pairs = clips.batch(torch.arange(30 * step, 30 * step + 30) % 300)[:, step % 14 :][:, :2]
        mu, logvar = model.infer(pairs, none)
        decoded = model(mu + (logvar / 2).exp() * torch.randn_like(mu), none)
        divergence = (mu.square() + logvar.exp() - logvar - 1).sum() / 2
        adam.zero_grad()
        ((divergence - pixel_log_likelihood(decoded, pairs, "bernoulli", None).sum()) / 30).backward()
        adam.step()
    shown = as_floats(clips.held_out)[:, :2]
    with torch.no_grad():
        decoded = model(model.infer(shown, none)[0], none)
    average = torch.atanh(0.999 * clips.batch().mean((0, 1))) * 2
    of_average = pixel_log_likelihood(average.expand_as(shown), shown, "bernoulli", None).mean()
    assert pixel_log_likelihood(decoded, shown, "bernoulli", None).mean() > 0.7 * of_average
    found, wanted = (torch.cat(find(pairs, 1)[0]) for pairs in (pixel_mean(decoded, "bernoulli"), shown))
    assert torch.linalg.vector_norm(found - wanted, dim=1).median() < 1.5
