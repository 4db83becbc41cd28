"""Group axioms, oracles and gradients of rotations and rigid transforms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from gworld import geometry as g

SHAPES = st.sampled_from([(), (1,), (5,), (2, 3)])
SCALES = st.sampled_from([1e-12, 1e-7, 1e-3, 1.0, 3.0])
SEEDS = st.integers(0, 2**31)


def twists(shape: tuple[int, ...], scale: float, seed: int) -> torch.Tensor:
    """Random twists whose rotation angle is at most `scale` (kept below pi)."""
    rng = torch.Generator().manual_seed(seed)
    axis = torch.nn.functional.normalize(torch.randn(*shape, 3, dtype=torch.float64, generator=rng), dim=-1)
    angle = torch.rand(*shape, 1, dtype=torch.float64, generator=rng) * min(scale, 3.1)
    return torch.cat([torch.randn(*shape, 3, dtype=torch.float64, generator=rng), axis * angle], dim=-1)


@settings(deadline=None, max_examples=40)
@given(SHAPES, SCALES, SEEDS)
def test_exp_and_log_are_inverse(shape: tuple[int, ...], scale: float, seed: int) -> None:
    twist = twists(shape, scale, seed)
    transform = g.se3_exp(twist)
    assert transform.shape == (*shape, 4, 4)
    torch.testing.assert_close(g.se3_log(transform), twist, atol=1e-9, rtol=1e-9)


@settings(deadline=None, max_examples=40)
@given(SHAPES, SCALES, SEEDS)
def test_group_axioms(shape: tuple[int, ...], scale: float, seed: int) -> None:
    a, b, c = (g.se3_exp(twists(shape, scale, seed + k)) for k in range(3))
    eye = torch.eye(4, dtype=torch.float64).expand(*shape, 4, 4)
    torch.testing.assert_close(a @ g.invert_transform(a), eye, atol=1e-12, rtol=0)
    torch.testing.assert_close((a @ b) @ c, a @ (b @ c), atol=1e-12, rtol=0)
    qa, qb = g.quat_from_matrix(a[..., :3, :3]), g.quat_from_matrix(b[..., :3, :3])
    product = g.matrix_from_quat(g.quat_multiply(qa, qb))
    torch.testing.assert_close(product, a[..., :3, :3] @ b[..., :3, :3], atol=1e-12, rtol=0)
    identity = g.quat_multiply(qa, g.quat_inverse(qa))
    torch.testing.assert_close(identity[..., 0].abs(), torch.ones(shape, dtype=torch.float64), atol=1e-12, rtol=0)


@settings(deadline=None, max_examples=30)
@given(SCALES, SEEDS)
def test_exp_agrees_with_the_matrix_exponential(scale: float, seed: int) -> None:
    twist = twists((), scale, seed)
    algebra = np.zeros((4, 4))
    algebra[:3, :3] = g.skew(twist[3:]).numpy()
    algebra[:3, 3] = twist[:3].numpy()
    np.testing.assert_allclose(g.se3_exp(twist).numpy(), expm(algebra), atol=1e-12)


def test_quaternions_agree_with_scipy_and_are_wxyz() -> None:
    rotation = Rotation.random(50, random_state=np.random.default_rng(0))
    wxyz = torch.tensor(np.roll(rotation.as_quat(), 1, axis=1))
    np.testing.assert_allclose(g.matrix_from_quat(wxyz).numpy(), rotation.as_matrix(), atol=1e-12)
    np.testing.assert_allclose(g.rotvec_from_quat(wxyz).numpy(), rotation.as_rotvec(), atol=1e-9)
    quarter_turn = g.quat_from_rotvec(torch.tensor([0.0, 0.0, math.pi / 2]))
    torch.testing.assert_close(quarter_turn, torch.tensor([math.sqrt(0.5), 0.0, 0.0, math.sqrt(0.5)]))


@pytest.mark.parametrize("scale", [0.0, 1e-7, 1e-3, 1.0, 3.0])
def test_gradients_are_right_near_the_identity_too(scale: float) -> None:
    twist = (twists((4,), 1.0, 7) * scale).requires_grad_()
    assert torch.autograd.gradcheck(g.se3_exp, twist, eps=1e-6, atol=1e-6)
    if scale > 0:
        other = g.se3_exp(twist.detach()).requires_grad_()
        (gradient,) = torch.autograd.grad(g.se3_log(other).sum(), other)
        assert torch.isfinite(gradient).all()


def test_slerp_takes_the_short_way_at_constant_speed() -> None:
    start = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    end = -g.quat_from_rotvec(torch.tensor([0.0, 1.2, 0.0], dtype=torch.float64))  # the same rotation, other sign
    for weight in (0.0, 0.25, 0.5, 1.0):
        turned = g.rotvec_from_quat(g.slerp(start, end, torch.tensor(weight, dtype=torch.float64)))
        torch.testing.assert_close(turned, torch.tensor([0.0, 1.2 * weight, 0.0], dtype=torch.float64))


def test_interpolated_transform_meets_its_ends() -> None:
    a, b = g.se3_exp(twists((3,), 2.0, 1)), g.se3_exp(twists((3,), 2.0, 2))
    torch.testing.assert_close(g.interpolate_transform(a, b, torch.zeros(3, dtype=torch.float64)), a)
    torch.testing.assert_close(g.interpolate_transform(a, b, torch.ones(3, dtype=torch.float64)), b)


@settings(deadline=None, max_examples=20)
@given(SHAPES, SEEDS)
def test_poses_round_trip_and_move_points(shape: tuple[int, ...], seed: int) -> None:
    transform = g.se3_exp(twists(shape, 3.0, seed))
    torch.testing.assert_close(g.transform_from_pose(g.pose_from_transform(transform)), transform, atol=1e-10, rtol=0)
    points = torch.randn(*shape, 6, 3, dtype=torch.float64)
    back = g.transform_points(g.invert_transform(transform), g.transform_points(transform, points))
    torch.testing.assert_close(back, points, atol=1e-10, rtol=0)


def test_zero_quaternion_becomes_the_identity() -> None:
    quats = g.normalize_quat(torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 3.0, 0.0, 4.0]]))
    torch.testing.assert_close(quats, torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.6, 0.0, 0.8]]))
