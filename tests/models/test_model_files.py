"""Model files: whole or not there, and checked when they are read."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import aigc_fast
from aigc_fast.errors import UserError
from aigc_fast.models import (
    DCGAN,
    MODELS,
    VAE,
    ImageModel,
    LatentModel,
    SoundModel,
    VideoModel,
    VocoderVAE,
    create,
    load,
    save,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def saved(path):
    save(VAE(hidden=4), path)
    return path


def rewrite(path, **changes):
    """Writes the file again with other metadata and a checksum that fits."""
    from aigc_fast.models.storage import read_tensors, write_tensors

    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors, {**metadata, **changes})


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if issubclass(model, LatentModel)])
def test_a_loaded_model_is_the_saved_one(name, path):
    shapes = {
        ImageModel: {"image_shape": (3, 8, 8)},
        SoundModel: {"length": 500},
        VideoModel: {"frame_shape": (3, 8, 8)},
    }
    (shape,) = (shape for kind, shape in shapes.items() if issubclass(MODELS[name], kind))
    model = create(name, num_classes=3, **shape, **({"spectral_norm": True} if "gan" in name else {}))
    save(model, path, {"seed": 11, "training": {"epochs": 2}})
    loaded = load(path)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert loaded.metadata["seed"] == 11
    assert loaded.metadata["training"] == {"epochs": 2}
    assert loaded.metadata["version"] == aigc_fast.__version__
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    z = torch.randn(2, model.latent_dim)
    assert torch.equal(loaded.sample(2, z=z), model.sample(2, z=z))


def test_a_loaded_vocoder_analyses_as_the_saved_one(path):
    model = VocoderVAE(length=500, width=4).eval()
    save(model, path)
    sounds = torch.rand(2, 500) - 0.5
    assert torch.equal(load(path).reconstruct(sounds), model.reconstruct(sounds))


def test_the_checksum_tells_models_apart(tmp_path):
    first, second = VAE(hidden=4), VAE(hidden=4)
    for name, model in (("a", first), ("b", first), ("c", second)):
        save(model, tmp_path / name)
    a, b, c = (load(tmp_path / name).metadata["checksum"] for name in "abc")
    assert a == b != c


def test_a_loaded_model_trains_on(path):
    save(DCGAN(width=4), path)
    model = load(path).train()
    model.discriminator(model.decode(torch.randn(4, 100))).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("size", [0, 3, 8, 100, 5000, -1])
def test_a_truncated_file_is_named(saved, size):
    saved.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(UserError, match=r"model\.safetensors.*damaged"):
        load(saved)


def test_a_flipped_bit_is_noticed(saved):
    content = bytearray(saved.read_bytes())
    content[-100] ^= 4
    saved.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged.*checksum"):
        load(saved)


def test_changed_metadata_is_noticed(saved):
    content = saved.read_bytes()
    changed = content.replace(b"bernoulli", b"bernoullj")
    assert changed != content
    saved.write_bytes(changed)
    with pytest.raises(UserError, match=r"damaged.*checksum"):
        load(saved)


def test_a_header_that_promises_too_much_is_refused(saved):
    content = bytearray(saved.read_bytes())
    content[:8] = (2**62).to_bytes(8, "little")
    saved.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load(saved)


def test_a_pickle_is_refused(path):
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="no safetensors file"):
        load(path)


def test_another_program_s_file_is_refused(path):
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="not written by aigc_fast"):
        load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing.safetensors: no such file"):
        load(tmp_path / "nothing.safetensors")
    with pytest.raises(UserError, match="a folder, not a model file"):
        load(tmp_path)
    with pytest.raises(UserError, match="File name too long"):
        load(tmp_path / ("x" * 5000))


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "no-such"},
        {"model": None},
        {"model": ["vae"]},
        {"config": None},
        {"config": {"hidden": 5}},
        {"config": {"hidden": 2**40}},
        {"config": {"hidden": 10**30}},
        {"config": {"hidden": "4"}},
        {"config": {"image_shape": None}},
        {"config": {"image_shape": [1, "a", 3]}},
        {"config": {"hidden": 4, "colour": 1}},
    ],
)
def test_a_hostile_configuration_is_refused(saved, changes):
    rewrite(saved, **changes)
    with pytest.raises(UserError, match="does not hold a model"):
        load(saved)


@pytest.mark.parametrize("value", ["x", None, [1], {}, 10**30, 1e308, -0.1, float("nan")])
def test_a_hostile_slope_is_refused(path, value):
    save(DCGAN(width=4), path)
    rewrite(path, config={"width": 4, "negative_slope": value})
    with pytest.raises(UserError, match="does not hold a model"):
        load(path)


@pytest.mark.parametrize(
    "changes", [{"num_classes": {}}, {"length": True}, {"sample_rate": float("inf")}, {"sample_rate": 10**400}]
)
def test_a_hostile_number_is_refused(path, changes):
    save(VocoderVAE(length=500, width=4), path)
    rewrite(path, config={"length": 500, "width": 4, **changes})
    with pytest.raises(UserError, match="does not hold a model"):
        load(path)


@pytest.mark.parametrize(
    ("part", "dtype", "expected"),
    [
        ("", torch.complex64, "weights are torch.complex64"),
        ("", torch.float8_e4m3fn, "weights are torch.float8_e4m3fn"),
        ("head.bias", torch.float64, "head.bias is torch.float64"),
        ("running_mean", torch.complex64, "running_mean is torch.complex64"),
        ("num_batches_tracked", torch.float32, "num_batches_tracked is torch.float32"),
    ],
)
def test_weights_of_another_kind_are_refused(path, part, dtype, expected):
    from aigc_fast.models.storage import read_tensors, write_tensors

    save(DCGAN(width=4), path)
    tensors, metadata = read_tensors(path)
    write_tensors(path, {name: value.to(dtype) if part in name else value for name, value in tensors.items()}, metadata)
    with pytest.raises(UserError, match=expected):
        load(path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_of_another_precision_is_loaded(path, dtype):
    save(DCGAN(width=4).to(dtype), path)
    assert load(path).sample(2).dtype == dtype


def test_metadata_nested_without_end_is_refused(saved):
    save_file(load_file(saved), saved, {"aigc_fast": "[" * 100_000 + "]" * 100_000})
    with pytest.raises(UserError, match="lacks its metadata"):
        load(saved)


def test_metadata_that_is_no_object_is_refused(saved):
    save_file(load_file(saved), saved, {"aigc_fast": json.dumps([1, 2])})
    with pytest.raises(UserError, match="lacks its metadata"):
        load(saved)


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("aigc_fast.models.storage.save_file", full)
    with pytest.raises(UserError, match="No space left"):
        save(VAE(hidden=5), saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        save(VAE(hidden=4), tmp_path / "no" / "model.safetensors")


@pytest.mark.parametrize("padding", [0, 1])
def test_mapped_tensors_are_read_again_after_their_memory_was_given_back(tmp_path, padding):
    from aigc_fast.models.storage import MappedFile

    path = tmp_path / "some.safetensors"
    tensors = {
        "long": torch.randn(300, 70),
        "short": torch.randn(5).bfloat16(),
        "whole": torch.arange(7),
        "none": torch.empty(0, 3),
        "number": torch.tensor(2.5, dtype=torch.float64),
    }
    save_file(tensors, path)
    content = path.read_bytes()
    # A header of another length, after which no number begins at a multiple of its size.
    size = int.from_bytes(content[:8], "little") + padding
    content = (
        size.to_bytes(8, "little") + content[8 : size + 8 - padding] + b" " * padding + content[size + 8 - padding :]
    )
    path.write_bytes(content)
    file = MappedFile(path)
    for name, tensor in tensors.items():
        found = file.tensor(name)
        for _ in range(2):
            assert found.dtype == tensor.dtype
            assert torch.equal(found, tensor)
            file.release(found)
        file.release(torch.ones(3))
    changed = file.tensor("long")
    changed[0] = 7
    assert (changed[0] == 7).all()
    del file
    assert torch.equal(changed[1:], tensors["long"][1:])
    assert path.read_bytes() == content
