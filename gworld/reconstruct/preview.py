"""A picture of where a fit stands: drawn, true and their difference, side by side."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gworld.files import atomic_write
from gworld.reconstruct.pictures import Album
from gworld.reconstruct.step import Setting, draw
from gworld.scene.gaussians import Gaussians

AMPLIFIED = 4.0


def write_preview(
    path: Path, setting: Setting, gaussians: Gaussians, album: Album, background: Tensor | None = None, view: int = 0
) -> None:
    """Write a PNG of one view of `album`: drawn | true | error, four times amplified."""
    picture = album.levels[0][view]
    with torch.no_grad():
        image = draw(setting, gaussians, picture, picture.camera.world_from_camera, background).image.clamp(0, 1)
    truth = picture.truth
    error = ((image - truth).abs() * AMPLIFIED).clamp(0, 1)
    strip = torch.cat([image, truth, error], dim=1)
    pixels = (strip * 255).round().to(torch.uint8).cpu().numpy()
    with atomic_write(path) as stream:
        Image.fromarray(pixels).save(stream, format="PNG")
