"""The true world of a simulated scene: Gaussians sampled on its geoms, in its own colours and light."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gworld.data.shapes import Paint, box, cylinder, plain, sphere
from gworld.data.simulators import Simulation
from gworld.data.simulators_mjcf import AMBIENT, OVERHEAD
from gworld.errors import InputError
from gworld.files import atomic_write
from gworld.geometry import matrix_from_quat, quat_multiply
from gworld.scene.gaussians import Gaussians, join_gaussians, select_gaussians
from gworld.scene.harmonics import sh_from_rgb
from gworld.scene.world import World

MOST = 60_000
"""Gaussians on one geom at most; larger ones are covered more coarsely."""
SKYBOX = 2
"""MuJoCo's type of a texture that is painted where nothing is."""
INSET, OPACITY = 0.35, 0.995
"""How far discs lie below the surface, over their spacing, to make up for their blur; nothing shows through them."""
FACES = (  # of a cube texture: the axis, its sign, then which coordinates (with sign) run along columns and rows
    (0, 1, (2, -1), (1, -1)), (0, -1, (2, 1), (1, -1)), (1, 1, (0, 1), (2, 1)),
    (1, -1, (0, 1), (2, -1)), (2, 1, (0, 1), (1, -1)), (2, -1, (0, -1), (1, -1)),
)  # fmt: skip


def scene_world(simulation: Simulation, spacing: float | None = None, folder: str | Path | None = None) -> World:
    """A scene as a world, its links and cameras as they are now: what a perfect reconstruction would give.

    Flat Gaussians cover boxes, cylinders and spheres, `spacing` metres apart (5 mm, or 1/600 of a larger scene). Light
    is baked in as it falls now; in our scenes it comes from all around and from above, so turning about the vertical
    changes nothing. With `folder`, the agents' models (MJCF) are written below it, and `World.folder` names it. Raises
    `InputError` for geoms of other kinds: bind such robots from their files.
    """
    model = simulation.model
    spacing = spacing or max(0.005, 0.002 * float(model.stat.extent) if model.stat.extent > 10 else 0.005)
    parts = []
    for geom in range(model.ngeom):
        if model.geom_group[geom] < 3 and model.geom_rgba[geom, 3] > 0:
            parts.append(_skin(simulation, geom, spacing))
    entities = simulation.entities
    if folder is not None:
        sources = write_models(simulation, Path(folder) / "agents")
        entities = tuple(replace(entity, source=sources.get(entity.name)) for entity in entities)
    return World(
        join_gaussians(parts),
        simulation.links,
        entities,
        simulation.cameras,
        gravity=tuple(map(float, model.opt.gravity)),  # type: ignore[arg-type]  # three numbers
        metric=True,
        folder=None if folder is None else Path(folder),
        background=sky_color(model),
    )


def sky_color(model: Any) -> tuple[float, float, float]:
    """What a picture shows where nothing is: the mean of the sky's texels, 0..1; black where no sky is painted."""
    skies = [row for row in range(model.ntex) if int(model.tex_type[row]) == SKYBOX]
    if not skies:
        return (0.0, 0.0, 0.0)
    channels, start = int(model.tex_nchannel[skies[0]]), int(model.tex_adr[skies[0]])
    count = int(model.tex_width[skies[0]]) * int(model.tex_height[skies[0]])
    texels = model.tex_data[start : start + count * channels].reshape(count, channels)
    red, green, blue = (texels[:, :3].mean(0) / 255).tolist()
    return red, green, blue


def write_models(simulation: Simulation, folder: Path) -> dict[str, str]:
    """Write each agent's own MJCF, with the pictures it names, to `folder/NAME/NAME.xml`; returns these paths."""
    sources = {}
    for name, actor in simulation.agents.items():
        if not actor.model:
            continue
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        for file, data in {f"{name}.xml": actor.model.encode(), **actor.pictures}.items():
            with atomic_write(place / file) as stream:
                stream.write(data)
        sources[name] = f"{name}/{name}.xml"
    return sources


def _skin(simulation: Simulation, geom: int, spacing: float) -> Gaussians:
    """One geom's Gaussians in the frame of its link."""
    model, data = simulation.model, simulation.data
    kind, size = int(model.geom_type[geom]), np.asarray(model.geom_size[geom], float)
    half, area = _extent(simulation, geom)
    spacing = max(spacing, float(np.sqrt(area / MOST)))
    paint = _paint(model, geom, half)
    grey = plain(0.5, 0.5, 0.5)  # painted below, in the scene's own light
    if kind == 6:
        part = box((2 * size).tolist(), spacing, grey)
    elif kind == 5:
        part = cylinder(size[0], 2 * size[1], spacing, grey)
    else:
        part = sphere(size[0], spacing, grey)
    turned = matrix_from_quat(part.quats_wxyz.double())
    link = int(model.geom_bodyid[geom])
    world_from_geom = torch.tensor(data.geom_xmat[geom].reshape(3, 3))
    normals = (turned[..., 2] @ world_from_geom.T).numpy()
    light = AMBIENT + OVERHEAD * np.clip(normals[:, 2], 0.0, 1.0)
    color = np.clip(paint(part.means.double().numpy()) * light[:, None], 0.0, 1.0)
    quat = torch.tensor(model.geom_quat[geom])
    link_from_geom = matrix_from_quat(quat)
    inside = INSET * spacing if link else 0.0
    means = (part.means.double() - inside * turned[..., 2]) @ link_from_geom.T + torch.tensor(model.geom_pos[geom])
    whole = replace(
        part,
        means=means.float(),
        quats_wxyz=quat_multiply(quat.expand(len(part), 4), part.quats_wxyz.double()).float(),
        sh=torch.tensor(sh_from_rgb(color), dtype=torch.float32)[:, None],
        opacity_logits=torch.full_like(part.opacity_logits, float(np.log(OPACITY / (1 - OPACITY)))),
        links=torch.full_like(part.links, link),
    )
    return select_gaussians(whole, torch.tensor(normals[:, 2] > -0.9)) if link == 0 else whole


def _extent(simulation: Simulation, geom: int) -> tuple[np.ndarray, float]:
    """Half extents [3] along the geom's axes and the area of its surface."""
    model = simulation.model
    kind, (a, b, c) = int(model.geom_type[geom]), map(float, model.geom_size[geom])
    if kind == 6:
        return np.array([a, b, c]), 8 * (a * b + b * c + c * a)
    if kind == 5:
        return np.array([a, a, b]), 2 * np.pi * a * (a + 2 * b)
    if kind == 2:
        return np.array([a, a, a]), 4 * np.pi * a * a
    link = simulation.link_names[int(model.geom_bodyid[geom])]
    raise InputError(f"link `{link}` of `{simulation.name}` has a geom that is no box, cylinder or sphere; bind it.")


def _paint(model: Any, geom: int, half: np.ndarray) -> Paint:
    """A geom's colours at points in its own frame, from its material's cube texture as OpenGL lays it."""
    material = int(model.geom_matid[geom])
    rgba = np.asarray(model.geom_rgba[geom] if material < 0 else model.mat_rgba[material], float)[:3]
    textures = [] if material < 0 else [int(t) for t in np.atleast_1d(model.mat_texid[material]) if t >= 0]
    if not textures or int(model.tex_type[textures[0]]) != 1:
        return plain(*rgba)
    number = textures[0]
    size, channels = int(model.tex_width[number]), int(model.tex_nchannel[number])
    sides = int(model.tex_height[number]) // size  # six, or one that is on all of them
    start = int(model.tex_adr[number])
    texels = model.tex_data[start : start + sides * size * size * channels].reshape(sides, size, size, channels)
    picture = np.broadcast_to(texels[..., :3] / 255.0, (6, size, size, 3))

    def paint(points: np.ndarray) -> np.ndarray:
        toward = points / half
        steep = np.abs(toward).argmax(axis=1)
        color = np.zeros((len(points), 3))
        for face, (axis, sign, (u, u_sign), (v, v_sign)) in enumerate(FACES):
            rows = (steep == axis) & (np.sign(toward[:, axis]) == sign)
            scale = np.abs(toward[rows, axis])
            column, row = (
                np.clip(((s * toward[rows, k] / scale + 1) / 2 * size).astype(int), 0, size - 1)
                for k, s in ((u, u_sign), (v, v_sign))
            )
            color[rows] = picture[face, row, column]
        return color * rgba

    return paint
