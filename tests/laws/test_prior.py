"""The prior's samples have the mean and the covariance of the images it was fitted to."""

import pytest
import torch

from rjem_cli.engine.data.images import ImageSet, to_model
from rjem_cli.engine.models.prior import ClassGaussianPrior, fit_prior, load_prior, read_cached_prior
from rjem_cli.engine.noise import PRIOR_STREAM, standard_normal
from rjem_cli.errors import DataError


def images(per_class: int) -> ImageSet:
    """Two classes of 1x3x3 images with correlated pixels, away from the edges of the range."""
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(2, 9, 9, generator=generator) * 4
    draws = torch.randn(2, per_class, 9, generator=generator) @ mixing
    pixels = (128 + draws).clamp(0, 255).round().to(torch.uint8).reshape(-1, 1, 3, 3)
    return ImageSet(pixels, torch.arange(2).repeat_interleave(per_class), ("a", "b"))


def moments(prior: ClassGaussianPrior, label: int, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (D,) and covariance (D, D) of many samples of one class."""
    labels = torch.full((40_000,), label)
    normals = standard_normal(torch.arange(len(labels)), (prior.normals_per_sample,), PRIOR_STREAM)
    samples = prior.sample(labels, normals, temperature).flatten(1).double()
    return samples.mean(dim=0), torch.cov(samples.T)


# the whole covariance: more images than dimensions (Cholesky factor), and fewer
@pytest.mark.parametrize("per_class", [300, 9, 6])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_have_the_fitted_mean_and_covariance(per_class, temperature):
    data = images(per_class)
    prior = fit_prior(data)
    for label in (0, 1):
        members = to_model(data.pixels[data.labels == label]).flatten(1).double()
        mean, covariance = moments(prior, label, temperature)
        expected = temperature**2 * torch.cov(members.T)
        spread = expected.diagonal().max().sqrt()
        assert (mean - members.mean(0)).abs().max() < 0.03 * spread
        assert (covariance - expected).abs().max() < 0.05 * spread**2


@pytest.mark.parametrize("per_class", [300, 6])
@pytest.mark.parametrize("variance", [0.5, 0.9, 1 - 1e-9])
def test_a_factor_has_the_fewest_principal_components_that_keep_the_share_of_the_variance(per_class, variance):
    data = images(per_class)
    members = to_model(data.pixels[data.labels == 0]).flatten(1).double()
    covariance = torch.cov(members.T)
    shares = torch.linalg.eigvalsh(covariance).flip(0).cumsum(0) / covariance.trace()
    factor = fit_prior(data, variance).factors[0].double()
    kept = factor.square().sum() / covariance.trace()
    rank = factor.shape[1]
    assert shares[rank - 1] >= variance - 1e-6 and (rank == 1 or shares[rank - 2] < variance)
    assert kept == pytest.approx(float(shares[rank - 1]), abs=1e-3)  # rounded to half precision
    products = factor.T @ factor
    assert (products - products.diagonal().diag()).abs().max() < 1e-3 * products.max()  # orthogonal


def test_a_temperature_of_zero_gives_the_mean_of_the_class():
    prior = fit_prior(images(50), 0.9)
    x = prior.sample(torch.tensor([1]), torch.ones(1, prior.normals_per_sample), temperature=0.0)
    assert torch.equal(x.flatten(), prior.mean_KD[1])


def test_samples_are_in_the_box_and_do_not_depend_on_their_batch():
    prior = fit_prior(images(50))
    labels = torch.tensor([0, 1, 1, 0, 1])
    normals = 30 * standard_normal(torch.arange(5), (prior.normals_per_sample,), PRIOR_STREAM)
    together = prior.sample(labels, normals)
    assert together.abs().max() <= 1
    for row in range(5):
        torch.testing.assert_close(prior.sample(labels[row : row + 1], normals[row : row + 1])[0], together[row])


@pytest.mark.parametrize("variance", [1.0, 0.9])
def test_a_prior_survives_a_file_and_takes_half_the_space_where_that_loses_nothing(variance):
    prior = fit_prior(images(50), variance)
    tensors = prior.to_tensors()
    copy = ClassGaussianPrior.from_tensors(tensors, prior.image_shape)
    assert all(torch.equal(a, b) for a, b in zip((prior.mean_KD, *prior.factors), (copy.mean_KD, *copy.factors)))
    assert (tensors["prior.factor.0"].dtype == torch.float16) == (variance < 1)
    with pytest.raises(ValueError, match="not of images"):
        ClassGaussianPrior.from_tensors(tensors, (1, 4, 4))


def test_a_prior_is_cached_and_a_damaged_cache_entry_is_fitted_again(own_home):
    data = images(50)
    fitted = load_prior(data, 1.0)
    (entry,) = (own_home / "cache" / "priors").glob("*.safetensors")
    cached = read_cached_prior(entry)
    assert cached is not None and torch.equal(cached.mean_KD, fitted.mean_KD)
    entry.write_bytes(b"damaged")
    assert read_cached_prior(entry) is None
    assert torch.equal(load_prior(data, 1.0).factors[0], fitted.factors[0])
    assert load_prior(data, 0.5).normals_per_sample < fitted.normals_per_sample  # an entry of its own


def test_a_class_of_one_image_is_named():
    data = images(1)
    with pytest.raises(DataError, match="class 'a' has 1 for training"):
        fit_prior(data)


def test_a_cache_that_cannot_be_written_is_not_an_error(own_home):
    data = images(50)
    (own_home / "cache").mkdir(parents=True)
    (own_home / "cache" / "priors").write_text("not a folder")
    assert torch.equal(load_prior(data, 1.0).mean_KD, fit_prior(data).mean_KD)
