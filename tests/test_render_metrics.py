"""Metrics against their formulas, written out here another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve

from gworld.errors import InputError
from gworld.render.metrics import l1, psnr, ssim, ssim_map


def images(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    truth = torch.rand(*shape, 3, generator=rng, dtype=torch.float64)
    return (truth + 0.1 * torch.randn(truth.shape, generator=rng, dtype=torch.float64)).clamp(0, 1), truth


def ssim_by_scipy(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Wang's formula with an 11 x 11 window of sigma 1.5 and zeros outside, one channel at a time."""
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(taps, taps) / taps.sum() ** 2

    def smooth(values: np.ndarray) -> np.ndarray:
        return convolve(values, window, mode="constant")

    channels = []
    for x, y in zip(np.moveaxis(image, -1, 0), np.moveaxis(truth, -1, 0), strict=True):
        mx, my = smooth(x), smooth(y)
        vx, vy, cov = smooth(x * x) - mx**2, smooth(y * y) - my**2, smooth(x * y) - mx * my
        c1, c2 = 0.01**2, 0.03**2
        channels.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return np.stack(channels, axis=-1)


def test_ssim_is_the_formula_of_the_splatting_papers():
    image, truth = images(24, 33)
    expected = ssim_by_scipy(image.numpy(), truth.numpy())
    np.testing.assert_allclose(ssim_map(image, truth).numpy(), expected, atol=1e-9)
    assert float(ssim(image, truth)) == pytest.approx(expected.mean(), abs=1e-9)


def test_ssim_agrees_with_scikit_image_away_from_the_border():
    metrics = pytest.importorskip("skimage.metrics")
    image, truth = images(40, 50)
    expected = metrics.structural_similarity(
        image.numpy(), truth.numpy(), channel_axis=-1, data_range=1.0, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False,
    )  # fmt: skip
    inner = ssim_map(image, truth)[5:-5, 5:-5].mean()
    assert float(inner) == pytest.approx(expected, abs=1e-6)


def test_equal_images():
    image, _ = images(2, 16, 16)
    assert torch.isinf(psnr(image, image)).all() and torch.allclose(ssim(image, image), torch.ones(2).double())
    assert float(l1(image, image).max()) == 0.0


def test_psnr_of_a_known_error():
    truth = torch.zeros(2, 3, 8, 8, 3)
    assert torch.allclose(psnr(truth + 0.1, truth), torch.full((2, 3), 20.0), atol=1e-4)
    assert torch.allclose(l1(truth + 0.1, truth), torch.full((2, 3), 0.1))


def test_masked_pixels_alone_count():
    image, truth = images(2, 16, 20)
    mask = torch.zeros(2, 16, 20, dtype=torch.bool)
    mask[:, 3:9, 4:11] = True
    crop = (slice(None), slice(3, 9), slice(4, 11))
    torch.testing.assert_close(psnr(image, truth, mask), psnr(image[crop], truth[crop]))
    torch.testing.assert_close(l1(image, truth, mask), l1(image[crop], truth[crop]))
    assert math.isnan(float(psnr(image[0], truth[0], torch.zeros(16, 20))))


def test_batches_equal_single_images_and_carry_gradients():
    image, truth = images(2, 3, 14, 15)
    image.requires_grad_()
    values = ssim(image, truth)
    assert values.shape == (2, 3)
    torch.testing.assert_close(values[1, 2], ssim(image[1, 2], truth[1, 2]))
    values.sum().backward()
    assert image.grad.isfinite().all() and float(image.grad.abs().sum()) > 0


def test_shapes_that_differ_are_refused():
    image, truth = images(16, 16)
    with pytest.raises(InputError, match="two equal"):
        psnr(image, truth[1:])
    with pytest.raises(InputError, match="mask has shape"):
        l1(image, truth, torch.ones(3, 3))
