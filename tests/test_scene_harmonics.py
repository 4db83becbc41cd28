"""Spherical harmonics against a closed form, orthonormality, and turning the view instead of the body."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from scipy.special import lpmv

from gworld.scene import harmonics as h


def directions(count: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(count, 3))
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def closed_form(degree: int, order: int, d: np.ndarray) -> np.ndarray:
    """Real harmonics from associated Legendre functions (scipy's carry the Condon-Shortley phase)."""
    m = abs(order)
    scale = math.sqrt((2 * degree + 1) / (4 * math.pi) * math.factorial(degree - m) / math.factorial(degree + m))
    legendre = lpmv(m, degree, d[:, 2]) * scale
    azimuth = np.arctan2(d[:, 1], d[:, 0])
    if order == 0:
        return legendre
    return math.sqrt(2) * legendre * (np.cos(m * azimuth) if order > 0 else np.sin(m * azimuth))


def test_basis_is_the_closed_form() -> None:
    d = directions(200)
    basis = h.sh_basis_numpy(d, 3)
    column = 0
    for degree in range(4):
        for order in range(-degree, degree + 1):
            np.testing.assert_allclose(basis[:, column], closed_form(degree, order, d), atol=1e-12)
            column += 1


def test_torch_and_numpy_agree_and_gradients_hold() -> None:
    d = directions(20)
    basis = h.sh_basis(torch.tensor(d), 3)
    np.testing.assert_allclose(basis.numpy(), h.sh_basis_numpy(d, 3), atol=1e-15)
    assert torch.autograd.gradcheck(lambda x: h.sh_basis(x, 3), torch.tensor(d[:3]).requires_grad_())


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_rotating_coefficients_is_rotating_the_view(degree: int) -> None:
    rotation = Rotation.random(random_state=np.random.default_rng(degree)).as_matrix()
    sh = np.random.default_rng(1).normal(size=(7, (degree + 1) ** 2, 3))
    d = directions(30)
    turned = h.rotate_sh_numpy(sh, rotation)
    before = np.einsum("dk,nkc->ndc", h.sh_basis_numpy(d, degree), sh)
    after = np.einsum("dk,nkc->ndc", h.sh_basis_numpy(d @ rotation.T, degree), turned)
    np.testing.assert_allclose(after, before, atol=1e-12)
    np.testing.assert_allclose(h.rotate_sh(torch.tensor(sh), torch.tensor(rotation)).numpy(), turned, atol=1e-12)


def test_rotations_compose_like_a_group() -> None:
    first, second = Rotation.random(2, random_state=np.random.default_rng(3)).as_matrix()
    product = h.sh_rotation(second @ first, 3)
    np.testing.assert_allclose(product, h.sh_rotation(second, 3) @ h.sh_rotation(first, 3), atol=1e-12)
    np.testing.assert_allclose(product @ product.T, np.eye(16), atol=1e-12)
    np.testing.assert_allclose(h.sh_rotation(np.eye(3), 3), np.eye(16), atol=1e-12)


def test_colour_of_a_constant_is_that_colour() -> None:
    rgb = torch.tensor([[0.2, 0.5, 0.9]])
    sh = torch.zeros(1, 16, 3)
    sh[:, 0] = h.sh_from_rgb(rgb)
    torch.testing.assert_close(h.evaluate_sh(sh, torch.tensor([[0.0, 0.6, 0.8]])), rgb)
    torch.testing.assert_close(h.rgb_from_sh(h.sh_from_rgb(rgb)), rgb)
