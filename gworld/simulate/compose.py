"""Worlds put together: bodies taken from other worlds, doubled, removed, moved and rescaled; and what it is kept in."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gworld.errors import InputError, UsageError
from gworld.geometry import pose_from_transform
from gworld.scene.cameras import Cameras
from gworld.scene.gaussians import join_gaussians, select_gaussians
from gworld.scene.links import Link
from gworld.scene.world import Entity, World

MODELS = "agents"


def find_entity(world: World, name: str) -> Entity:
    """The agent or object of that name; raises `InputError` when there is none."""
    for entity in world.entities:
        if entity.name == name and entity.kind != "static":
            return entity
    known = ", ".join(entity.name for entity in world.entities if entity.kind != "static")
    raise InputError(f"the world has no agent or object `{name}`; it has {known or 'none'}.")


def entity_rows(world: World, entity: Entity) -> Bool[Tensor, " N"]:
    """Which Gaussians an entity owns."""
    return torch.isin(world.gaussians.links.long(), torch.tensor(entity.links, dtype=torch.int64))


def take_entity(
    world: World, other: World, name: str, new_name: str = "", shift: Float[Tensor, "4 4"] | None = None
) -> World:
    """The world with an agent or object of another world (or of itself) in it, called `new_name`.

    It stands where it stood there, moved by the rigid motion `shift` (world axes). A robot's model is copied into
    `world.folder`, which must be one that may be written to: see `own_folder`. Raises `InputError` when the name is
    taken or the other world lacks the entity, `UsageError` when a model has no folder to go to.
    """
    entity, called = find_entity(other, name), new_name or name
    taken = {found.name for found in world.entities} | {link.name for link in world.links}
    if called in taken:
        raise InputError(f"the world has a `{called}` already; give what is put in another name.")
    first = len(world.links)
    place = {link: first + index for index, link in enumerate(entity.links)}
    moved = other.rest_poses().double() if shift is None else shift.double() @ other.rest_poses().double()
    poses = pose_from_transform(moved[list(entity.links)]).tolist()
    links = tuple(
        Link(_renamed(other.links[old].name, name, called), tuple(pose), place.get(other.links[old].parent, 0))
        for old, pose in zip(entity.links, poses, strict=True)
    )
    body = select_gaussians(other.gaussians, entity_rows(other, entity))
    body = replace(
        body, links=torch.tensor([place[int(link)] for link in body.links], dtype=world.gaussians.links.dtype)
    )
    source = None if entity.source is None else _take_model(world, other, entity, called)
    added = replace(entity, name=called, links=tuple(place.values()), source=source)
    return replace(
        world,
        gaussians=join_gaussians([part for part in (world.gaussians, body) if len(part)] or [body]),
        links=(*world.links, *links),
        entities=(*world.entities, added),
    )


def remove_entities(world: World, names: Iterable[str]) -> World:
    """The world without some agents and objects, their links and the cameras mounted on them."""
    gone = {link for name in names for link in find_entity(world, name).links}
    kept = [index for index in range(len(world.links)) if index not in gone]
    place = {old: new for new, old in enumerate(kept)}
    links = tuple(replace(world.links[old], parent=_parent(world.links, old, place)) for old in kept)
    dropped = set(names)
    entities = tuple(
        replace(entity, links=tuple(place[link] for link in entity.links))
        for entity in world.entities
        if entity.name not in dropped
    )
    table = torch.tensor([place.get(index, -1) for index in range(len(world.links))], dtype=torch.int64)
    owners = table[world.gaussians.links.long()]
    body = select_gaussians(world.gaussians, owners >= 0)
    body = replace(body, links=owners[owners >= 0].to(world.gaussians.links.dtype))
    if body.soft_links is not None:
        body = replace(body, soft_links=table[body.soft_links.long()].clamp_min(0).to(body.soft_links.dtype))
    return replace(world, gaussians=body, links=links, entities=entities, cameras=_cameras(world.cameras, place))


def move_entity(world: World, name: str, shift: Float[Tensor, "4 4"]) -> World:
    """The world with one body, as it rests, moved rigidly in world axes."""
    own = set(find_entity(world, name).links)
    poses = pose_from_transform(shift.double() @ world.rest_poses().double()).tolist()
    links = tuple(
        replace(link, pose=tuple(poses[index])) if index in own else link for index, link in enumerate(world.links)
    )
    return replace(world, links=links)


def rescale_entity(world: World, name: str, scale: float) -> World:
    """The world with a body grown or shrunk about its first link; what it stands on stays under it.

    Raises `InputError` for an agent with a robot model: its joints would no longer be the model's.
    """
    entity = find_entity(world, name)
    if not 1e-3 <= scale <= 1e3:
        raise UsageError(f"a scale of {scale} was asked for `{name}`; 0.001 to 1000 is possible.")
    if entity.source is not None:
        raise InputError(f"agent `{name}` has a robot model; only bodies without one can be rescaled.")
    rows, before = entity_rows(world, entity), lowest(world, entity)
    old = world.gaussians
    grown = replace(
        old,
        means=torch.where(rows[:, None], old.means * scale, old.means),
        log_scales=torch.where(rows[:, None], old.log_scales + math.log(scale), old.log_scales),
    )
    root = world.rest_poses().double()[entity.links[0], :3, 3]
    links = list(world.links)
    for link in entity.links:
        x, y, z = (root + (torch.tensor(links[link].pose[:3], dtype=torch.float64) - root) * scale).tolist()
        links[link] = replace(links[link], pose=(x, y, z, *links[link].pose[3:]))
    world = replace(world, gaussians=grown, links=tuple(links))
    lift = torch.eye(4, dtype=torch.float64)
    lift[:3, 3] = (before - lowest(world, entity)) * upward(world)
    return move_entity(world, name, lift)


def lowest(world: World, entity: Entity) -> float:
    """How high (m, against gravity) the lowest Gaussian of a body stands; 0 for a body without any."""
    rows = entity_rows(world, entity)
    if not bool(rows.any()):
        return 0.0
    poses = world.rest_poses().double()[world.gaussians.links[rows].long()]
    points = (poses[:, :3, :3] @ world.gaussians.means[rows].double()[..., None])[..., 0] + poses[:, :3, 3]
    return float((points @ upward(world)).min())


def upward(world: World) -> Float[Tensor, " 3"]:
    """The unit vector against gravity; +Z where there is none."""
    gravity = torch.tensor(world.gravity, dtype=torch.float64)
    size = float(gravity.norm())
    return -gravity / size if size > 1e-9 else torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)


def own_folder(world: World, folder: str | Path) -> World:
    """The world with its robots' models copied into `folder`, so that more can be put beside them."""
    target = Path(folder) / MODELS
    if world.folder is not None and (world.folder / MODELS).is_dir():
        shutil.copytree(world.folder / MODELS, target, symlinks=False, dirs_exist_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    return replace(world, folder=Path(folder))


def free_name(world: World, stem: str) -> str:
    """`stem-2`, `stem-3`.. whichever no body and no link has."""
    taken = {entity.name for entity in world.entities} | {link.name for link in world.links}
    number = 2
    while f"{stem}-{number}" in taken:
        number += 1
    return f"{stem}-{number}"


def _renamed(link: str, old: str, new: str) -> str:
    if link == old:
        return new
    return f"{new}/{link.removeprefix(f'{old}/')}"


def _parent(links: tuple[Link, ...], index: int, place: dict[int, int]) -> int:
    """The nearest link above that is kept."""
    parent = links[index].parent
    while parent > 0 and parent not in place:
        parent = links[parent].parent
    return place.get(parent, parent)


def _cameras(cameras: Cameras | None, place: dict[int, int]) -> Cameras | None:
    if cameras is None or not any(cameras.links):
        return cameras
    kept = [index for index, link in enumerate(cameras.links) if link in place]
    if not kept:
        return None
    return replace(
        cameras,
        K=cameras.K[kept],
        world_from_camera=cameras.world_from_camera[kept],
        distortion=None if cameras.distortion is None else cameras.distortion[kept],
        names=tuple(cameras.names[index] for index in kept) if cameras.names else (),
        links=tuple(place[cameras.links[index]] for index in kept),
    )


def _take_model(world: World, other: World, entity: Entity, called: str) -> str:
    """Copy a robot's model into the world's own folder; returns where its file is in there."""
    assert entity.source is not None
    if world.folder is None or other.folder is None:
        raise UsageError(f"agent `{entity.name}` comes with a robot model, which needs a folder to be kept in.")
    home, rest = PurePosixPath(entity.source).parts[0], PurePosixPath(*PurePosixPath(entity.source).parts[1:])
    folder = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in called).lstrip(".") or "agent"
    target = world.folder / MODELS / folder
    if not target.exists():
        shutil.copytree(other.folder / MODELS / home, target, symlinks=False)
    return (PurePosixPath(folder) / rest).as_posix()
