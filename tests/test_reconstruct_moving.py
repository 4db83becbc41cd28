"""A scene with a moving body from its own pictures: what lies below, what moved, and pictures of other instants."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gworld.data.shapes import Paint, box
from gworld.dynamics.shapes import planes_from_gaussians
from gworld.errors import InputError
from gworld.reconstruct.moving import (
    Footage,
    MovingOptions,
    coloured,
    footage_coverage,
    read_footage,
    reconstruct_moving,
)
from gworld.reconstruct.options import FitOptions
from gworld.render.metrics import psnr
from gworld.render.select import render
from gworld.scene.cameras import Cameras, intrinsics, look_at
from gworld.scene.episode import Episode
from gworld.scene.gaussians import Gaussians, join_gaussians, select_gaussians
from gworld.scene.harmonics import rgb_from_sh, sh_from_rgb
from gworld.scene.links import Link
from gworld.scene.world import Entity, World

SIZE = (80, 60)


def checked(color: tuple[float, float, float], cell: float) -> Paint:
    def paint(points: np.ndarray) -> np.ndarray:
        dark = np.floor(points / cell + 0.5).astype(int).sum(axis=1) % 2
        return np.array(color) * (0.55 + 0.45 * dark)[:, None]

    return paint


def table_world() -> World:
    top = box((1.0, 1.0, 0.02), 0.012, checked((0.8, 0.7, 0.5), 0.12), (0, 0, -0.01))
    block = box((0.16, 0.16, 0.08), 0.01, checked((0.2, 0.4, 0.9), 0.08))
    gaussians = join_gaussians([top, replace(block, links=torch.ones_like(block.links))])
    links = (Link("world"), Link("block", (0.0, 0.0, 0.04, 1, 0, 0, 0), 0))
    return World(gaussians, links, (Entity("scene", "static", (0,)), Entity("block", "object", (1,))), metric=True)


def footage_of(world: World, cameras: Cameras, places: torch.Tensor) -> Footage:
    poses = world.rest_poses().expand(len(places), -1, 4, 4).clone()
    poses[:, 1, :2, 3] = places
    pictures, camera, rows = [], [], []
    for pose in poses:
        shown = render(world.gaussians, pose[None], cameras, outputs=("rgb",)).rgb
        assert shown is not None
        pictures.append((shown[0].clamp(0, 1) * 255).round().to(torch.uint8).numpy())
        camera.append(np.arange(len(cameras)))
        rows.append(pose.expand(len(cameras), -1, 4, 4))
    return Footage(np.concatenate(pictures), np.concatenate(camera), torch.cat(rows), cameras)


def eyes() -> Cameras:
    turn = torch.arange(10) * (2 * torch.pi / 10)
    places = torch.stack([1.1 * turn.cos(), 1.1 * turn.sin(), 0.8 + 0.15 * (turn * 2).cos()], dim=1)
    poses = look_at(places, torch.zeros(10, 3))
    return Cameras(intrinsics(*SIZE, 0.9).expand(10, 3, 3), poses, *SIZE)


def test_table_block_and_other_instants_are_learned(tmp_path: Path) -> None:
    world = table_world()
    turn = torch.arange(8) * 0.8
    footage = footage_of(world, eyes(), 0.28 * torch.stack([turn.cos(), turn.sin()], dim=1))
    grey = torch.where(
        world.gaussians.links[:, None, None] > 0, sh_from_rgb(torch.full((1, 1, 3), 0.1)), world.gaussians.sh
    )
    options = MovingOptions(
        FitOptions(steps=200, gaussians=2500, sh_degree=0, hold_out=0, score_every=0), 160, spacing=0.02
    )
    stages: list[str] = []
    bound = replace(world, gaussians=replace(world.gaussians, sh=grey), background=(0.5, 0.5, 0.5))
    made, fit = reconstruct_moving(bound, footage, tmp_path, options, lambda stage, share: stages.append(stage))
    assert set(stages) == {"plates", "static", "together"} and len(fit.gaussians) > 500
    assert made.background == fit.background == (0.0, 0.0, 0.0)  # what it was drawn over while it was fitted
    static = select_gaussians(made.gaussians, made.gaussians.links == 0)
    planes = planes_from_gaussians(static, world.rest_poses()[1:, :3, 3])
    top = [plane for plane in planes.tolist() if plane[2] > 0.999]
    assert len(top) == 1 and abs(top[0][3]) < 0.004
    other = footage_of(world, eyes(), torch.tensor([[0.1, -0.15]]))
    drawn = shown(made.gaussians, other)
    truth = torch.from_numpy(other.pictures).float() / 255
    assert float(psnr(drawn, truth).mean()) > 24
    assert float(psnr(shown(static, other), truth).mean()) < float(psnr(drawn, truth).mean()) - 1
    block = select_gaussians(made.gaussians, made.gaussians.links == 1)
    colours = rgb_from_sh(block.sh[:, 0])
    assert float(colours[:, 2].mean()) > 1.5 * float(colours[:, 0].mean())  # blue, though it was bound dark grey


def test_a_standing_camera_counts_once_for_what_stands_still() -> None:
    world = table_world()
    turn = torch.arange(8) * 0.8
    footage = footage_of(world, eyes(), 0.28 * torch.stack([turn.cos(), turn.sin()], dim=1))
    coverage = footage_coverage(world.gaussians, footage)
    bits = torch.from_numpy(np.unpackbits(coverage.views.numpy(), axis=1)).sum(1)
    still, cameras = world.gaussians.links == 0, len(footage.cameras)
    assert len(coverage.origins) == len(footage) == 8 * cameras
    assert 2 <= int(bits[still].max()) <= cameras < int(bits[~still].max())
    # The block is seen from other sides as it moves, so each instant counts for it.


def test_what_no_picture_shows_is_coloured_like_its_surroundings() -> None:
    world = table_world()
    block = select_gaussians(world.gaussians, world.gaussians.links == 1)
    made = coloured(block, footage_of(world, eyes(), torch.tensor([[0.1, 0.1]])))
    under = block.means[:, 2] < block.means[:, 2].min() + 0.005
    colours = rgb_from_sh(made.sh[:, 0])[under]
    assert int(under.sum()) > 20 and bool(((colours - 0.5).abs().amax(1) > 0.01).all())  # no camera looks from below


def shown(gaussians: Gaussians, footage: Footage) -> torch.Tensor:
    with torch.no_grad():
        pictures = render(gaussians, footage.poses[:1], footage.cameras, outputs=("rgb",)).rgb
    assert pictures is not None
    return pictures[0].clamp(0, 1)


def test_recordings_without_cameras_are_refused() -> None:
    world = table_world()
    with pytest.raises(InputError, match="calibrated videos"):
        read_footage(world, [Episode(torch.arange(3, dtype=torch.float64))], 2)
