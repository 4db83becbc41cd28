"""Which Gaussians of a reconstructed scene are a robot's or an object's: those near its model's surface.

The model stands in the scene, in one posture or in several that the footage showed. Its surface is sampled finely; a
Gaussian's signed distance is that to the nearest sample, below zero behind it, so that what was reconstructed inside a
shell counts too.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gworld.agents.kinematics import forward_kinematics
from gworld.agents.skinning import SkinOptions, skin_robot, skin_surfaces
from gworld.agents.surfaces import read_surfaces, transform_surface
from gworld.agents.tree import Skeleton
from gworld.errors import InputError
from gworld.geometry import invert_transform, matrix_from_quat, quat_from_matrix, quat_multiply
from gworld.scene.gaussians import Gaussians, select_gaussians
from gworld.scene.harmonics import rotate_sh
from gworld.scene.world import World

FINE = 0.4
"""Spacing of the surface's samples over the distance that is asked for, at most."""
MOST_SAMPLES = 400_000
DEEP = 0.05
"""Metres below the surface at which a Gaussian is no longer the body's shell (a table inside a hollow model's hull)."""


def links_near_robot(
    world: World,
    skeleton: Skeleton,
    values: Float[Tensor, "K V"],
    world_from_base: Float[Tensor, "4 4"],
    within: float = 0.01,
) -> Int[Tensor, " N"]:
    """The robot's link [N] that each static Gaussian lies within `within` metres of, in any of K postures; -1 for none.

    The nearest link of the first posture that has one counts. Raises `InputError` for a distance that is not above 0.
    """
    surface = skin_robot(skeleton, _skin(within))
    poses = forward_kinematics(skeleton, values.double(), world_from_base.double())
    return _nearest_links(world, surface, poses, within)


def rows_near_mesh(
    world: World, path: str | Path, world_from_object: Float[Tensor, "4 4"], *, scale: float = 1.0, within: float = 0.01
) -> Bool[Tensor, " N"]:
    """The static Gaussians within `within` metres of the surface of a mesh that stands in the world."""
    surfaces = [transform_surface(part, torch.eye(4).numpy(), scale) for part in read_surfaces(path)]
    surface = skin_surfaces(surfaces, f"`{path}`", _skin(within))
    return _nearest_links(world, surface, world_from_object.double()[None, None], within) >= 0


def take_links(world: World, name: str, owner: Int[Tensor, " N"]) -> World:
    """The world with its first N Gaussians given to links of an entity that is bound where the scene shows it.

    `owner` [N] is the number of a link among the entity's own (see `links_near_robot`, asked before it was bound), -1
    for those that stay. They look as before as long as nothing moves. Where a link takes any, the skin of its model
    goes. Raises `InputError` when the entity is unknown or nothing is taken.
    """
    entity = next((entity for entity in world.entities if entity.name == name), None)
    if entity is None:
        raise InputError(f"the world has no `{name}` to take Gaussians; bind it first.")
    if not bool((owner >= 0).any()):
        raise InputError(f"no Gaussian of the scene lies on `{name}` where it stands; check its base and joints.")
    rest, gaussians = world.rest_poses().double(), world.gaussians
    means, quats, sh, links = (
        part.clone() for part in (gaussians.means, gaussians.quats_wxyz, gaussians.sh, gaussians.links)
    )
    skin = torch.zeros(len(gaussians), dtype=torch.bool)
    for number in owner[owner >= 0].unique().tolist():
        rows, link = (owner == number).nonzero()[:, 0], entity.links[number]
        skin |= (gaussians.links == link) & (torch.arange(len(gaussians)) >= len(owner))
        back = invert_transform(rest[link])
        turn = quat_from_matrix(back[:3, :3])
        means[rows] = (means[rows].double() @ back[:3, :3].T + back[:3, 3]).to(means)
        quats[rows] = quat_multiply(turn.expand(len(rows), 4), quats[rows].double()).to(quats)
        sh[rows] = rotate_sh(sh[rows], back[:3, :3]).to(sh)
        links[rows] = link
    taken = replace(gaussians, means=means, quats_wxyz=quats, sh=sh, links=links)
    return replace(world, gaussians=select_gaussians(taken, ~skin))


def _skin(within: float) -> SkinOptions:
    if not 1e-5 < within < 1.0:
        raise InputError(f"a distance of {within} m from the model was asked for; 0.00001 to 1 m can be used.")
    density = max(2_000.0, (FINE * within) ** -2)
    return SkinOptions(per_square_metre=min(density, 250_000.0), inset=0.0)


def _nearest_links(
    world: World, surface: Gaussians, poses: Float[Tensor, "K L 4 4"], within: float
) -> Int[Tensor, " N"]:
    from scipy.spatial import cKDTree

    static = world.gaussians.links == 0
    points = world.gaussians.means[static].double()
    found = torch.full((len(points),), -1, dtype=torch.int64)
    if len(surface) > MOST_SAMPLES:
        surface = select_gaussians(surface, torch.linspace(0, len(surface) - 1, MOST_SAMPLES).long())
    rows, means = surface.links.long(), surface.means.double()
    normals = matrix_from_quat(surface.quats_wxyz.double())[..., 2]
    for pose in poses:
        posed = pose[rows]
        places = (posed[:, :3, :3] @ means[..., None])[..., 0] + posed[:, :3, 3]
        outward = (posed[:, :3, :3] @ normals[..., None])[..., 0]
        distance, index = cKDTree(places.numpy()).query(points.numpy(), distance_upper_bound=max(DEEP, within))
        near = torch.from_numpy(index.clip(max=len(places) - 1))
        signed = ((points - places[near]) * outward[near]).sum(-1)
        reached = torch.from_numpy(distance)
        mine = (reached <= within) | (torch.isfinite(reached) & (signed < 0) & (reached <= DEEP))
        found = torch.where((found < 0) & mine, rows[near], found)
    whole = torch.full((len(static),), -1, dtype=torch.int64)
    whole[static] = found
    return whole
