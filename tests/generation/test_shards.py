"""Many items in shards: the same whatever the split, and going on where a run ended."""

from __future__ import annotations

import json
import tarfile

import pytest
import torch

from aigc_fast.errors import UserError
from aigc_fast.generation import draw, read_provenance
from aigc_fast.media import medium_of
from aigc_fast.media.shards import Order, Shards, seeds_of
from aigc_fast.models import CharRNN, CharTokenizer, create


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create("vae", image_shape=(1, 4, 4), hidden=3, latent_dim=2, num_classes=3)


def shards(folder, model, count, **settings):
    return Shards(folder, model, medium_of(model), Order(count, **{"size": 50, **settings}))


def whole(folder, model, count, **settings):
    found = shards(folder, model, count, **settings)
    found.write(found.missing())
    assert found.write_index()
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_are_the_same_whoever_makes_them_and_in_whatever_order(model, tmp_path):
    alone = whole(tmp_path / "alone", model, 170)
    assert sorted(name for name in alone if name.endswith(".tar")) == [f"shard-00000{n}.tar" for n in range(4)]
    first, second = (shards(tmp_path / "shared", model, 170) for _ in range(2))
    second.write([3, 1])
    assert not second.write_index()
    first.write([0, 2])
    assert first.write_index()
    assert {path.name: path.read_bytes() for path in first.folder.iterdir()} == alone
    index = json.loads(alone["index.json"])
    assert [(entry["first"], entry["count"]) for entry in index["shards"]] == [(0, 50), (50, 50), (100, 50), (150, 20)]


def test_what_is_there_stays_and_more_can_be_added(model, tmp_path):
    whole(tmp_path / "more", model, 70)
    done = (tmp_path / "more" / "shard-000000.tar").stat().st_mtime_ns
    assert shards(tmp_path / "more", model, 120).missing() == [1, 2]
    assert whole(tmp_path / "more", model, 120) == whole(tmp_path / "at once", model, 120)
    assert (tmp_path / "more" / "shard-000000.tar").stat().st_mtime_ns == done
    (tmp_path / "more" / "shard-000001.tar").write_bytes(b"cut")
    assert shards(tmp_path / "more", model, 120).missing() == [1]


def test_an_item_is_drawn_again_by_the_seed_that_it_records(model, tmp_path):
    whole(tmp_path, model, 60)
    with tarfile.open(tmp_path / "shard-000001.tar") as archive:
        names = archive.getnames()
        archive.extract("000000055.png", tmp_path, filter="data")
    assert names == [f"{index:09d}.png" for index in range(50, 60)]
    record = read_provenance(tmp_path / "000000055.png")
    assert record.seed == seeds_of(0, range(55, 56))[0]
    assert record.settings["index"] == 55
    assert record.settings["command"].endswith(f"--seed {record.seed} --class 1")
    seeds, labels = seeds_of(0, range(50, 60)), [index % 3 for index in range(50, 60)]
    again = draw(model, 1, seed=record.seed, labels=1)
    torch.testing.assert_close(medium_of(model).draw_each(model, seeds, labels)[5:6], again)


def test_seeds_are_all_different_and_fit_a_generator():
    seeds = [*seeds_of(0, range(5000)), *seeds_of(1, range(5000)), *seeds_of(2**62 + 1, range(2**40, 2**40 + 100))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds_of(5, range(7, 9)) == seeds_of(5, range(9))[7:]


def test_texts_come_in_shards_with_their_records(tmp_path):
    model = CharRNN(tokenizer=CharTokenizer("ab"), hidden=2, embedding=2)
    files = whole(tmp_path, model, 3, drawing={"length": 4})
    with tarfile.open(tmp_path / "shard-000000.tar") as archive:
        assert archive.getnames() == [f"00000000{n}.txt{end}" for n in range(3) for end in ("", ".json")]
    assert files.keys() == {"draw.json", "index.json", "shard-000000.json", "shard-000000.tar"}


def test_another_draw_and_impossible_sizes_are_refused(model, tmp_path):
    whole(tmp_path, model, 5)
    with pytest.raises(UserError, match="holds shards whose seed is 0, not 1"):
        shards(tmp_path, model, 5, seed=1)
    (tmp_path / "draw.json").write_text("[")
    with pytest.raises(UserError, match=r"draw\.json: damaged"):
        shards(tmp_path, model, 5)
    (tmp_path / "draw.json").unlink()
    with pytest.raises(UserError, match="holds shards of unknown origin"):
        shards(tmp_path, model, 5)
    with pytest.raises(UserError, match="shard_size=70: expected a multiple of 50"):
        Order(5, size=70)
    with pytest.raises(UserError, match="count=0"):
        Order(0)
