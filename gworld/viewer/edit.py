"""Edits of whole worlds: cut by a box, drop floaters, set scale and up, give Gaussians to a link. Pure functions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float

from gworld.errors import InputError
from gworld.formats.axes import rotate_table
from gworld.formats.convert import gaussians_from_table, table_from_gaussians
from gworld.formats.edit import drop_floaters
from gworld.geometry import invert_transform, matrix_from_quat, normalize_quat, quat_from_matrix, quat_multiply
from gworld.scene.cameras import Cameras
from gworld.scene.gaussians import Gaussians, select_gaussians
from gworld.scene.harmonics import rotate_sh
from gworld.scene.links import Link
from gworld.scene.world import Entity, World

FAINTEST = 0.02
"""Opacity along a ray below which a Gaussian is not hit."""
SOLID = 0.5
"""Opacity from which on a ray has met a surface."""


def places_of(world: World) -> Float[np.ndarray, "N 3"]:
    """Where every Gaussian is with the links at rest, in world axes."""
    poses = world.rest_poses()[world.gaussians.links.long().cpu()]
    means = world.gaussians.means.detach().float().cpu()
    return ((poses[:, :3, :3] @ means[:, :, None])[..., 0] + poses[:, :3, 3]).numpy()


def in_box(world: World, low: tuple[float, ...], high: tuple[float, ...]) -> Bool[np.ndarray, " N"]:
    """Which Gaussians have their centre in a box (metres, world axes); raises `InputError` for an empty one."""
    if not (np.asarray(low) < np.asarray(high)).all():
        raise InputError("the box is empty: each number of its low corner must be below that of its high corner.")
    places = places_of(world)
    return np.all((places >= np.asarray(low)) & (places <= np.asarray(high)), axis=1)


def keep_rows(world: World, rows: Bool[np.ndarray, " N"]) -> World:
    """The world with these Gaussians only; raises `InputError` where none would be left."""
    if not rows.any():
        raise InputError("no Gaussian would be left; move the box.")
    return replace(world, gaussians=select_gaussians(world.gaussians, torch.from_numpy(rows)))


def without_floaters(world: World) -> World:
    """The world without Gaussians that nothing else is near (see `formats.edit.drop_floaters`)."""
    if world.gaussians.soft_links is not None:
        raise InputError("a world with soft bodies cannot be cleaned here. Select what hangs in the air by the box.")
    return replace(world, gaussians=gaussians_from_table(drop_floaters(table_from_gaussians(world.gaussians))))


def scaled(world: World, factor: float) -> World:
    """The world `factor` times as large, now in metres.

    Raises `InputError` for factors out of 1e-6 to 1e6 and for worlds with robots, whose models have a size of their
    own.
    """
    if not 1e-6 <= factor <= 1e6:
        raise InputError(f"the world would become {factor:g} times as large; 1e-6 to 1e6 times is possible.")
    _refuse_robots(world, "rescaled")
    return replace(_moved(world, np.eye(3), factor), metric=True)


def turned_up(world: World, up: Float[np.ndarray, " 3"]) -> World:
    """The world turned about its origin, on the shortest way, so that `up` becomes +Z."""
    length = float(np.linalg.norm(up))
    if not (math.isfinite(length) and length > 1e-9):
        raise InputError("these points lie on a line, so they tell no direction; pick three that span the floor.")
    _refuse_robots(world, "turned")
    x, y, z = np.asarray(up, np.float64) / length
    if z < -1 + 1e-9:
        return _moved(world, np.diag([1.0, -1.0, -1.0]), 1.0)
    cross = np.array([[0, 0, -x], [0, 0, -y], [x, y, 0]])  # of up x (+Z)
    turn = np.eye(3) + cross + cross @ cross / (1 + z)
    return _moved(world, turn, 1.0)


def normal_of(points: Float[np.ndarray, "P 3"], eye: Float[np.ndarray, " 3"]) -> Float[np.ndarray, " 3"]:
    """The normal of the plane through points, on the side of `eye`; zero for points on a line."""
    middle = points.mean(axis=0)
    _, sizes, axes = np.linalg.svd(points - middle)
    if len(points) < 3 or sizes[1] < 1e-6 * max(sizes[0], 1e-12):
        return np.zeros(3)
    normal = axes[2]
    return normal if normal @ (eye - middle) >= 0 else -normal


def assigned(world: World, rows: Bool[np.ndarray, " N"], link: str) -> World:
    """The world with some Gaussians given to a link, where they stay in place; an unknown name makes a new object.

    The new link's frame stands at the middle of what it is given, along the world's axes. Raises `InputError` without
    any Gaussian, and for soft bodies.
    """
    gaussians = world.gaussians
    if not rows.any() or gaussians.soft_links is not None or not link.strip():
        raise InputError("nothing can be given to a link: name it, and put the box around rigid Gaussians first.")
    names = [one.name for one in world.links]
    links, entities = world.links, world.entities
    if link not in names:
        middle = places_of(world)[rows].mean(axis=0)
        links = (*links, Link(link, (*middle.tolist(), 1.0, 0.0, 0.0, 0.0), 0))
        entities = (*entities, Entity(link, "object", (len(links) - 1,)))
        names.append(link)
    number, chosen = names.index(link), torch.from_numpy(rows)
    wider = replace(world, links=links, entities=entities)
    poses = wider.rest_poses()
    moved = _carried(gaussians, chosen, invert_transform(poses[number]) @ poses[gaussians.links.long()], number)
    return replace(wider, gaussians=moved)


def pick(
    world: World, origin: Float[np.ndarray, " 3"], direction: Float[np.ndarray, " 3"]
) -> Float[np.ndarray, " 3"] | None:
    """Where a ray meets the world at rest: at the depth from which on half of the light is blocked; None if nowhere."""
    gaussians = world.gaussians
    pose = world.rest_poses()[gaussians.links.long().cpu()]
    scales = gaussians.log_scales.detach().float().cpu().exp()
    places = torch.from_numpy(places_of(world))
    start = torch.from_numpy(np.asarray(origin)).float()
    along = torch.nn.functional.normalize(torch.from_numpy(np.asarray(direction)).float(), dim=0)
    offset = places - start
    depth = offset @ along
    near = (depth > 0) & ((offset - depth[:, None] * along).norm(dim=1) < 3 * scales.amax(1))
    if not bool(near.any()):
        return None
    turn = pose[near, :3, :3] @ matrix_from_quat(normalize_quat(gaussians.quats_wxyz.detach().float().cpu()[near]))
    ray = (turn.transpose(1, 2) @ along) / scales[near]  # in units of standard deviations
    gap = (turn.transpose(1, 2) @ offset[near][:, :, None])[..., 0] / scales[near]
    t = (gap * ray).sum(1) / ray.square().sum(1).clamp_min(1e-20)
    far = (gap - t[:, None] * ray).square().sum(1)
    alpha = torch.sigmoid(gaussians.opacity_logits.detach().float().cpu()[near]) * torch.exp(-0.5 * far)
    hit = (alpha > FAINTEST) & (t > 0)
    order = t[hit].argsort()
    blocked = 1 - torch.cumprod(1 - alpha[hit][order].clamp(max=0.999), 0)
    met = torch.nonzero(blocked >= SOLID)
    if not len(met):
        return None
    return (start + t[hit][order][int(met[0])] * along).numpy()


def _moved(world: World, turn: np.ndarray, factor: float) -> World:
    table = replace(table_from_gaussians(world.gaussians), link_table=world.links)
    table = rotate_table(table, turn, scale=factor)
    cameras = None if world.cameras is None else _moved_cameras(world.cameras, turn, factor)
    return replace(world, gaussians=gaussians_from_table(table), links=table.link_table, cameras=cameras)


def _moved_cameras(cameras: Cameras, turn: np.ndarray, factor: float) -> Cameras:
    poses = cameras.world_from_camera.clone()
    poses[:, :3, 3] *= factor
    fixed = torch.tensor([not link for link in cameras.links] or [True] * len(cameras))
    whole = torch.eye(4, dtype=poses.dtype)
    whole[:3, :3] = torch.from_numpy(turn).to(poses)
    poses[fixed] = whole @ poses[fixed]  # those on links are carried by them
    return replace(cameras, world_from_camera=poses)


def _carried(gaussians: Gaussians, chosen: torch.Tensor, to_link: torch.Tensor, link: int) -> Gaussians:
    """Some Gaussians in the frame of another link, by `to_link [N,4,4]` from the frame of their own."""
    columns = {name: getattr(gaussians, name).clone() for name in ("means", "quats_wxyz", "sh", "links")}
    means, quats = columns["means"], columns["quats_wxyz"]
    for old in torch.unique(gaussians.links[chosen]).tolist():
        rows = chosen & (gaussians.links == old)
        pose = to_link[rows][0]
        means[rows] = (means[rows].float() @ pose[:3, :3].T + pose[:3, 3]).to(means)
        turn = quat_from_matrix(pose[:3, :3]).expand(int(rows.sum()), 4)
        quats[rows] = quat_multiply(turn, quats[rows].float()).to(quats)
        columns["sh"][rows] = rotate_sh(columns["sh"][rows], pose[:3, :3])
    columns["links"][chosen] = link
    return replace(gaussians, **columns)


def _refuse_robots(world: World, what: str) -> None:
    robots = [agent.name for agent in world.agents if agent.source is not None]
    if robots:
        raise InputError(
            f"a world with robots ({', '.join(robots[:4])}) cannot be {what}: their models stay as they are."
        )
