"""The renderer's contract: W worlds x C cameras over one set of Gaussians, the same picture from every backend.

A Gaussian's centre and covariance are moved by its link's pose, projected by the local affine (EWA) approximation
(Zwicker et al. 2001, as in Kerbl et al. 2023), and blended front to back by depth of its centre along the camera's z.
Equal depths blend in index order. Exactly, for every pixel centre p = (column + 0.5, row + 0.5):

    camera_from_link = [A | b] = (rigid inverse of world_from_camera, by transposition) @ world_from_link
    centre       = A mean + b = (x, y, z);   projected centre = (fx x/z + cx, fy y/z + cy)
    covariance2d = J A covariance3d A^T J^T + DILATION I
    J            evaluated with |x/z| <= CLAMP_FRUSTUM * width / (2 fx), |y/z| <= CLAMP_FRUSTUM * height / (2 fy)
    alpha        = min(MAX_ALPHA, opacity * compensation * exp(-0.5 d^T covariance2d^-1 d)),   d = p - projected centre
    skipped      when alpha < MIN_ALPHA, or the centre's z lies outside (near, far)
    stopped      before the Gaussian that would bring transmittance to MIN_TRANSMITTANCE or below
    colour       = max(0, 0.5 + SH at the direction A^T centre), the view direction in the link's frame

`compensation` is 1, or sqrt(det covariance2d before dilation / after) when `antialiased`. Opacity is the sigmoid of its
logit, scales are exp(log_scales), quaternions are normalised. K has no skew. Gradients are those of these formulas with
every decision (cull, skip, stop, order) held fixed, and zero through MAX_ALPHA and the frustum clamp where these act.
Pose gradients are defined along rigid motions (off them, backends may differ).

Bad values never spread. A Gaussian is culled, with zero gradient, when one of its attributes or scales is not finite
or larger than LARGEST in magnitude, its quaternion's norm is below 1 / LARGEST or above LARGEST, a diagonal entry of
its covariance2d exceeds MAX_COVARIANCE, or opacity * compensation < MIN_ALPHA. To agree in float32 on long thin
Gaussians, take det before dilation as the sum of the squared 2x2 minors of J A R S (no cancellation), det after as
det before + DILATION * (trace before) + DILATION^2, and the quadratic form as a sum of two squares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from gworld.render.names import BackendName as BackendName
from gworld.scene.cameras import Cameras
from gworld.scene.gaussians import Gaussians

DILATION = 0.3
MAX_ALPHA = 0.999
MIN_ALPHA = 1.0 / 255.0
MIN_TRANSMITTANCE = 1e-4
CLAMP_FRUSTUM = 1.3
LARGEST = 1e10
MAX_COVARIANCE = 1e16
"""Pixels squared: beyond a standard deviation of 1e8 pixels float32 can no longer hold the determinant."""

OUTPUTS = ("rgb", "alpha", "depth", "link_id", "flow")
OutputName = Literal["rgb", "alpha", "depth", "link_id", "flow"]


@dataclass(frozen=True)
class RenderOptions:
    """How to draw: background colour (0..1), compensation of sub-pixel Gaussians, near and far plane in metres."""

    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    antialiased: bool = False
    near: float = 0.01
    far: float = 1e10


@dataclass(frozen=True)
class RenderOutput:
    """Pictures of W worlds x C cameras; what was not asked for is None.

    rgb [W,C,H,W,3] over the background; alpha [W,C,H,W]; depth [W,C,H,W] metres along z, the blend-weighted mean of the
    Gaussians' depths (0 where alpha is 0); link_id [W,C,H,W] int32, the link of the Gaussian with the largest blend
    weight, the nearer one when equal (-1 where nothing was blended); flow [W,C,H,W,2] pixels, the blend-weighted mean
    of (projected centre now - projected centre in the previous state), 0 where alpha is 0 (a Gaussian not in front of
    the previous camera's near plane counts with zero flow). All but link_id carry gradients.
    """

    rgb: Float[Tensor, "W C H V 3"] | None = None
    alpha: Float[Tensor, "W C H V"] | None = None
    depth: Float[Tensor, "W C H V"] | None = None
    link_id: Int[Tensor, "W C H V"] | None = None
    flow: Float[Tensor, "W C H V 2"] | None = None


Previous = tuple[Float[Tensor, "W L 4 4"], Cameras]
Backend = Callable[
    [Gaussians, Float[Tensor, "W L 4 4"], Cameras, Sequence[OutputName], "Previous | None", RenderOptions], RenderOutput
]
"""Every backend is one function of this shape, in its own file: `(gaussians, world_from_link, cameras, outputs,
previous, options)`. `select.render` has checked the arguments: pinhole cameras fixed in the world, rigid finite poses,
links below L, one floating type and device."""
