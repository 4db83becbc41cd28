"""Rotations and rigid transforms: the one place where roma's `xyzw` becomes gworld's `wxyz`.

Shapes are `[..., 4]` for quaternions (unit, real part first), `[..., 3, 3]` for rotation matrices, `[..., 4, 4]` for
transforms named `a_from_b`, `[..., 7]` for stored poses `x y z qw qx qy qz` and `[..., 6]` for twists (translation part
first, then rotation vector, in metres and radians). Everything is differentiable and works in float32 and float64.
"""

from __future__ import annotations

import math

import roma
import torch
from jaxtyping import Float
from torch import Tensor


def xyzw_from_wxyz(quats_wxyz: Float[Tensor, "*B 4"]) -> Float[Tensor, "*B 4"]:
    """Move the real part of a quaternion from first to last."""
    return torch.roll(quats_wxyz, -1, dims=-1)


def wxyz_from_xyzw(quats_xyzw: Float[Tensor, "*B 4"]) -> Float[Tensor, "*B 4"]:
    """Move the real part of a quaternion from last to first."""
    return torch.roll(quats_xyzw, 1, dims=-1)


def normalize_quat(quats_wxyz: Float[Tensor, "*B 4"]) -> Float[Tensor, "*B 4"]:
    """Scale quaternions to unit length; an all-zero one becomes the identity."""
    norm = quats_wxyz.norm(dim=-1, keepdim=True)
    identity = torch.zeros_like(quats_wxyz)
    identity[..., 0] = 1.0
    tiny = norm < torch.finfo(quats_wxyz.dtype).tiny
    return torch.where(tiny, identity, quats_wxyz / torch.where(tiny, torch.ones_like(norm), norm))


def quat_multiply(left_wxyz: Float[Tensor, "*B 4"], right_wxyz: Float[Tensor, "*#B 4"]) -> Float[Tensor, "*B2 4"]:
    """Hamilton product: the rotation `right` followed by the rotation `left`."""
    left, right = torch.broadcast_tensors(left_wxyz, right_wxyz)
    return wxyz_from_xyzw(roma.quat_product(xyzw_from_wxyz(left), xyzw_from_wxyz(right)))


def quat_inverse(quats_wxyz: Float[Tensor, "*B 4"]) -> Float[Tensor, "*B 4"]:
    """Inverse of unit quaternions."""
    return quats_wxyz * quats_wxyz.new_tensor([1.0, -1.0, -1.0, -1.0])


def matrix_from_quat(quats_wxyz: Float[Tensor, "*B 4"]) -> Float[Tensor, "*B 3 3"]:
    """Rotation matrices of unit quaternions."""
    return roma.unitquat_to_rotmat(xyzw_from_wxyz(quats_wxyz))


def quat_from_matrix(rotation: Float[Tensor, "*B 3 3"]) -> Float[Tensor, "*B 4"]:
    """Unit quaternions, real part >= 0, of rotation matrices."""
    quats = wxyz_from_xyzw(roma.rotmat_to_unitquat(rotation))
    return torch.where(quats[..., :1] < 0, -quats, quats)


def quat_from_rotvec(rotvec: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 4"]:
    """Unit quaternions of rotation vectors (axis times angle, radians)."""
    return wxyz_from_xyzw(roma.rotvec_to_unitquat(rotvec))


def rotvec_from_quat(quats_wxyz: Float[Tensor, "*B 4"]) -> Float[Tensor, "*B 3"]:
    """Shortest rotation vectors (radians) of unit quaternions."""
    return roma.unitquat_to_rotvec(xyzw_from_wxyz(quats_wxyz), shortest_arc=True)


def slerp(
    start_wxyz: Float[Tensor, "*B 4"], end_wxyz: Float[Tensor, "*B 4"], weight: Float[Tensor, "*B"]
) -> Float[Tensor, "*B 4"]:
    """Interpolate rotations along the shortest arc; `weight` 0 gives the start, 1 the end."""
    relative = rotvec_from_quat(quat_multiply(quat_inverse(start_wxyz), end_wxyz))
    return quat_multiply(start_wxyz, quat_from_rotvec(relative * weight[..., None]))


def transform_from(rotation: Float[Tensor, "*B 3 3"], translation: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 4 4"]:
    """Assemble `[..., 4, 4]` rigid transforms from rotation and translation."""
    top = torch.cat([rotation, translation[..., None]], dim=-1)
    bottom = top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*top.shape[:-2], 1, 4)
    return torch.cat([top, bottom], dim=-2)


def invert_transform(a_from_b: Float[Tensor, "*B 4 4"]) -> Float[Tensor, "*B 4 4"]:
    """Inverse of rigid transforms, by transposition of their rotation."""
    rotation = a_from_b[..., :3, :3].transpose(-1, -2)
    return transform_from(rotation, -(rotation @ a_from_b[..., :3, 3:])[..., 0])


def transform_points(a_from_b: Float[Tensor, "*B 4 4"], points: Float[Tensor, "*B N 3"]) -> Float[Tensor, "*B N 3"]:
    """Express points given in frame b in frame a."""
    return points @ a_from_b[..., :3, :3].transpose(-1, -2) + a_from_b[..., None, :3, 3]


def transform_from_pose(pose: Float[Tensor, "*B 7"]) -> Float[Tensor, "*B 4 4"]:
    """`[..., 4, 4]` transforms of stored poses `x y z qw qx qy qz`; the quaternion is normalised."""
    return transform_from(matrix_from_quat(normalize_quat(pose[..., 3:])), pose[..., :3])


def pose_from_transform(a_from_b: Float[Tensor, "*B 4 4"]) -> Float[Tensor, "*B 7"]:
    """Stored poses `x y z qw qx qy qz` of rigid transforms."""
    return torch.cat([a_from_b[..., :3, 3], quat_from_matrix(a_from_b[..., :3, :3])], dim=-1)


def skew(vectors: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3 3"]:
    """Cross-product matrices: `skew(a) @ b == cross(a, b)`."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    rows = [zero, -z, y, z, zero, -x, -y, x, zero]
    return torch.stack(rows, dim=-1).reshape(*vectors.shape[:-1], 3, 3)


def _left_jacobian_terms(angle_sq: Tensor) -> tuple[Tensor, Tensor]:
    """(1 - cos a) / a^2 and (a - sin a) / a^3, by series where the closed form loses digits."""
    small = angle_sq < (1e-3 if angle_sq.dtype == torch.float64 else 1e-1)
    safe = torch.where(small, torch.ones_like(angle_sq), angle_sq)
    angle = safe.sqrt()
    one = (1 - torch.cos(angle)) / safe
    two = (angle - torch.sin(angle)) / (safe * angle)
    s = torch.where(small, angle_sq, torch.zeros_like(angle_sq))
    one_series, two_series = torch.zeros_like(s), torch.zeros_like(s)
    for k in range(5, -1, -1):  # sum over (-s)^k / (2k+2)! and / (2k+3)!
        one_series = 1.0 / math.factorial(2 * k + 2) - s * one_series
        two_series = 1.0 / math.factorial(2 * k + 3) - s * two_series
    return torch.where(small, one_series, one), torch.where(small, two_series, two)


def se3_exp(twist: Float[Tensor, "*B 6"]) -> Float[Tensor, "*B 4 4"]:
    """Exponential map of SE(3): a screw motion `(v, w)` becomes a transform.

    Source: Barfoot, State Estimation for Robotics, 2017, eq. 7.95.
    """
    velocity, rotvec = twist[..., :3], twist[..., 3:]
    one, two = _left_jacobian_terms((rotvec * rotvec).sum(-1))
    cross = torch.linalg.cross(rotvec, velocity)
    translation = velocity + one[..., None] * cross + two[..., None] * torch.linalg.cross(rotvec, cross)
    return transform_from(matrix_from_quat(quat_from_rotvec(rotvec)), translation)


def se3_log(a_from_b: Float[Tensor, "*B 4 4"]) -> Float[Tensor, "*B 6"]:
    """Logarithm of SE(3), the inverse of `se3_exp` for rotation angles below pi."""
    rotvec = rotvec_from_quat(quat_from_matrix(a_from_b[..., :3, :3]))
    one, two = _left_jacobian_terms((rotvec * rotvec).sum(-1))
    hat = skew(rotvec)
    eye = torch.eye(3, dtype=hat.dtype, device=hat.device).expand_as(hat)
    jacobian = eye + one[..., None, None] * hat + two[..., None, None] * (hat @ hat)
    velocity = torch.linalg.solve(jacobian, a_from_b[..., :3, 3:])[..., 0]
    return torch.cat([velocity, rotvec], dim=-1)


def interpolate_transform(
    start: Float[Tensor, "*B 4 4"], end: Float[Tensor, "*B 4 4"], weight: Float[Tensor, "*B"]
) -> Float[Tensor, "*B 4 4"]:
    """Move from `start` to `end`: straight in position, along the shortest arc in rotation."""
    position = torch.lerp(start[..., :3, 3], end[..., :3, 3], weight[..., None])
    rotation = slerp(quat_from_matrix(start[..., :3, :3]), quat_from_matrix(end[..., :3, :3]), weight)
    return transform_from(matrix_from_quat(rotation), position)
