"""A small world for the tests of `gworld.simulate`: two arms, a slider without a model, a ball, four cameras."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from gworld.agents.actions import Control
from gworld.agents.binding import bind_robot, save_bound
from gworld.agents.skeleton import read_robot
from gworld.agents.skinning import SkinOptions
from gworld.data.shapes import box, plain, sphere
from gworld.formats.world import load_world
from gworld.geometry import invert_transform
from gworld.scene.cameras import Cameras, intrinsics, look_at
from gworld.scene.gaussians import Gaussians, join_gaussians
from gworld.scene.links import Link
from gworld.scene.world import ActionSpec, Entity, World

ARM = """<?xml version="1.0"?>
<robot name="arm">
  <material name="paint"><color rgba="{color} 1"/></material>
  <link name="foot"><visual><geometry><cylinder radius="0.06" length="0.05"/></geometry></visual></link>
  <link name="upper"><visual><origin xyz="0 0 0.15"/><geometry><box size="0.05 0.05 0.3"/></geometry>
    <material name="paint"/></visual></link>
  <link name="fore"><visual><origin xyz="0 0 0.12"/><geometry><box size="0.04 0.04 0.24"/></geometry>
    <material name="paint"/></visual></link>
  <joint name="yaw" type="revolute"><parent link="foot"/><child link="upper"/><origin xyz="0 0 0.025"/>
    <axis xyz="0 0 1"/><limit lower="-2" upper="2" velocity="3" effort="10"/></joint>
  <joint name="elbow" type="revolute"><parent link="upper"/><child link="fore"/><origin xyz="0 0 0.3"/>
    <axis xyz="1 0 0"/><limit lower="-2" upper="2" velocity="3" effort="10"/></joint>
</robot>
"""
SLIDE = ActionSpec(
    ("x/velocity", "y/velocity", "yaw/velocity"), ("m/s", "m/s", "rad/s"), (-0.5,) * 2 + (-2.0,), (0.5,) * 2 + (2.0,)
)


def at(x: float, y: float, z: float = 0.0) -> torch.Tensor:
    pose = torch.eye(4)
    pose[:3, 3] = torch.tensor([x, y, z])
    return pose


def on_link(part: Gaussians, link: int) -> Gaussians:
    return replace(part, links=torch.full_like(part.links, link))


def acting_world(folder: Path, width: int = 48, height: int = 32) -> World:
    """Arms `left` (joint targets) and `right` (joint velocities), `cart` that slides, `ball`; saved and read back."""
    top = box((1.4, 1.0, 0.02), 0.05, plain(0.7, 0.7, 0.6), (0, 0, -0.01))
    cart = on_link(box((0.12, 0.12, 0.06), 0.02, plain(0.2, 0.6, 0.3)), 1)
    ball = on_link(sphere(0.05, 0.015, plain(0.9, 0.8, 0.2)), 2)
    links = (
        Link("world"),
        Link("cart", (0.0, -0.3, 0.03, 1, 0, 0, 0), 0),
        Link("ball", (0.0, 0.25, 0.05, 1, 0, 0, 0), 0),
    )
    entities = (Entity("scene", "static", (0,)), Entity("cart", "agent", (1,), SLIDE), Entity("ball", "object", (2,)))
    world = World(join_gaussians([top, cart, ball]), links, entities, metric=True)
    arms = {}
    for name, x, color, kind in (
        ("left", -0.35, "0.9 0.4 0.1", "joint_targets"),
        ("right", 0.35, "0.1 0.4 0.9", "joint_velocities"),
    ):
        path = folder / f"{name}.urdf"
        path.write_text(ARM.format(color=color))
        arms[name] = read_robot(path, name)
        skin = SkinOptions(per_square_metre=1500.0)
        world = bind_robot(world, arms[name], name, at(x, 0.0, 0.025), action=Control(kind), skin=skin)  # type: ignore[arg-type]  # one of two kinds
    save_bound(replace(world, cameras=eyes(world, width, height)), arms, folder / "world")
    return load_world(folder / "world")


def eyes(world: World, width: int, height: int) -> Cameras:
    """Three fixed cameras and one on the left arm's last link."""
    places = torch.tensor([[0.0, -1.3, 0.9], [1.2, -0.6, 0.8], [-1.2, -0.6, 0.8]])
    poses = look_at(places, torch.tensor([0.0, 0.0, 0.15]).expand_as(places))
    hand = next(agent for agent in world.agents if agent.name == "left").links[-1]
    wrist = invert_transform(world.rest_poses()[hand]) @ look_at(
        torch.tensor([-0.35, -0.12, 0.5]), torch.tensor([0.0, 0.3, 0.0])
    )
    K = intrinsics(width, height, 0.8).expand(4, 3, 3).clone()
    names = ("front", "east", "west", "wrist")
    return Cameras(K, torch.cat([poses, wrist[None]]), width, height, names=names, links=(0, 0, 0, hand))
