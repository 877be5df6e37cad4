"""Axes that are gathered file by file are those of all files at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_latent_statistics import clips, pixels_of  # noqa: F401
from tiny_autoencoders import make_autoencoder

from diffusers_vidvae.autoencoders.latent_statistics import latent_statistics
from diffusers_vidvae.autoencoders.latents_basis import LatentsBasisEstimator, measure_latents_basis


@pytest.fixture(scope="module")
def kl_3d():
    return make_autoencoder("kl_3d")


@torch.no_grad()
def test_axes_are_uncorrelated_over_all_files(clips, kl_3d):  # noqa: F811
    basis = measure_latents_basis(kl_3d, clips)
    latents = [kl_3d.encode(pixels_of(n, seed=seed)).latent_dist.mode() for seed, n in enumerate((9, 5, 13))]
    values = torch.cat([z.transpose(0, 1).flatten(1) for z in latents], dim=1).double().numpy()
    np.testing.assert_allclose(basis.mean, values.mean(axis=1), rtol=1e-4, atol=1e-6)
    covariance = basis.forward @ np.cov(values) @ basis.forward.T
    np.testing.assert_allclose(covariance, np.diag(basis.deviations**2), rtol=1e-3, atol=1e-4 * covariance.max())


def test_one_pass_finds_axes_and_statistics(clips, kl_3d):  # noqa: F811
    estimator = LatentsBasisEstimator(kl_3d, max_clips=2)
    found = latent_statistics(kl_3d, clips, basis=estimator)
    assert found == latent_statistics(kl_3d, clips)
    assert estimator.num_clips == 2
    assert estimator.basis().name == measure_latents_basis(kl_3d, clips[:2]).name


def test_all_axes_show_all(clips, kl_3d):  # noqa: F811
    basis = measure_latents_basis(kl_3d, clips)
    counts = [basis.axes_that_show(share) for share in (0.0, 0.5, 0.9, 1 - 1e-9)]
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] <= len(basis.mean)


def test_no_files_have_no_axes(kl_3d):
    with pytest.raises(ValueError, match="There are no files to measure a basis of"):
        LatentsBasisEstimator(kl_3d).basis()
