"""What differs from picture to picture and is no geometry: exposure and white balance, small errors of the pose, and a
bounded distortion where pictures do not agree. All are learned beside the Gaussians and belong to fitted views only.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.geometry import se3_exp
from gworld.reconstruct.options import AppearanceOptions
from gworld.render.native_train import AdamOptions, AdamState, new_adam_state
from gworld.scene.cameras import Cameras

GRID = (8, 12)
MEMORY = AdamOptions(beta1=0.9, beta2=0.99)
"""A view is met once per epoch: its moments must forget sooner than those of Gaussians."""


def new_appearance(count: int, options: AppearanceOptions, device: torch.device) -> dict[str, Tensor]:
    """Neutral corrections for `count` pictures, by name: exposure [V,6], twist [V,6], flow [V,2,8,12]."""
    params = {}
    if options.exposure:
        params["exposure"] = torch.zeros(count, 6, device=device)
    if options.poses:
        params["twist"] = torch.zeros(count, 6, device=device)
    if options.distortion_px > 0:
        params["flow"] = torch.zeros(count, 2, *GRID, device=device)
    return params


def appearance_state(params: dict[str, Tensor]) -> AdamState:
    """The optimiser's state before the first step."""
    return new_adam_state(params)


def exposed(image: Float[Tensor, "H V 3"], exposure: Float[Tensor, " 6"]) -> Float[Tensor, "H V 3"]:
    """The picture through gains exp(e[:3]) and offsets e[3:]."""
    return image * exposure[:3].exp() + exposure[3:]


def neutral(exposures: Float[Tensor, "V 6"]) -> Float[Tensor, "V 6"]:
    """Exposures relative to their mean: brightening all pictures and darkening the scene is no change."""
    return exposures - exposures.mean(0)


def refined(cameras: Cameras, twist: Float[Tensor, " 6"] | None, width: float) -> Tensor:
    """`world_from_camera` moved by a twist in the camera's frame; its translation is in units of `width`."""
    if twist is None:
        return cameras.world_from_camera
    scale = twist.new_tensor([width] * 3 + [1.0] * 3)
    return cameras.world_from_camera @ se3_exp(twist * scale)[None]


def twist_gradient(pose: Float[Tensor, "1 4 4"], gradient: Float[Tensor, "1 4 4"], width: float) -> Float[Tensor, " 6"]:
    """Gradient by a small further twist of a loss whose gradient by the pose's matrix is known."""
    local = pose[0, :3, :3].T @ gradient[0, :3]
    turn = torch.stack([local[2, 1] - local[1, 2], local[0, 2] - local[2, 0], local[1, 0] - local[0, 1]])
    return torch.cat([local[:, 3] * width, turn])


def distorted(image: Float[Tensor, "H V 3"], flow: Float[Tensor, "2 A B"], bound: float) -> Float[Tensor, "H V 3"]:
    """The picture looked up where a smooth field of shifts, at most `bound` pixels long per axis, points to."""
    height, width = image.shape[:2]
    smooth = torch.nn.functional.interpolate(flow[None].tanh() * bound, (height, width), mode="bicubic")[0]
    smooth = smooth.clamp(-bound, bound)
    x = (torch.arange(width, device=image.device) + 0.5 + smooth[0]) * (2 / width) - 1
    y = (torch.arange(height, device=image.device)[:, None] + 0.5 + smooth[1]) * (2 / height) - 1
    grid = torch.stack([x, y], dim=-1)[None]
    sampled = torch.nn.functional.grid_sample(
        image.movedim(-1, 0)[None], grid, padding_mode="border", align_corners=False
    )
    return sampled[0].movedim(0, -1)


def fit_exposure(
    image: Float[Tensor, "H V 3"], truth: Float[Tensor, "H V 3"], mask: Tensor | None = None, strength: float = 1e-3
) -> tuple[Float[Tensor, " 3"], Float[Tensor, " 3"]]:
    """Gain and offset per channel that bring a picture nearest to the truth, drawn to 1 and 0 by `strength`."""
    rows = torch.ones(image.shape[:2], dtype=torch.bool, device=image.device) if mask is None else mask
    x, y = image[rows].double(), truth[rows].double()
    if not len(x):
        return image.new_ones(3), image.new_zeros(3)
    xx, xm, one = (x * x).mean(0) + strength, x.mean(0), 1.0 + strength
    xy, ym = (x * y).mean(0) + strength, y.mean(0)
    determinant = xx * one - xm * xm
    gain = (xy * one - xm * ym) / determinant
    offset = (xx * ym - xm * xy) / determinant
    return gain.to(image), offset.to(image)
