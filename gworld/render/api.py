"""The renderer's contract: W worlds x C cameras over one set of Gaussians, the same picture from every backend.

A Gaussian's centre and covariance are moved by its link's pose, projected by the local affine (EWA) approximation
(Zwicker et al. 2001, as in Kerbl et al. 2023), and blended front to back by depth of its centre along the camera's z.
Equal depths blend in index order. Exactly, for every pixel centre p = (column + 0.5, row + 0.5):

    covariance2d = J R covariance3d R^T J^T + DILATION I      (J evaluated with x/z, y/z clamped to 1.3x the half view)
    alpha        = min(MAX_ALPHA, opacity * compensation * exp(-0.5 d^T covariance2d^-1 d)),   d = p - projected centre
    skipped      when alpha < MIN_ALPHA, or the centre's z lies outside (near, far)
    stopped      before the Gaussian that would bring transmittance to MIN_TRANSMITTANCE or below

`compensation` is 1, or sqrt(det covariance2d before dilation / after) when `antialiased`. Colour is SH at the direction
from the camera centre to the Gaussian's centre, *in the link's frame*, plus 0.5, clamped below at 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from gworld.scene.cameras import Cameras
from gworld.scene.gaussians import Gaussians

DILATION = 0.3
MAX_ALPHA = 0.999
MIN_ALPHA = 1.0 / 255.0
MIN_TRANSMITTANCE = 1e-4
CLAMP_FRUSTUM = 1.3

OUTPUTS = ("rgb", "alpha", "depth", "link_id", "flow")
OutputName = Literal["rgb", "alpha", "depth", "link_id", "flow"]
BackendName = Literal["auto", "native-cuda", "gsplat", "native-cpu", "reference"]


@dataclass(frozen=True)
class RenderOptions:
    """How to draw: background colour (0..1), opacity compensation for sub-pixel Gaussians, near and far plane in metres."""

    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    antialiased: bool = False
    near: float = 0.01
    far: float = 1e10


@dataclass(frozen=True)
class RenderOutput:
    """Pictures of W worlds x C cameras; what was not asked for is None.

    rgb [W,C,H,W,3] over the background; alpha [W,C,H,W]; depth [W,C,H,W] metres along z, the blend-weighted mean of the
    Gaussians' depths (0 where alpha is 0); link_id [W,C,H,W] int32, the link of the Gaussian with the largest blend
    weight, the nearer one when equal (-1 where nothing was blended); flow [W,C,H,W,2] pixels, the blend-weighted mean of
    (projected centre now - projected centre in the previous state), 0 where alpha is 0 (a Gaussian not in front of the
    previous camera's near plane counts with zero flow).
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
"""Every backend is one function of this shape, in its own file."""
