"""Which Gaussians stand before a camera nearer than anything it can have filmed: haze that fits one view's errors."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gworld.reconstruct.pictures import Album
from gworld.scene.cameras import project_points


def in_the_way(album: Album, means: Float[Tensor, "N 3"], near: float) -> Bool[Tensor, " N"]:
    """Gaussians inside some picture, in front of its camera by less than `near`: that camera does not draw them."""
    blocking = torch.zeros(len(means), dtype=torch.bool, device=means.device)
    for picture in album.levels[0]:
        pixels, depth = project_points(picture.camera, means)
        size = pixels.new_tensor([picture.camera.width, picture.camera.height])
        inside = ((pixels[0] >= 0) & (pixels[0] < size)).all(1)
        blocking |= inside & (depth[0] > 0) & (depth[0] < near)
    return blocking
