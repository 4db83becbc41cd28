"""True pixels, refined: what the refiner changes is laid onto the full picture, and what cannot be refined says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gworld.errors import InputError
from gworld.render.api import RenderOptions
from gworld.render.select import render
from gworld.scene.cameras import Cameras, intrinsics, look_at
from gworld.viewer.app import Subject, Viewer, ViewOptions
from tests.acting import acting_world


def test_what_stands_still_is_refined_where_the_world_is_unsure(tmp_path: Path) -> None:
    """The change found on few pixels is laid onto the full picture; edited worlds and missing refiners say so."""
    world, asked = acting_world(tmp_path), list[int]()

    def refine(poses: torch.Tensor, camera: Cameras, drawing: RenderOptions) -> tuple[torch.Tensor, torch.Tensor]:
        rgb = render(world.gaussians, poses, camera, outputs=("rgb",), options=drawing).rgb
        assert rgb is not None
        asked.append(camera.width)
        change = torch.zeros(camera.height, camera.width, 1)
        change[: camera.height // 2] = 0.25
        return rgb[0, 0] + change, rgb[0, 0]

    viewer = Viewer(Subject(world, refine=lambda: refine), ViewOptions(port=0))
    try:
        pixels, poses = viewer.pixels, world.rest_poses()
        eye, target = torch.tensor([[1.0, -1.0, 0.8], [0.0, 0.0, 0.1]])
        camera = Cameras(intrinsics(700, 400, 0.8)[None], look_at(eye, target)[None], 700, 400)
        plain = torch.from_numpy(pixels.draw(poses, camera)).float() / 255
        refined, said = pixels._refined(poses, camera)
        assert refined.shape == (400, 700, 3) and asked[0] < 700 and said.startswith("50.")
        change = refined - plain
        assert torch.allclose(change[:190], (plain[:190] + 0.25).clamp(max=1) - plain[:190], atol=0.005)
        assert change[210:].abs().max() < 0.005
        pixels.update()
        same, said = pixels._refined(poses, camera)
        assert torch.allclose(same, plain, atol=0.005) and "edited world" in said
        pixels._open_refine = lambda: missing()
        assert "no refiner here" in pixels._refined(poses, camera)[1]
    finally:
        viewer.close()


def missing() -> Any:
    raise InputError("no refiner here")
