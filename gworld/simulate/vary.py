"""A world varied: what a variation allows, drawn from a seed, applied, and told as plain values."""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.dynamics.network import Dynamics
from gworld.errors import UsageError
from gworld.formats.world import load_world
from gworld.geometry import matrix_from_quat, quat_from_rotvec, transform_from
from gworld.scene.world import Entity, World
from gworld.simulate.appearance import colour_matrix, jitter_cameras, recolour_rows, relight, swap_background
from gworld.simulate.compose import (
    entity_rows,
    find_entity,
    free_name,
    move_entity,
    own_folder,
    remove_entities,
    rescale_entity,
    take_entity,
    upward,
)
from gworld.simulate.variation import Backdrop, CameraPlay, Double, Guest, Light, Look, Physics, Range, Variation

Drawn = dict[str, Any]
"""What was drawn, by section of the variation, as plain values; sections without effect are left out."""
APART = 0.01
"""Metres between a body that is put in and those that are there."""
TRIES = 200
KINDS = {"objects": "object", "agents": "agent", "scene": "static"}
SHAPES = ("add", "duplicate", "remove", "background")
"""Sections after which a world is another one to the dynamics; a scale is too."""


def vary(world: World, variation: Variation, seed: int = 0, folder: str | Path | None = None) -> tuple[World, Drawn]:
    """The world as a seed draws it from a variation, and what was drawn; the same seed, the same world.

    `folder` is where models of robots that are put in or doubled are kept; without it those are refused. Each section
    draws by itself, so that one more changes none of the others. Physics are drawn here and applied to the dynamics by
    `vary_dynamics` and `mass_belief`. Raises `InputError` for names that are not there, `UsageError` without a folder.
    """
    drawn: Drawn = {}
    moves = any(find_entity(load_world(guest.world), guest.entity).source for guest in variation.add) or any(
        find_entity(world, double.entity).source for double in variation.duplicate
    )
    if moves and folder is None:
        raise UsageError("robots are put in or doubled; give a folder in which their models are kept.")
    if moves and folder is not None:
        world = own_folder(world, folder)
    world = _remove(world, variation, _rng(seed, "remove"), drawn)
    for index, guest in enumerate(variation.add):
        world = _add(world, guest, _rng(seed, f"add{index}"), drawn)
    for index, double in enumerate(variation.duplicate):
        world = _double(world, double, _rng(seed, f"duplicate{index}"), drawn)
    for index, look in enumerate(variation.looks):
        world = _look(world, look, _rng(seed, f"looks{index}"), drawn)
    world = _background(world, variation.background, _rng(seed, "background"), drawn)
    world = _light(world, variation.light, _rng(seed, "light"), drawn)
    world = _cameras(world, variation.cameras, _rng(seed, "cameras"), drawn)
    return _physics(world, variation.physics, _rng(seed, "physics"), drawn), drawn


def keeps_shapes(drawn: Mapping[str, Any]) -> bool:
    """Whether every body and the scene have the shapes they had: what the dynamics read of the world still holds."""
    scaled = any("scale" in look for look in drawn.get("looks", {}).values())
    swapped = "world" in drawn.get("background", {})
    return not scaled and not swapped and not any(name in drawn for name in SHAPES if name != "background")


def vary_dynamics(model: Dynamics, drawn: Mapping[str, Any]) -> Dynamics:
    """A copy of the dynamics with the drawn friction, restitution, drag and gravity; the same one where none is.

    Friction of bodies on each other is the part that all share times the factor.
    """
    physics = drawn.get("physics", {})
    factors = {name: float(physics.get(name, 1.0)) for name in ("friction", "restitution", "drag", "gravity")}
    if all(factor == 1.0 for factor in factors.values()):
        return model
    varied = copy.deepcopy(model)
    with torch.no_grad():
        varied.materials.grip.mul_(factors["friction"])
        varied.materials.bounce.mul_(factors["restitution"])
        varied.free.drag.mul_(factors["drag"])
        varied.free.fall.mul_(factors["gravity"])
        varied.support.brake.add_(math.log(factors["friction"] * factors["gravity"]))  # it holds the logarithm
    return varied


def mass_belief(world: World, drawn: Mapping[str, Any], width: int) -> Float[Tensor, "L B"]:
    """What a network believes of each link at the start: the logarithm of the drawn factor of its mass."""
    belief = torch.zeros(len(world.links), width)
    for name, factor in drawn.get("physics", {}).get("mass", {}).items():
        for link in find_entity(world, name).links:
            if width:
                belief[link, 0] = math.log(factor)
    return belief


def _remove(world: World, variation: Variation, rng: np.random.Generator, drawn: Drawn) -> World:
    names = [removal.entity for removal in variation.remove if rng.random() < removal.chance]
    if names:
        drawn["remove"] = names
    return remove_entities(world, names) if names else world


def _add(world: World, guest: Guest, rng: np.random.Generator, drawn: Drawn) -> World:
    other = load_world(guest.world)
    stem = guest.name or guest.entity
    for _ in range(int(rng.integers(guest.count[0], guest.count[1] + 1))):
        name = stem if all(entity.name != stem for entity in world.entities) else free_name(world, stem)
        world = take_entity(world, other, guest.entity, name)
        world, place = _settle(world, name, guest.spread, rng, stays=True)
        drawn.setdefault("add", []).append({"name": name, "entity": guest.entity, "moved": place})
    return world


def _double(world: World, double: Double, rng: np.random.Generator, drawn: Drawn) -> World:
    for _ in range(int(rng.integers(double.count[0], double.count[1] + 1))):
        name = free_name(world, double.entity)
        world = take_entity(world, world, double.entity, name)
        world, place = _settle(world, name, double.spread, rng, stays=False)
        drawn.setdefault("duplicate", []).append({"name": name, "entity": double.entity, "moved": place})
    return world


def _look(world: World, look: Look, rng: np.random.Generator, drawn: Drawn) -> World:
    for entity in _chosen(world, look.entity):
        told = {
            "scale": _factor(rng, look.scale),
            "hue": _even(rng, look.hue),
            "saturation": _even(rng, look.saturation),
            "brightness": _factor(rng, look.brightness) if look.brightness[0] > 0 else _even(rng, look.brightness),
        }
        if told["scale"] != 1.0:
            world = rescale_entity(world, entity.name, told["scale"])
        matrix = colour_matrix(told["hue"], told["saturation"], told["brightness"])
        if not torch.equal(matrix, colour_matrix()):
            world = recolour_rows(world, entity_rows(world, entity), matrix)
        told = {name: value for name, value in told.items() if value != (0.0 if name == "hue" else 1.0)}
        if told:
            drawn.setdefault("looks", {}).setdefault(entity.name, {}).update(told)
    return world


def _light(world: World, light: Light, rng: np.random.Generator, drawn: Drawn) -> World:
    exposure, warmth, strength = (_even(rng, part) for part in (light.exposure, light.warmth, light.strength))
    around, height = rng.uniform(0, 2 * math.pi), rng.uniform(0.2, 1.0)
    if exposure == warmth == strength == 0.0:
        return world
    level = math.sqrt(1 - height**2)
    toward = (level * math.cos(around), level * math.sin(around), height)
    drawn["light"] = {"exposure": exposure, "warmth": warmth, "strength": strength, "toward": list(toward)}
    return relight(world, exposure, warmth, strength, toward)


def _background(world: World, backdrop: Backdrop, rng: np.random.Generator, drawn: Drawn) -> World:
    swapped, pick = rng.random() < backdrop.chance, rng.random()
    turn, color = _even(rng, backdrop.turn), [_even(rng, part) for part in backdrop.color or ()]
    told: Drawn = {}
    if swapped and backdrop.worlds:
        place = backdrop.worlds[int(pick * len(backdrop.worlds))]
        told |= {"world": place.name, "turn": turn}
        axis = upward(world).float() * math.radians(turn)
        shift = transform_from(matrix_from_quat(quat_from_rotvec(axis)), torch.zeros(3))
        world = swap_background(world, load_world(place), backdrop.keep, shift if turn else None)
    if swapped and color:
        told["color"] = color
        world = replace(world, background=(color[0], color[1], color[2]))
    if told:
        drawn["background"] = told
    return world


def _cameras(world: World, play: CameraPlay, rng: np.random.Generator, drawn: Drawn) -> World:
    if world.cameras is None or play == CameraPlay():
        return world
    count = len(world.cameras)
    shift = torch.from_numpy(rng.uniform(-1, 1, (count, 3))).float() * play.shift
    turn = torch.from_numpy(rng.uniform(-1, 1, (count, 3))).float() * math.radians(play.turn)
    zoom = 1.0 + torch.from_numpy(rng.uniform(-1, 1, count)).float() * play.zoom
    drawn["cameras"] = {"shift": shift.tolist(), "turn": turn.tolist(), "zoom": zoom.tolist()}
    return replace(world, cameras=jitter_cameras(world.cameras, shift, turn, zoom))


def _physics(world: World, physics: Physics, rng: np.random.Generator, drawn: Drawn) -> World:
    told: Drawn = {}
    for name in ("friction", "restitution", "drag", "gravity"):
        low, high = getattr(physics, name)
        value = _factor(rng, (low, high)) if low > 0 else _even(rng, (low, high))
        if value != 1.0:
            told[name] = value
    masses = {entity.name: _factor(rng, physics.mass) for entity in world.entities if entity.kind == "object"}
    if any(factor != 1.0 for factor in masses.values()):
        told["mass"] = masses
    if told:
        drawn["physics"] = told
    x, y, z = (part * told.get("gravity", 1.0) for part in world.gravity)
    return replace(world, gravity=(x, y, z))


def _settle(world: World, name: str, spread: float, rng: np.random.Generator, stays: bool) -> tuple[World, list[float]]:
    """Put a new body where, on the level, the circle around it meets no other's; where it is, if it may stay there."""
    entity = find_entity(world, name)
    others = [other for other in world.entities if other.kind != "static" and other.name != name]
    center, radius = circle(world, entity)
    circles = [circle(world, other) for other in others]
    up = upward(world)
    first = torch.linalg.cross(up, torch.tensor([1.0, 0, 0] if abs(float(up[0])) < 0.9 else [0, 1.0, 0]).double())
    first = first / first.norm()
    second = torch.linalg.cross(up, first)
    best, most = torch.zeros(3, dtype=torch.float64), -math.inf
    for attempt in range(TRIES):
        a, b = (0.0, 0.0) if attempt == 0 and stays else rng.uniform(-spread, spread, 2)
        shift = a * first + b * second
        gaps = [_level(center + shift - other, up) - radius - size for other, size in circles]
        if min(gaps, default=math.inf) > most:
            best, most = shift, min(gaps, default=math.inf)
        if most > APART:
            break
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, 3] = best
    return move_entity(world, name, pose), [round(part, 6) for part in best.tolist()]


def circle(world: World, entity: Entity) -> tuple[Float[Tensor, " 3"], float]:
    """The middle of a body's Gaussians as it rests, and the radius (m) of the upright cylinder around them."""
    rows = entity_rows(world, entity)
    poses = world.rest_poses().double()
    if not bool(rows.any()):
        return poses[entity.links[0], :3, 3], 0.0
    owner = poses[world.gaussians.links[rows].long()]
    points = (owner[:, :3, :3] @ world.gaussians.means[rows].double()[..., None])[..., 0] + owner[:, :3, 3]
    center, up = (points.amin(0) + points.amax(0)) / 2, upward(world)
    arm = points - center
    return center, float((arm - (arm @ up)[:, None] * up).norm(dim=1).max())


def _level(arm: Tensor, up: Tensor) -> float:
    return float((arm - (arm @ up) * up).norm())


def _chosen(world: World, name: str) -> list[Entity]:
    if name in KINDS:
        return [entity for entity in world.entities if entity.kind == KINDS[name]]
    return [find_entity(world, name)]


def _rng(seed: int, section: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(section.encode())])


def _even(rng: np.random.Generator, ends: Range) -> float:
    return float(rng.uniform(*ends)) if ends[0] < ends[1] else float(ends[0])


def _factor(rng: np.random.Generator, ends: Range) -> float:
    """Drawn so that half and double are equally likely."""
    return math.exp(_even(rng, (math.log(ends[0]), math.log(ends[1])))) if ends[0] < ends[1] else float(ends[0])
