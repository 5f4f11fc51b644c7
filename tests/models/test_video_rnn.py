"""VideoRNN: what its pass of training computes, what it draws, and its latent vectors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

from aigc_fast import functional
from aigc_fast import nn as fast
from aigc_fast.data import moving_digits
from aigc_fast.data.videos import as_floats
from aigc_fast.models import VideoRNN
from aigc_fast.models.likelihood import pixel_log_likelihood
from aigc_fast.models.video import ConvLSTM
from aigc_fast.models.video.frames import MATCHES, Features, contrasted, matches, summed_up
from aigc_fast.models.video.latents import Drawn, Expected, Inferred
from aigc_fast.optimize import restore

CORES = {
    "convlstm": {},
    "learned": {"core": "latent"},
    "fixed": {"core": "latent", "prior": "fixed"},
}
SMALL = {"frame_shape": (1, 8, 12), "frames": 7, "given": 3, "width": 4, "hidden": 5, "latent_dim": 3}


def model_of(name, **config):
    return VideoRNN(**{**SMALL, **CORES[name], **config})


def clips_of(model, count=4, frames=7):
    return torch.rand(count, frames, *model.frame_shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(params=list(CORES))
def core(request):
    return request.param


def log_likelihood(model, means, truth):
    """Of frames, by the means of their pixels."""
    logits = torch.atanh(means) * (2 if model.likelihood == "bernoulli" else 1)
    return pixel_log_likelihood(logits, truth, model.likelihood, model.log_scale)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("own", [(), (2, 3), (4, 5, 6), (6,)])
def test_training_counts_what_predictions_of_the_same_frames_would(own, likelihood):
    """Frame by frame and side by side; the second frame by half, the first two as they are drawn."""
    model = model_of("convlstm", likelihood=likelihood).double().eval()
    clips = clips_of(model, 2).double()
    torch.manual_seed(3)
    found, kl, _, _ = model(clips, own=own)
    torch.manual_seed(3)
    of_first, of_second, expected_kl = begun(model, clips[:, :2])
    expected = of_first + of_second / 2
    for step in range(1, 7):
        # Steps of their own read what the model foretold of the frame before, as predictions go on by themselves.
        begin = step
        while begin in own:
            begin -= 1
        mean = model.predict(clips[:, :begin], step - begin + 1)[:, -1]
        expected = expected + log_likelihood(model, mean, clips[:, step]) * (0.5 if step == 1 else 1)
    torch.testing.assert_close(found, expected / 7, rtol=1e-5, atol=0)
    torch.testing.assert_close(kl, expected_kl / 7)


def begun(model, pairs):
    """log p(x|z) of the first and the second of pairs of frames, and the divergence, (N,) each."""
    mu, logvar = model.beginnings.infer(pairs, pairs.new_zeros(len(pairs), 0))
    z, kl = functional.reparameterize_kl(mu.flatten(0, 1), logvar.flatten(0, 1))
    decoded = model.beginnings(z.view_as(mu), pairs.new_zeros(len(pairs), 0))
    found = (
        pixel_log_likelihood(decoded[:, place], pairs[:, place], model.likelihood, model.log_scale)
        for place in range(2)
    )
    return *found, kl.view(mu.shape[:2]).sum(0)


def test_clips_begin_at_the_places_that_are_told_and_these_count_by_their_mean():
    model = model_of("convlstm", things=2).double()
    clips = clips_of(model, 3).double()
    kls = [begun(model, clips[:, place : place + 2])[2] for place in (1, 4, 5)]
    assert not torch.allclose(kls[0], kls[1])
    _, kl, mu, logvar = model(clips, beginnings=(1, 4, 5))
    torch.testing.assert_close(kl, sum(kls) / 3 / 7)
    # Of three places, two things and three clips.
    assert mu.shape == logvar.shape == (3 * 2 * 3, 3)


def test_steps_side_by_side_are_those_one_after_the_other(core):
    """By a core whose state goes from call to call."""
    model = model_of(core).double()
    frames = clips_of(model, 2).double().transpose(0, 1)
    coarse = torch.randn(7, 2, model.encoder.coarse, 2, 3, dtype=torch.float64)
    inputs = Features(frames, frames, coarse, coarse[:, :, :1].expand(-1, -1, MATCHES, -1, -1))
    classes, noise = torch.zeros(2, 0, dtype=torch.float64), torch.randn(7, 2, 3, dtype=torch.float64)
    whole, parts = Drawn(noise), Drawn(noise)
    state = again = model.core.begin(classes)
    *together, state = model.core(inputs, state, whole, classes)
    found = []
    for step in range(7):
        *maps, again = model.core(inputs.part(step, step + 1), again, parts, classes)
        found.append(maps)
    torch.testing.assert_close([torch.cat(each) for each in zip(*found, strict=True)], together)
    torch.testing.assert_close(again, state)


@pytest.mark.parametrize("num_classes", [None, 3])
@pytest.mark.parametrize("own", [(), (4, 6)])
def test_gradients_reach_every_parameter(core, num_classes, own):
    model = model_of(core, num_classes=num_classes, likelihood="gaussian", latent_dim=8)
    found, kl, mu, logvar = model(clips_of(model, 5), None if num_classes is None else torch.arange(5) % 3, own)
    (kl.mean() - found.mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    # Of each clip one for its thing and, to a latent core, one for each step.
    assert mu.shape == logvar.shape == (5 if core == "convlstm" else 5 * 7, 8)
    assert (kl > 0).all()


@pytest.mark.parametrize("frames", [1, 4, 9])
@pytest.mark.parametrize("given", [1, 2, 5])
def test_predictions_have_the_frames_that_were_asked_for(core, frames, given):
    model = model_of(core)
    found = model.predict(clips_of(model)[:, :given], frames)
    assert found.shape == (4, frames, *model.frame_shape)
    assert found.abs().max() <= 1
    assert not found.requires_grad
    assert model.training


def test_a_latent_core_draws_several_futures_and_a_convlstm_foretells_one(core):
    model = model_of(core)
    given = clips_of(model)[:1, :3].expand(3, -1, -1, -1, -1)
    first, again, other = (model.predict(given, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    same = core == "convlstm"
    assert model.draws_futures != same
    assert torch.allclose(first[0], first[1]) == same
    assert torch.allclose(first, other) == same


def test_the_first_frames_of_a_longer_prediction_are_those_of_a_shorter_one(core):
    model = model_of(core)
    given = clips_of(model)[:1, :3]
    short, long = (model.predict(given, n, generator=torch.Generator().manual_seed(2)) for n in (2, 5))
    torch.testing.assert_close(long[:, :2], short)


def test_a_class_changes_what_is_drawn_of_nothing(core):
    model = model_of(core, num_classes=3)
    z = model.prior(1, generator=torch.Generator().manual_seed(0))
    clips = [model.sample(1, labels=label, z=z) for label in range(3)]
    assert clips[0].shape == (1, 7, *model.frame_shape)
    assert not torch.allclose(clips[0], clips[1])
    with pytest.raises(ValueError, match="3 classes"):
        model(clips_of(model))


def test_clips_of_another_length_are_drawn(core):
    model = model_of(core)
    z = model.prior(2, frames=11)
    whole = model.decode(z, frames=11)
    assert whole.shape == (2, 11, *model.frame_shape)
    assert model.latent_dim == (3 if core == "convlstm" else 3 * 6)
    for frames in (1, 2, 5):
        torch.testing.assert_close(
            model.decode(z[:, : model.prior(1, frames=frames).shape[1]], frames=frames), whole[:, :frames]
        )


def test_the_convlstm_is_its_formula():
    torch.manual_seed(1)
    layer = ConvLSTM(2, 3).double()
    inputs = torch.randn(4, 2, 2, 5, 6, dtype=torch.float64)
    hidden = cell = torch.zeros(2, 3, 5, 6, dtype=torch.float64)
    outputs, (last, memory) = layer(inputs, (hidden, cell))
    for step, x in enumerate(inputs):
        gates = nn.functional.conv2d(x, layer.of_input.weight, layer.of_input.bias, padding=1)
        gates = gates + nn.functional.conv2d(hidden, layer.of_state.weight, padding=1)
        i, f, o, g = gates.chunk(4, 1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        hidden = torch.sigmoid(o) * torch.tanh(cell)
        torch.testing.assert_close(outputs[step], hidden)
    torch.testing.assert_close((last, memory), (hidden, cell))


def test_the_convlstm_of_pytorchs_layers_and_of_watched_ones_is_the_same():
    torch.manual_seed(2)
    layer = ConvLSTM(2, 3)
    state = torch.randn(2, 2, 3, 5, 6).unbind()
    inputs = torch.randn(4, 2, 2, 5, 6)
    plain = restore(copy.deepcopy(layer))
    assert type(plain.of_state) is nn.Conv2d
    watched, seen = copy.deepcopy(layer), []
    watched.of_state.register_forward_hook(lambda *args: seen.append(args))
    found = []
    for each in (layer, plain, watched):
        outputs, (last, memory) = each(inputs, state)
        loss = outputs.sin().sum() + last.sum() + memory.cos().sum()
        found.append((outputs, last, memory, torch.autograd.grad(loss, list(each.parameters()))))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])
    assert len(seen) == 4


def test_pixels_move_as_the_decoder_says():
    """Of a decoder that draws nothing, whose cells all say two rows up and one column to the right."""
    decoder = VideoRNN(frame_shape=(1, 32, 32), width=4, hidden=5).decoder
    assert decoder.reach == 3
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
        # Pixels come from two below and one to the left.
        decoder.whence.bias.view(2, 7)[[0, 1], [3 + 2, 3 - 1]] = 50.0
        frames = torch.rand(1, 2, 1, 32, 32)
        before = Features(frames, *(torch.randn(1, 2, *shape) for shape in ((2, 16, 16), (6, 8, 8), (14, 8, 8))))
        moved = decoder(torch.randn(1, 2, 5, 8, 8), before)
    # What is drawn is nothing, so that the mean is what has moved.
    torch.testing.assert_close(torch.tanh(moved / 2)[..., :-2, 1:], 0.98 * frames[..., 2:, :-1])


@pytest.mark.parametrize("steepness", [1.0, 2.0])
def test_frames_of_more_contrast_are_as_bright(steepness):
    decoded = (3 * torch.randn(2, 5, 3, 8, 12, dtype=torch.float64) - 2).requires_grad_()
    found = contrasted(decoded, steepness)
    before, after = (torch.tanh(each / steepness) for each in (decoded, found))
    torch.testing.assert_close(after.mean((2, 3, 4)), before.mean((2, 3, 4)), atol=2e-3, rtol=0)
    assert (after.std((2, 3, 4)) > before.std((2, 3, 4))).all()
    order = decoded[0, 0].flatten().argsort()
    assert (found[0, 0].flatten()[order].diff() >= 0).all()
    assert torch.allclose(torch.autograd.grad(found.sum(), decoded)[0], torch.full_like(decoded, 1.2))
    for level in (-30.0, 30.0):
        assert contrasted(torch.full((1, 1, 4, 4), level), steepness).isfinite().all()


def test_contrast_is_for_clips_of_nothing_alone(monkeypatch):
    model, calls = model_of("convlstm"), []
    monkeypatch.setattr("aigc_fast.models.video.rnn.contrasted", lambda *args: calls.append(1) or contrasted(*args))
    model.predict(clips_of(model)[:, :3], 2)
    model(clips_of(model), own=(4, 5))
    assert not calls
    model.sample(2)
    # Of the two frames that it begins with together, and of each of the others.
    assert len(calls) == 1 + 5


@pytest.mark.parametrize("side", [32, 64])
def test_matches_find_how_a_picture_moved(side):
    step = side // 32
    picture = torch.nn.functional.interpolate(torch.rand(1, 1, side // 2, side // 2), scale_factor=2)
    found = matches(picture.roll((2 * step, -step), (2, 3)), picture)
    assert found.shape == (1, 14, side // 4, side // 4)
    # What was two steps above and one to the right: of moves from -3 to 3 the second of rows, the fifth of columns.
    rows, columns = found[0, :, 2:-2, 2:-2].chunk(2)
    assert (rows.argmax(0) == 3 - 2).all()
    assert (columns.argmax(0) == 3 + 1).all()
    still = torch.zeros(2, 3, side, side)
    torch.testing.assert_close(matches(still, still).exp(), torch.full((2, 14, side // 4, side // 4), 1 / 7 + 0.01))


@pytest.mark.parametrize("side", [32, 64])
def test_moves_are_summed_up_over_the_cells_that_know_of_one(side):
    step = side // 32
    thing = torch.full((2, 1, side, side), -1.0)
    thing[0, :, 8:20, 12:20] = torch.rand(12, 8, generator=torch.Generator().manual_seed(0))
    found, moves, known = summed_up(matches(thing.roll((2 * step, -step), (2, 3)), thing).unflatten(0, (2, 1)))
    assert (found.shape, moves.shape) == ((2, 1, 14), (2, 1, 2))
    rows, columns = found[0, 0].chunk(2)
    assert (rows.argmax(), columns.argmax()) == (3 - 2, 3 + 1)
    # A cell in the midst of a dark frame knows of none.
    assert min(rows.max(), columns.max()) > 0.5
    assert found[1].abs().max() < 1e-3
    torch.testing.assert_close(moves[:, 0], torch.tensor([[-2.0, 1.0], [0.0, 0.0]]), rtol=0, atol=0.5)
    torch.testing.assert_close(known[:, 0], torch.tensor([[1.0, 1.0], [0.0, 0.0]]), rtol=0, atol=0.02)


def test_a_latent_core_learns_that_a_frame_may_go_on_in_several_ways():
    clips = moving_digits(300, size=16, frames=3)
    torch.manual_seed(0)
    sizes = {"width": 8, "hidden": 16, "latent_dim": 4}
    model = VideoRNN(frame_shape=(1, 16, 16), frames=3, given=1, core="latent", **sizes)
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(100):
        nats, kl, _, _ = model(clips.batch(torch.arange(20 * step, 20 * step + 20) % 300))
        adam.zero_grad()
        (0.1 * kl - nats).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 50)
        adam.step()
    held_out = as_floats(clips.held_out)
    futures = [model.predict(held_out[:, :1], 2, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    usual = held_out.diff(dim=1).abs().mean()
    assert (futures[0] - futures[1]).abs().mean() > 0.1 * usual


def test_latents_of_the_posterior_are_drawn_and_measured_against_the_prior():
    generator = torch.Generator().manual_seed(0)
    mu, logvar, prior_mu, prior_logvar = torch.randn(4, 5, 20000, 3, dtype=torch.float64, generator=generator)
    latents = Inferred(mu, logvar)
    z = torch.cat([latents.take(prior_mu[:2], prior_logvar[:2]), latents.take(prior_mu[2:], prior_logvar[2:])])
    posterior = Normal(mu, (logvar / 2).exp())
    prior = Normal(prior_mu, (prior_logvar / 2).exp())
    expected = kl_divergence(Independent(posterior, 1), Independent(prior, 1))
    torch.testing.assert_close(torch.cat(latents.kl), expected)
    unit = (z - mu) / posterior.scale
    assert unit.mean().abs() < 0.01
    assert (unit.var() - 1).abs() < 0.02
    in_units = latents.in_units_of_prior()
    torch.testing.assert_close(in_units[0].view_as(mu), (mu - prior_mu) / prior.scale)


def test_latents_of_chance_and_of_what_was_seen_are_taken_in_order():
    noise, zeros = torch.randn(5, 2, 3), torch.zeros(2, 2, 3)
    drawn = Drawn(noise)
    drawn.take(zeros[:1], zeros[:1])
    torch.testing.assert_close(drawn.take(zeros + 1, zeros), 1 + noise[1:3])
    assert torch.equal(Expected(noise).take(zeros, zeros), noise[:2])


def test_its_layers_are_the_package_s():
    for core, kinds in (("convlstm", (fast.Conv2d, fast.ConvTranspose2d)), ("learned", (fast.LSTM,))):
        layers = {type(module) for module in model_of(core).modules()}
        assert set(kinds) <= layers
        assert not layers & {nn.Conv2d, nn.ConvTranspose2d, nn.LSTM}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"core": "gru"}, "core='gru': expected one of convlstm, latent"),
        ({"prior": "none"}, "prior='none'"),
        ({"likelihood": "poisson"}, "likelihood='poisson'"),
        ({"given": 7}, "given=7: expected fewer than frames=7"),
        ({"frames": 1}, "frames=1: expected at least 2"),
        ({"frame_shape": (1, 10, 8)}, "multiples of 4"),
        ({"frame_shape": (8, 8)}, "frame_shape=(8, 8): expected (channels, height, width)"),
        ({"hidden": 0}, "hidden=0"),
        ({"things": 0}, "things=0"),
    ],
)
def test_what_cannot_be_built_is_told(config, words):
    with pytest.raises(ValueError) as error:
        VideoRNN(**{**SMALL, **config})
    assert words in str(error.value)


@pytest.mark.parametrize("given", [torch.zeros(2, 3, 1, 8, 8), torch.zeros(3, 1, 8, 12), torch.zeros(2, 0, 1, 8, 12)])
def test_frames_that_do_not_fit_are_told(given):
    with pytest.raises(ValueError, match=r"given: expected \(N, K, 1, 8, 12\)"):
        model_of("convlstm").predict(given, 2)
