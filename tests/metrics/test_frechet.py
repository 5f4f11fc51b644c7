import numpy as np
import pytest
import scipy.linalg
import torch

from aigc_fast.metrics import frechet_distance
from aigc_fast.metrics.frechet import frechet_between


def by_scipy(a, b):
    a, b = a.double().numpy(), b.double().numpy()
    cov_a, cov_b = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * np.real(root))


@pytest.mark.parametrize(("n", "m", "d"), [(50, 70, 1), (200, 150, 3), (300, 300, 17), (500, 113, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_scipys_matrix_root(n, m, d, dtype):
    generator = torch.Generator().manual_seed(n + d)
    mix = torch.randn(d, d, generator=generator)
    a = (torch.randn(n, d, generator=generator) @ mix + 0.3).to(dtype)
    b = (torch.randn(m, d, generator=generator) * 1.7).to(dtype)
    assert frechet_distance(a, b) == pytest.approx(by_scipy(a, b), rel=1e-8)


def test_gaussians_with_diagonal_covariances_have_a_closed_form():
    mean_a, mean_b = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.0, 1.0, 0.5]).double()
    sigma_a, sigma_b = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([2.0, 0.5, 3.0]).double()
    expected = (mean_a - mean_b).square().sum() + (sigma_a - sigma_b).square().sum()
    found = frechet_between(mean_a, sigma_a.square().diag(), mean_b, sigma_b.square().diag())
    assert found == pytest.approx(expected.item(), rel=1e-12)


def test_commuting_covariances_that_are_not_diagonal():
    q, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    a, b = torch.arange(1.0, 6).double(), torch.tensor([0.0, 0.0, 4.0, 9.0, 1.0]).double()
    zero = torch.zeros(5).double()
    found = frechet_between(zero, (q * a) @ q.T, zero, (q * b) @ q.T)
    assert found == pytest.approx((a.sqrt() - b.sqrt()).square().sum().item(), rel=1e-7)


def test_a_set_against_itself_moved_and_scaled():
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(2))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(x, x + 2) == pytest.approx(6 * 4, rel=1e-6)
    assert frechet_distance(x, x + 2) == pytest.approx(frechet_distance(x + 2, x), rel=1e-9)


def test_fewer_samples_than_features_and_constant_features():
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(4, 30, generator=generator), torch.zeros(5, 30)
    a64 = a.double()
    expected = a64.mean(0).square().sum() + torch.cov(a64.T).trace()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize(
    ("real", "generated", "name"),
    [
        (torch.zeros(1, 3), torch.zeros(4, 3), "real"),
        (torch.zeros(4, 3), torch.zeros(4), "generated"),
        (torch.zeros(4, 3), torch.zeros(4, 2), "generated"),
    ],
)
def test_bad_shapes_name_the_argument(real, generated, name):
    with pytest.raises(ValueError, match=f"^{name}:"):
        frechet_distance(real, generated)
