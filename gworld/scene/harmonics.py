"""Real spherical harmonics up to degree 3 in the sign and order convention of 3D Gaussian splatting.

The polynomials are those of the real basis with the Condon-Shortley phase, ordered by degree, then order -l..l
(Sloan, "Efficient Spherical Harmonic Evaluation", JCGT 2013). They are written once, as plain arithmetic, so that numpy
(file tools, no torch needed) and torch (rendering, gradients) share them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

C0 = 0.28209479177387814
C1 = 0.4886025119029199
C2 = (1.0925484305920792, -1.0925484305920792, 0.31539156525252005, -1.0925484305920792, 0.5462742152960396)
C3 = (
    -0.5900435899266435,
    2.890611442640554,
    -0.4570457994644658,
    0.3731763325901154,
    -0.4570457994644658,
    1.445305721320277,
    -0.5900435899266435,
)


def _components(x: Any, y: Any, z: Any, degree: int) -> list[Any]:
    terms = [0.0 * x + C0]
    if degree > 0:
        terms += [-C1 * y, C1 * z, -C1 * x]
    if degree > 1:
        xx, yy, zz = x * x, y * y, z * z
        terms += [C2[0] * x * y, C2[1] * y * z, C2[2] * (2 * zz - xx - yy), C2[3] * x * z, C2[4] * (xx - yy)]
    if degree > 2:
        terms += [
            C3[0] * y * (3 * xx - yy),
            C3[1] * x * y * z,
            C3[2] * y * (4 * zz - xx - yy),
            C3[3] * z * (2 * zz - 3 * xx - 3 * yy),
            C3[4] * x * (4 * zz - xx - yy),
            C3[5] * z * (xx - yy),
            C3[6] * x * (xx - 3 * yy),
        ]
    return terms


def sh_basis(directions: Tensor, degree: int) -> Tensor:
    """Basis values `[..., K]` at unit directions `[..., 3]`, K = (degree + 1)^2."""
    import torch

    x, y, z = directions.unbind(-1)
    return torch.stack(_components(x, y, z, degree), dim=-1)


def sh_basis_numpy(directions: np.ndarray, degree: int) -> np.ndarray:
    """Basis values `[..., K]` at unit directions `[..., 3]`, in numpy."""
    x, y, z = np.moveaxis(directions, -1, 0)
    return np.stack(_components(x, y, z, degree), axis=-1)


def evaluate_sh(sh: Tensor, directions: Tensor) -> Tensor:
    """Colours `[..., 3]` of coefficients `[..., K, 3]` seen along unit directions `[..., 3]`.

    The 0.5 offset of 3D Gaussian splatting is included and negative colours are clamped to zero.
    """
    degree = {1: 0, 4: 1, 9: 2, 16: 3}[sh.shape[-2]]
    basis = sh_basis(directions, degree)
    return ((basis[..., None] * sh).sum(-2) + 0.5).clamp_min(0.0)


def sh_rotation(rotation: np.ndarray, degree: int) -> np.ndarray:
    """Matrix `[K, K]` (float64) that turns coefficients with a body: f'(R d) = f(d).

    `rotation` is `[3, 3]`. Each degree mixes only within itself; its block is solved from samples of the basis, which
    is exact because rotated harmonics of one degree span the same space.
    """
    count = (degree + 1) ** 2
    matrix = np.zeros((count, count))
    directions = _sample_directions()
    before = sh_basis_numpy(directions, degree)
    after = sh_basis_numpy(directions @ np.asarray(rotation, np.float64).T, degree)
    for order in range(degree + 1):
        block = slice(order * order, (order + 1) ** 2)
        matrix[block, block] = np.linalg.lstsq(after[:, block], before[:, block], rcond=None)[0]
    return matrix


def rotate_sh(sh: Tensor, rotation: Tensor) -> Tensor:
    """Coefficients `[..., K, 3]` of a body turned by `rotation [3, 3]`."""
    import torch

    degree = {1: 0, 4: 1, 9: 2, 16: 3}[sh.shape[-2]]
    matrix = sh_rotation(rotation.detach().cpu().double().numpy(), degree)
    return torch.as_tensor(matrix, dtype=sh.dtype, device=sh.device) @ sh


def rotate_sh_numpy(sh: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Coefficients `[..., K, 3]` of a body turned by `rotation [3, 3]`, in numpy."""
    matrix = sh_rotation(rotation, {1: 0, 4: 1, 9: 2, 16: 3}[sh.shape[-2]])
    return np.matmul(matrix.astype(sh.dtype), sh)


def sh_from_rgb(rgb: Any) -> Any:
    """Degree-0 coefficient of a colour in 0..1 (array or tensor)."""
    return (rgb - 0.5) / C0


def rgb_from_sh(dc: Any) -> Any:
    """Colour (not clamped) of a degree-0 coefficient (array or tensor)."""
    return dc * C0 + 0.5


def _sample_directions() -> np.ndarray:
    """64 well-spread unit directions on a Fibonacci spiral."""
    index = np.arange(64) + 0.5
    z = 1 - index / 32
    angle = index * np.pi * (3 - np.sqrt(5))
    radius = np.sqrt(1 - z * z)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=-1)
