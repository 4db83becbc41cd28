#!/usr/bin/env python3
"""Film the generated tabletop with a hand-held camera: assets/tabletop.mp4, the clip that `make demo` reconstructs.

    .venv/bin/python scripts/demo_clip.py [OUT.mp4]

The table stands in a larger room and all that is static gets a mottled finish, for structure from motion lives on
texture; the camera sways along an arc; the sensor has noise. Nothing of the truth goes into the clip.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from gworld.data.shapes import box, plain
from gworld.data.toys import tabletop_world
from gworld.render.api import RenderOptions
from gworld.render.select import render
from gworld.render.video import write_video
from gworld.scene.cameras import Cameras, intrinsics, look_at
from gworld.scene.gaussians import join_gaussians
from gworld.scene.harmonics import rgb_from_sh, sh_from_rgb
from gworld.scene.world import World

FRAMES, FPS, WIDTH, HEIGHT, SPACING = 96, 24.0, 480, 360, 0.005
NOISE = 0.008
WAVELENGTHS = (0.4, 0.16, 0.07, 0.03)  # metres


def furnished(world: World) -> World:
    """The world with a larger room around it."""
    wall, floor = plain(0.72, 0.70, 0.66), plain(0.55, 0.52, 0.50)
    shell = [box((9.0, 9.0, 0.02), 0.03, floor, (0, 0, -0.035))]
    for x, y, size in ((0, 3.2, (6.4, 0.02, 3.0)), (3.2, 0, (0.02, 6.4, 3.0)), (-3.2, 0, (0.02, 6.4, 3.0))):
        shell.append(box(size, 0.03, wall, (x, y, 1.5)))
    boxes = [((0.5, 0.4, 0.9), plain(0.35, 0.50, 0.45), (-1.6, 1.9, 0.45))]
    boxes += [((0.4, 0.4, 0.5), plain(0.65, 0.40, 0.30), (1.8, 2.2, 0.25))]
    shell += [box(size, 0.012, paint, place) for size, paint, place in boxes]
    return replace(world, gaussians=join_gaussians([world.gaussians, *shell]))


def mottled(world: World, seed: int = 3) -> World:
    """The world with value noise of several wavelengths on everything that is static."""
    random = np.random.default_rng(seed)
    points = world.gaussians.means.numpy().astype(np.float64)
    shade = np.zeros((len(points), 3))
    for wavelength in WAVELENGTHS:
        lattice = random.uniform(-1, 1, (64, 64, 64, 1)) + random.uniform(-0.25, 0.25, (64, 64, 64, 3))
        place = points / wavelength
        low = np.floor(place).astype(int)
        share = place - low
        share = share * share * (3 - 2 * share)
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod(np.where(corner, share, 1 - share), axis=1, keepdims=True)
            x, y, z = ((low + corner) % 64).T
            shade += weight * lattice[x, y, z]
    still = (world.gaussians.links == 0)[:, None].numpy()
    shade = np.where(still, 1 + 0.22 * shade, 1 + 0.05 * shade)
    sh = world.gaussians.sh.clone()
    colours = np.clip(rgb_from_sh(sh[:, 0].numpy()) * shade, 0.01, 0.99)
    sh[:, 0] = torch.as_tensor(sh_from_rgb(colours), dtype=sh.dtype)
    return replace(world, gaussians=replace(world.gaussians, sh=sh))


def hand_held() -> Cameras:
    """Cameras along an arc about the table that rises, sinks and sways as a hand does."""
    share = torch.linspace(0, 1, FRAMES, dtype=torch.float64)
    angle = -2.35 + 1.6 * share
    distance = 1.75 + 0.18 * torch.sin(5.0 * share)
    height = 1.45 + 0.25 * torch.sin(7.3 * share) + 0.01 * torch.sin(61.0 * share)
    eyes = torch.stack([distance * torch.cos(angle), distance * torch.sin(angle) + 0.1, height], -1)
    sway = torch.stack([torch.sin(9.0 * share), torch.cos(11.0 * share), 0.5 * torch.sin(13.0 * share)], -1)
    targets = torch.tensor([0.0, 0.15, 0.84], dtype=torch.float64) + 0.06 * sway
    K = intrinsics(WIDTH, HEIGHT, 0.85).expand(FRAMES, 3, 3).clone()
    return Cameras(K, look_at(eyes, targets).float(), WIDTH, HEIGHT)


def film(world: World, cameras: Cameras) -> Iterator[Tensor]:
    """One noisy frame per camera."""
    noise = torch.Generator().manual_seed(5)
    options = RenderOptions(background=(0.80, 0.84, 0.90), antialiased=True)
    for index in range(len(cameras)):
        output = render(world.gaussians, world.rest_poses(), cameras[index], outputs=("rgb",), options=options)
        assert output.rgb is not None
        picture = output.rgb[0, 0]
        yield (picture + NOISE * torch.randn(picture.shape, generator=noise)).clamp(0, 1)


if __name__ == "__main__":
    out = sys.argv[1] if len(sys.argv) > 1 else "assets/tabletop.mp4"
    world = mottled(furnished(tabletop_world(SPACING)))
    count = write_video(film(world, hand_held()), out, FPS, quality=20, preset="slow")
    print(f"{out}: {count} frames")
