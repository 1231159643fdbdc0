"""The prior's samples have the mean and the covariance of the images it was fitted to."""

import pytest
import torch

from rjem_cli.engine.data.images import ImageSet, to_model
from rjem_cli.engine.models.prior import JITTER, fit_prior, load_prior, read_cached_prior
from rjem_cli.engine.noise import PRIOR_STREAM, standard_normal
from rjem_cli.errors import DataError


def images(per_class: int) -> ImageSet:
    """Two classes of 1x3x3 images with correlated pixels, away from the edges of the range."""
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(2, 9, 9, generator=generator) * 4
    draws = torch.randn(2, per_class, 9, generator=generator) @ mixing
    pixels = (128 + draws).clamp(0, 255).round().to(torch.uint8).reshape(-1, 1, 3, 3)
    return ImageSet(pixels, torch.arange(2).repeat_interleave(per_class), ("a", "b"))


# more images than dimensions (Cholesky factor), and fewer (data as factor)
@pytest.mark.parametrize("per_class", [300, 9, 6])
def test_samples_have_the_fitted_mean_and_covariance(per_class):
    data = images(per_class)
    prior = fit_prior(data)
    count = 40_000
    labels = torch.arange(2).repeat_interleave(count)
    normals = standard_normal(torch.arange(2 * count), (prior.normals_per_sample,), PRIOR_STREAM)
    samples = prior.sample(labels, normals).flatten(1).double()
    for label in (0, 1):
        members = to_model(data.pixels[data.labels == label]).flatten(1).double()
        sample = samples[labels == label]
        expected = torch.cov(members.T) + JITTER * torch.eye(9)
        spread = expected.diagonal().max().sqrt()
        assert (sample.mean(0) - members.mean(0)).abs().max() < 0.03 * spread
        assert (torch.cov(sample.T) - expected).abs().max() < 0.05 * spread**2


def test_samples_are_in_the_box_and_do_not_depend_on_their_batch():
    prior = fit_prior(images(50))
    labels = torch.tensor([0, 1, 1, 0, 1])
    normals = 30 * standard_normal(torch.arange(5), (prior.normals_per_sample,), PRIOR_STREAM)
    together = prior.sample(labels, normals)
    assert together.abs().max() <= 1
    for row in range(5):
        torch.testing.assert_close(prior.sample(labels[row : row + 1], normals[row : row + 1])[0], together[row])


def test_a_prior_is_cached_and_a_damaged_cache_entry_is_fitted_again(own_home):
    data = images(50)
    digest = data.digest()
    assert read_cached_prior(digest) is None
    fitted = load_prior(data, digest)
    cached = read_cached_prior(digest)
    assert cached is not None and torch.equal(cached.mean_KD, fitted.mean_KD)
    (own_home / "cache" / "priors" / f"{digest}.safetensors").write_bytes(b"damaged")
    assert read_cached_prior(digest) is None
    assert torch.equal(load_prior(data, digest).factors[0], fitted.factors[0])


def test_a_class_of_one_image_is_named():
    data = images(1)
    with pytest.raises(DataError, match="class 'a' has 1 for training"):
        fit_prior(data)


def test_a_cache_that_cannot_be_written_is_not_an_error(own_home):
    data = images(50)
    (own_home / "cache").mkdir(parents=True)
    (own_home / "cache" / "priors").write_text("not a folder")
    assert torch.equal(load_prior(data, data.digest()).mean_KD, fit_prior(data).mean_KD)
