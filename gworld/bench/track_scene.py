"""A generated film with known motion: two objects slide and turn, a small arm waves, pillars hide part of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.agents.binding import bind_robot
from gworld.agents.kinematics import forward_kinematics
from gworld.agents.skeleton import Skeleton, read_robot
from gworld.agents.skinning import SkinOptions
from gworld.data.shapes import Paint, box
from gworld.geometry import matrix_from_quat, pose_from_transform, quat_from_rotvec, transform_from
from gworld.reconstruct.motion_film import Film
from gworld.render.select import render
from gworld.scene.cameras import Cameras, intrinsics, look_at
from gworld.scene.gaussians import Gaussians, join_gaussians
from gworld.scene.links import Link
from gworld.scene.world import Entity, World

FINE, COARSE = 0.004, 0.007
"""Point spacing of what is filmed and of what is tracked, in metres: not the same Gaussians."""
LENGTH = 0.22

ARM = """<robot name="arm">
  <material name="green"><color rgba="0.25 0.7 0.35 1"/></material>
  <material name="grey"><color rgba="0.75 0.75 0.8 1"/></material>
  <link name="base"><visual><origin xyz="0 0 0.06"/><geometry><box size="0.12 0.12 0.12"/></geometry>
    <material name="grey"/></visual></link>
  {links}
</robot>"""
PART = """<link name="part{i}"><visual><origin xyz="0 0 {half}"/><geometry><box size="{w} {d} {length}"/></geometry>
    <material name="{color}"/></visual></link>
  <joint name="joint{i}" type="revolute"><parent link="{parent}"/><child link="part{i}"/><origin xyz="0 0 {at}"/>
    <axis xyz="{axis}"/><limit lower="-2.4" upper="2.4" effort="9" velocity="3"/></joint>"""


@dataclass(frozen=True, eq=False)
class Scene:
    """A film and its truth: the world to track (at rest in the first state), the agents' models, films, cameras, times
    [T], the truth's world_from_link [T,L,4,4] and joints {agent: [T,V]}, and the share of the objects' pixels that is
    hidden on average (NaN: not measured)."""

    world: World
    robots: dict[str, Skeleton]
    films: list[Film]
    cameras: Cameras
    times: Float[Tensor, " T"]
    poses: Float[Tensor, "T L 4 4"]
    joints: dict[str, Tensor]
    hidden: float


def film_scene(folder: Path, count: int = 40, seed: int = 0, width: int = 320, height: int = 240) -> Scene:
    """Film `count` instants at 20 per second with three cameras: twice the size, averaged, with noise of 2 levels."""
    robot = _arm(folder)
    times = torch.arange(count, dtype=torch.float64) / 20
    joints = torch.stack(
        [0.5 * (1.3 * times).sin(), 0.5 + 0.3 * (1.7 * times).sin(), 0.9 * (0.9 * times).cos()], dim=-1
    )
    things = torch.stack([_thing(times, 0.34, 0.10, 0.8), _thing(times, 0.36, -0.22, -0.6)], dim=1)
    truth = _world(robot, FINE, seed + 100, things[0], joints[0])
    shown = truth.rest_poses().double().expand(count, -1, 4, 4).clone()
    shown[:, 1:3] = things
    base = transform_from(torch.eye(3, dtype=torch.float64), torch.tensor([-0.1, 0.0, 0.0], dtype=torch.float64))
    shown[:, 3:] = forward_kinematics(robot, joints, base)
    cameras = _cameras(width, height)
    double = replace(cameras, K=cameras.K * torch.tensor([2.0, 2.0, 1.0])[:, None], width=2 * width, height=2 * height)
    rng = torch.Generator().manual_seed(seed)
    pictures, share = [], []
    for poses in shown.float():
        out = render(truth.gaussians, poses, double, outputs=("rgb", "link_id"))
        assert out.rgb is not None and out.link_id is not None
        rgb = torch.nn.functional.avg_pool2d(out.rgb[0].movedim(-1, 1), 2).movedim(1, -1)
        rgb = rgb + torch.randn(rgb.shape, generator=rng) * (2 / 255)
        pictures.append((rgb.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
        share.append(_hidden(truth.gaussians, poses, double, out.link_id[0]))
    stack = np.stack(pictures, axis=1)
    films = [Film(times.numpy(), stack[camera]) for camera in range(len(cameras))]
    world = _world(robot, COARSE, seed, things[0], joints[0])
    return Scene(world, {"arm": robot}, films, cameras, times, shown, {"arm": joints}, float(np.mean(share)))


def _arm(folder: Path) -> Skeleton:
    axes = ("0 0 1", "0 1 0", "0 1 0")
    parts = []
    for i, axis in enumerate(axes):
        first = i == 0
        length = 0.06 if first else LENGTH
        parts.append(
            PART.format(
                i=i, half=length / 2, w=0.07, d=0.05, length=length, color="green" if i % 2 else "grey", axis=axis,
                parent="base" if first else f"part{i - 1}", at=0.12 if first else 0.06 if i == 1 else LENGTH,
            )
        )  # fmt: skip
    path = folder / "arm.urdf"
    path.write_text(ARM.format(links="\n  ".join(parts)), encoding="utf-8")
    return read_robot(path, "arm")


def _thing(times: Tensor, x: float, y: float, turn: float) -> Float[Tensor, "T 4 4"]:
    """A sliding, turning path on the table."""
    place = torch.stack(
        [x + 0.07 * (1.1 * times).sin(), y + 0.08 * (1 - (0.9 * times).cos()), 0.02 + 0 * times], dim=-1
    )
    rotvec = torch.zeros(len(times), 3, dtype=torch.float64)
    rotvec[:, 2] = turn * times
    return transform_from(matrix_from_quat(quat_from_rotvec(rotvec)), place)


def _speckled(seed: int, color: Sequence[float]) -> Paint:
    waves = np.random.default_rng(seed).normal(size=(3, 4)) * 60

    def paint(points: np.ndarray) -> np.ndarray:
        value = np.sin(points @ waves).mean(axis=1, keepdims=True)
        return np.clip(np.asarray(color) * (1 + 0.5 * value), 0, 1)

    return paint


def _world(robot: Skeleton, spacing: float, seed: int, things: Tensor, joints: Tensor) -> World:
    orange, blue = _speckled(3, (0.95, 0.45, 0.15)), _speckled(4, (0.2, 0.35, 0.85))
    static = [box((1.3, 1.3, 0.02), 0.012, _speckled(5, (0.4, 0.38, 0.36)), (0.2, 0.0, -0.012))]
    static += [box((0.05, 0.05, 0.16), 0.008, _speckled(6, (0.6, 0.6, 0.2)), center) for center in PILLARS]
    tee = [
        box((0.16, 0.04, 0.04), spacing, orange, (0, 0.04, 0)),
        box((0.04, 0.10, 0.04), spacing, orange, (0, -0.03, 0)),
    ]
    cube = box((0.09, 0.06, 0.04), spacing, blue)
    parts = [_on(join_gaussians(static), 0), _on(join_gaussians(tee), 1), _on(cube, 2)]
    poses = [tuple(pose_from_transform(thing).tolist()) for thing in things]
    links = (Link("world"), Link("tee", poses[0], 0), Link("cube", poses[1], 0))
    entities = (Entity("scene", "static", (0,)), Entity("tee", "object", (1,)), Entity("cube", "object", (2,)))
    world = World(join_gaussians(parts), links, entities, metric=True)
    base = transform_from(torch.eye(3), torch.tensor([-0.1, 0.0, 0.0]))
    skin = SkinOptions(per_square_metre=spacing**-2, seed=seed)
    return bind_robot(world, robot, "arm", base, joints.float(), skin=skin)


PILLARS = ((0.52, 0.16, 0.08), (0.38, -0.32, 0.08), (0.24, 0.24, 0.08))


def _on(part: Gaussians, link: int) -> Gaussians:
    return replace(part, links=torch.full_like(part.links, link))


def _cameras(width: int, height: int) -> Cameras:
    eyes = torch.tensor([[0.95, 0.35, 0.45], [0.35, -0.85, 0.5], [0.1, 0.75, 0.7]])
    poses = look_at(eyes, torch.tensor([[0.25, 0.0, 0.08]]).expand(3, 3))
    K = intrinsics(width, height, math.radians(48)).expand(3, 3, 3).clone()
    return Cameras(K, poses, width, height, names=("front", "right", "left"))


def _hidden(gaussians: Gaussians, poses: Tensor, cameras: Cameras, shown: Tensor) -> float:
    """The share of the objects' pixels that something else stands before."""
    alone = replace(gaussians, opacity_logits=torch.where(_things(gaussians.links), gaussians.opacity_logits, -20.0))
    out = render(alone, poses, cameras, outputs=("alpha",))
    assert out.alpha is not None
    whole = out.alpha[0] > 0.5
    return 1.0 - float((_things(shown) & whole).sum()) / max(float(whole.sum()), 1.0)


def _things(links: Tensor) -> Tensor:
    return (links == 1) | (links == 2)
