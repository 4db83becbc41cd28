"""Generated scenes with exact truth, made from nothing: for the demo, the tests and the benchmarks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.data.shapes import Paint, box, checker, cylinder, grain, plain, sphere
from gworld.errors import InputError
from gworld.geometry import (
    matrix_from_quat,
    pose_from_transform,
    quat_from_rotvec,
    transform_from,
    transform_from_pose,
)
from gworld.scene.cameras import Cameras, intrinsics, look_at
from gworld.scene.gaussians import Gaussians, join_gaussians
from gworld.scene.links import Link
from gworld.scene.rollout import Rollout
from gworld.scene.world import ActionSpec, Entity, World

UPPER, FORE, HEIGHT, TABLE = 0.32, 0.28, 0.18, 0.72  # metres
JOINTS = ("yaw", "shoulder", "elbow")
LIMITS = ((-2.6, 2.6), (-0.4, 1.9), (-2.4, 0.2))  # radians
REST = (0.0, 0.5, -1.1)  # radians
ARMS = {"left": (-0.42, -0.12, plain(0.86, 0.44, 0.12)), "right": (0.42, -0.12, plain(0.16, 0.46, 0.78))}


def tabletop_world(spacing: float = 0.012) -> World:
    """Two three-joint arms at a table with a checkered cube, a ball and a T-block; metric, +Z up.

    `spacing` is the distance between surface Gaussians in metres (0.012 gives about 60 thousand). Raises `InputError`
    for a spacing outside 0.002 .. 0.1.
    """
    if not 0.002 <= spacing <= 0.1:
        raise InputError(f"a spacing of {spacing} m was asked for; 0.002 to 0.1 m is needed.")
    parts, links, entities = [_room(spacing)], [Link("world")], [Entity("scene", "static", (0,))]
    for name, (x, y, paint) in ARMS.items():
        first = len(links)
        poses = pose_from_transform(arm_poses(torch.tensor(REST), x, y)).tolist()
        for index, (part, pose) in enumerate(zip(_arm(spacing, paint), poses, strict=True)):
            parts.append(_on_link(part, first + index))
            parent = 0 if index == 0 else first + index - 1
            links.append(Link(f"{name}/{('base', 'turret', 'upper', 'fore')[index]}", tuple(pose), parent))
        spec = ActionSpec(tuple(f"{name}/{joint}" for joint in JOINTS), ("rad",) * 3, *zip(*LIMITS, strict=True))
        entities.append(Entity(name, "agent", tuple(range(first, first + 4)), spec))
    for name, (part, position) in _objects(spacing).items():
        entities.append(Entity(name, "object", (len(links),)))
        parts.append(_on_link(part, len(links)))
        links.append(Link(name, (*position, 1.0, 0.0, 0.0, 0.0), 0))
    return World(join_gaussians(parts), tuple(links), tuple(entities), _cameras(), metric=True)


def arm_poses(joints: Float[Tensor, "*B 3"], x: float, y: float) -> Float[Tensor, "*B 4 4 4"]:
    """`world_from_link` of base, turret, upper and fore arm for joint angles (rad) of an arm whose base is at x, y."""
    yaw, shoulder, elbow = joints.unbind(-1)
    zero = torch.zeros_like(yaw)
    base = _turn(torch.stack([zero, zero, zero], -1), (x, y, TABLE))
    turret = base @ _turn(torch.stack([zero, zero, yaw], -1), (0.0, 0.0, HEIGHT))
    upper = turret @ _turn(torch.stack([-shoulder, zero, zero], -1), (0.0, 0.0, 0.03))
    fore = upper @ _turn(torch.stack([-elbow, zero, zero], -1), (0.0, 0.0, UPPER))
    return torch.stack([base, turret, upper, fore], dim=-3)


def waving_rollout(world: World, seconds: float = 4.0, fps: float = 30.0) -> Rollout:
    """A kinematic rollout of `tabletop_world` in which both arms wave; objects stay."""
    times = torch.arange(round(seconds * fps), dtype=torch.float64) / fps
    poses = torch.tensor([link.pose for link in world.links]).expand(len(times), -1, 7).clone()
    actions: dict[str, Tensor] = {}
    for side, (name, (x, y, _)) in zip((1.0, -1.0), ARMS.items(), strict=True):
        phase = 2 * np.pi * times / seconds
        swing = torch.stack([0.7 * torch.sin(phase), 0.35 * torch.sin(2 * phase), 0.5 * torch.cos(phase) - 0.5], -1)
        joints = (torch.tensor(REST) + swing * torch.tensor([side, 1.0, 1.0])).float()
        low, high = torch.tensor(LIMITS).unbind(-1)
        actions[name] = joints.clamp(low, high)
        rows = next(entity.links for entity in world.agents if entity.name == name)
        poses[:, list(rows)] = pose_from_transform(arm_poses(actions[name], x, y)).float()
    names = tuple(link.name for link in world.links)
    return Rollout(times, poses, names, actions, world="generated tabletop")


def poses_of(rollout: Rollout) -> Float[Tensor, "T L 4 4"]:
    """`world_from_link` of every instant of a rollout."""
    return transform_from_pose(rollout.link_poses)


def _turn(rotvec: Tensor, translation: tuple[float, float, float]) -> Tensor:
    rotation = matrix_from_quat(quat_from_rotvec(rotvec))
    return transform_from(rotation, rotation.new_tensor(translation).expand(rotation.shape[:-1]))


def _on_link(part: Gaussians, link: int) -> Gaussians:
    return replace(part, links=torch.full_like(part.links, link))


def _room(spacing: float) -> Gaussians:
    wood, steel = grain((0.62, 0.44, 0.27), 0.10, 0.11), plain(0.30, 0.30, 0.33)
    tiles = checker((0.78, 0.77, 0.74), (0.70, 0.69, 0.67), 0.4)
    height = TABLE - 0.04
    corners = [(x, y, height / 2) for x in (-0.7, 0.7) for y in (-0.4, 0.4)]
    legs = [box((0.06, 0.06, height), 2 * spacing, steel, corner) for corner in corners]
    floor = box((3.2, 3.0, 0.02), 3 * spacing, tiles, (0, 0.2, -0.01))
    wall = box((3.2, 0.02, 1.5), 3 * spacing, grain((0.80, 0.82, 0.84), 0.02, 0.6), (0, 1.7, 0.75))
    top = box((1.6, 1.0, 0.04), spacing, wood, (0, 0, TABLE - 0.02))
    return join_gaussians([floor, wall, top, *legs])


def _arm(spacing: float, paint: Paint) -> list[Gaussians]:
    """Base, turret, upper arm, fore arm with gripper, each in its link's frame (the arm reaches along z)."""
    dark, light = plain(0.18, 0.18, 0.20), plain(0.90, 0.90, 0.88)
    fine = 0.75 * spacing
    foot = cylinder(0.085, 0.03, fine, dark, (0, 0, 0.015))
    column = cylinder(0.06, HEIGHT, fine, light, (0, 0, HEIGHT / 2))
    turret = [cylinder(0.07, 0.05, fine, paint, (0, 0, 0.02)), sphere(0.055, fine, dark, (0, 0, 0.045))]
    upper = [box((0.07, 0.06, UPPER), fine, paint, (0, 0, UPPER / 2)), sphere(0.048, fine, dark, (0, 0, UPPER))]
    fingers = [box((0.015, 0.03, 0.08), fine, dark, (x, 0, FORE + 0.05)) for x in (-0.035, 0.035)]
    palm = box((0.10, 0.04, 0.03), fine, dark, (0, 0, FORE + 0.005))
    fore = [box((0.05, 0.05, FORE), fine, light, (0, 0, FORE / 2)), palm, *fingers]
    return [join_gaussians(part) for part in ([foot, column], turret, upper, fore)]


def _objects(spacing: float) -> dict[str, tuple[Gaussians, tuple[float, float, float]]]:
    fine = 0.6 * spacing
    red = plain(0.80, 0.16, 0.18)
    cube = box((0.09, 0.09, 0.09), fine, checker((0.95, 0.85, 0.25), (0.20, 0.20, 0.25), 0.03))
    ball = sphere(0.05, fine, checker((0.25, 0.70, 0.40), (0.95, 0.95, 0.92), 0.05))
    bar, stem = box((0.16, 0.04, 0.04), fine, red), box((0.04, 0.12, 0.04), fine, red, (0, -0.08, 0))
    return {
        "cube": (cube, (-0.05, 0.22, TABLE + 0.045)),
        "ball": (ball, (0.2, 0.3, TABLE + 0.05)),
        "t_block": (join_gaussians([bar, stem]), (0.02, -0.05, TABLE + 0.02)),
    }


def _cameras() -> Cameras:
    eyes = torch.tensor([[0.0, -1.75, 1.75], [1.5, -1.1, 1.5], [-1.5, -1.1, 1.5]])
    target = torch.tensor([0.0, 0.1, 0.8]).expand_as(eyes)
    return Cameras(
        K=intrinsics(640, 480, 0.75).expand(3, 3, 3).clone(),
        world_from_camera=look_at(eyes, target),
        width=640,
        height=480,
        names=("front", "right", "left"),
    )
