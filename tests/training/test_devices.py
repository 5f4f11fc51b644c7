"""Training and drawing on another device: PyTorch's meta device tells where tensors of two devices meet."""

from __future__ import annotations

import types

import pytest
import torch

from aigc_fast.data import SoundDataset
from aigc_fast.generation import draw, interpolate, latent_manifold
from aigc_fast.models import MODELS, LatentModel, SoundModel
from aigc_fast.models.storage import read_tensors, write_tensors
from aigc_fast.training import default_config, gan, make_trainer, train, vae, video
from aigc_fast.training.checkpoints import forked_generators
from aigc_fast.training.feed import feed_of

LATENT = [name for name, model in MODELS.items() if issubclass(model, LatentModel)]


@pytest.fixture(autouse=True)
def _an_adam_that_takes_meta_tensors(monkeypatch):
    def adam(parameters, rate, betas):
        return torch.optim.Adam(parameters, lr=rate, betas=betas)

    for family in (gan, vae, video):
        monkeypatch.setattr(family, "adam", adam)


@pytest.mark.parametrize("name", LATENT)
@pytest.mark.parametrize("classes", [None, 3])
def test_a_step_of_training_stays_on_the_model_s_device(small, data_of, name, classes):
    model = small(name, num_classes=classes).to("meta")
    dataset = data_of(name)
    feed = feed_of(model, dataset, default_config(model))
    if isinstance(dataset, SoundDataset):
        inputs = torch.zeros(4, model.length, device="meta")
    else:
        inputs = feed.batch(torch.arange(4))
        assert inputs.device.type == "meta"
    labels = None if classes is None else torch.arange(4) % 3
    stepped = make_trainer(model.train(), default_config(model))
    if hasattr(model, "discriminator") and labels is not None:
        labels = labels.to("meta")
    values = stepped._step(inputs, labels)
    assert {value.device.type for value in values.values() if isinstance(value, torch.Tensor)} == {"meta"}


@pytest.mark.parametrize("name", LATENT)
@pytest.mark.parametrize("classes", [None, 3])
def test_what_is_drawn_stays_on_the_model_s_device(small, name, classes):
    model = small(name, num_classes=classes).to("meta")
    ends = {} if classes is None else {"labels": [0, 1], "to_labels": 2}
    assert draw(model, 5, seed=0).device.type == "meta"
    assert interpolate(model, 3, rows=2, **ends).device.type == "meta"
    if model.latent_dim == 2 and not isinstance(model, SoundModel):
        assert latent_manifold(model, 3, labels=classes and 0).device.type == "meta"


def test_a_checkpoint_of_another_device_is_gone_on_from(run, tmp_path):
    whole = run(tmp_path, steps=12)
    path = tmp_path / "checkpoints" / "step-00000005.safetensors"
    tensors, record = read_tensors(path)
    record.pop("checksum")
    write_tensors(path, {**tensors, "random.cuda": torch.zeros(16, dtype=torch.uint8)}, record)
    again = run(tmp_path, steps=12, resume=path)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key])


@pytest.mark.parametrize(("kind", "index"), [("cuda", (torch.device("cuda:1"),)), ("mps", ())])
def test_the_device_s_generator_is_kept_and_set(monkeypatch, kind, index):
    calls = []
    generators = types.SimpleNamespace(
        get_rng_state=lambda *device: calls.append(("get", device)) or torch.ones(4, dtype=torch.uint8),
        set_rng_state=lambda state, *device: calls.append(("set", device, state.tolist())),
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: generators)
    before = torch.get_rng_state()
    with forked_generators(torch.device("cuda:1" if kind == "cuda" else "mps")):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert calls == [("get", index), ("set", index, [1] * 4)]


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(MODELS))
def test_a_run_on_a_card_resumes_there_and_on_the_cpu(small, data_of, tmp_path, monkeypatch, name):
    monkeypatch.undo()
    config = default_config(small(name), steps=6, batch_size=8, checkpoint_interval=3, sample_interval=3)
    data, half = data_of(name), tmp_path / "a" / "checkpoints" / "step-00000003.safetensors"
    whole = train(small(name).cuda(), data, config, tmp_path / "a")
    again = train(small(name).cuda(), data, config, tmp_path / "b", resume=half)
    for key, value in whole.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[key], value, rtol=1e-3, atol=1e-4)
    assert train(small(name), data, config, tmp_path / "c", resume=half).steps == 6
