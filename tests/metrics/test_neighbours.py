import pytest
import torch

from aigc_fast.metrics import density_coverage, nearest_neighbours, neighbours, pairing_grid, precision_recall


def distance(a, b):
    return (a.double() - b.double()).square().sum().sqrt().item()


def radius(points, i, k):
    return sorted(distance(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]


def inside(point, centres, radii):
    return sum(distance(point, centre) <= r for centre, r in zip(centres, radii, strict=True))


@pytest.fixture(params=[(12, 9, 2, 3), (25, 31, 5, 1), (17, 40, 1, 4)], ids=str)
def sets(request):
    n, m, d, k = request.param
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, d, generator=generator), 0.8 * torch.randn(m, d, generator=generator) + 0.3, k


@pytest.fixture(params=[1024, 7], ids=lambda chunk: f"chunk{chunk}")
def chunk(request, monkeypatch):
    monkeypatch.setattr(neighbours, "CHUNK", request.param)


def test_precision_and_recall_by_their_definition(sets, chunk):
    real, fake, k = sets
    real_radii = [radius(real, i, k) for i in range(len(real))]
    fake_radii = [radius(fake, i, k) for i in range(len(fake))]
    precision = sum(inside(f, real, real_radii) > 0 for f in fake) / len(fake)
    recall = sum(inside(r, fake, fake_radii) > 0 for r in real) / len(real)
    found = precision_recall(real, fake, k)
    assert (found.precision, found.recall) == pytest.approx((precision, recall))


def test_density_and_coverage_by_their_definition(sets, chunk):
    real, fake, k = sets
    radii = [radius(real, i, k) for i in range(len(real))]
    density = sum(inside(f, real, radii) for f in fake) / (k * len(fake))
    coverage = sum(any(distance(r, f) <= rad for f in fake) for r, rad in zip(real, radii, strict=True)) / len(real)
    found = density_coverage(real, fake, k)
    assert (found.density, found.coverage) == pytest.approx((density, coverage))


def test_equal_and_disjoint_sets():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    same, apart = precision_recall(x, x), precision_recall(x, x + 100)
    assert (same.precision, same.recall) == (1.0, 1.0)
    assert (apart.precision, apart.recall) == (0.0, 0.0)
    assert density_coverage(x, x).coverage == 1.0
    assert density_coverage(x, x + 100) == neighbours.DensityCoverage(0.0, 0.0)


def test_a_collapsed_generator_keeps_precision_and_loses_recall_and_coverage():
    real = torch.randn(200, 3, generator=torch.Generator().manual_seed(4))
    fake = real[:1] + 1e-3 * torch.randn(200, 3, generator=torch.Generator().manual_seed(5))
    found = precision_recall(real, fake)
    assert found.precision > 0.95
    assert found.recall < 0.05
    assert density_coverage(real, fake).coverage < 0.1


def test_density_may_exceed_one_and_repeated_points_do_not_break_it():
    real = torch.cat([torch.zeros(6, 2), torch.ones(6, 2)])
    fake = torch.zeros(10, 2)
    found = density_coverage(real, fake, k=3)
    assert found.density == pytest.approx(6 / 3)
    assert found.coverage == pytest.approx(0.5)


@pytest.mark.parametrize("measure", [precision_recall, density_coverage])
def test_too_few_samples_wrong_widths_and_bad_k(measure):
    with pytest.raises(ValueError, match=r"^generated: .*N > k = 3"):
        measure(torch.zeros(9, 2), torch.zeros(3, 2), k=3)
    with pytest.raises(ValueError, match=r"^real: "):
        measure(torch.zeros(9), torch.zeros(9, 2), k=3)
    with pytest.raises(ValueError, match="expected 2 features"):
        measure(torch.zeros(9, 2), torch.zeros(9, 3), k=3)
    with pytest.raises(ValueError, match="k=0"):
        measure(torch.zeros(9, 2), torch.zeros(9, 2), k=0)


def test_nearest_training_image_against_a_search_by_hand(chunk):
    generator = torch.Generator().manual_seed(6)
    images, training = torch.rand(11, 3, 4, 5, generator=generator), torch.rand(13, 3, 4, 5, generator=generator)
    found = nearest_neighbours(images, training)
    for i, image in enumerate(images):
        all_distances = [(image.double() - other.double()).square().mean().sqrt().item() for other in training]
        assert found.index[i] == min(range(13), key=all_distances.__getitem__)
        assert found.distance[i].item() == pytest.approx(min(all_distances), rel=1e-9)


def test_copies_are_at_distance_zero_and_can_leave_themselves_out(chunk):
    training = torch.rand(20, 1, 6, 6, generator=torch.Generator().manual_seed(7))
    copied = nearest_neighbours(training[[3, 17]], training)
    assert copied.index.tolist() == [3, 17]
    assert copied.distance.tolist() == [0.0, 0.0]
    alone = nearest_neighbours(training, training, skip_self=True)
    assert (alone.index != torch.arange(20)).all()
    assert (alone.distance > 0).all()


def test_images_of_another_shape():
    with pytest.raises(ValueError, match="training: expected images of shape"):
        nearest_neighbours(torch.zeros(2, 1, 4, 4), torch.zeros(5, 1, 4, 5))


def test_pairing_grid_puts_the_neighbour_below():
    training = torch.stack([torch.full((1, 3, 3), value) for value in (0.0, 0.5, 1.0)])
    images = training[[2, 0]] - 0.1
    grid = pairing_grid(images, training, nearest_neighbours(images, training), columns=2)
    assert grid.shape == (1, 2 + 6 + 2, 2 + 3 + 2 + 3 + 2)
    assert grid[0, 2:8, 2].tolist() == pytest.approx([0.9] * 3 + [1.0] * 3)
    assert grid[0, 2:8, 7].tolist() == pytest.approx([-0.1] * 3 + [0.0] * 3)
