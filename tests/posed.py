"""Views of every camera model, with pictures on disk where asked for."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from PIL import Image

from gworld.geometry import transform_from_pose
from gworld.scene.views import View, Views

DISTORTION = {
    "pinhole": (),
    "opencv": (-0.05, 0.02, 0.003, -0.002, 0.004, 0.0, 0.0, 0.0),
    "fisheye": (-0.03, 0.01, 0.002, -0.001),
    "equirectangular": (),
}


def make_views(folder: Path, model: str = "opencv", count: int = 4, pictures: bool = True) -> Views:
    generator = torch.Generator().manual_seed(1)
    poses = transform_from_pose(torch.randn(count, 7, generator=generator, dtype=torch.float64))
    K = torch.tensor([[300.0, 0, 161.5], [0, 305, 118.25], [0, 0, 1]], dtype=torch.float64)
    if model == "equirectangular":
        K = torch.tensor([[320 / (2 * math.pi), 0, 160], [0, 240 / math.pi, 120], [0, 0, 1]], dtype=torch.float64)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    views = []
    for index in range(count):
        image = folder / "images" / f"{index:03}.png"
        if pictures:
            Image.new("RGB", (320, 240)).save(image)
        views.append(
            View(
                f"{index:03}.png", 320, 240, K, poses[index], model, DISTORTION[model], image if pictures else None,
                camera_id=1,
            )
        )  # fmt: skip
    points = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    return Views(tuple(views), points, torch.randint(0, 256, (9, 3), generator=generator, dtype=torch.uint8))
