"""`gworld bind`: put a robot, a thing or a cut-out of the scene into a world."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from gworld.agents.actions import Control, gripper_joints
from gworld.agents.binding import bind_object, bind_robot, cut_object, save_bound
from gworld.agents.kinematics import rest_values
from gworld.agents.segment import hole_shares, rows_in_box
from gworld.agents.skeleton import read_robot
from gworld.agents.skinning import SkinOptions
from gworld.agents.tree import Skeleton, subtree, value_slots
from gworld.cli.options import print_json, say
from gworld.errors import UsageError
from gworld.files import refuse_existing
from gworld.formats.registry import world_folder
from gworld.formats.world import load_world
from gworld.geometry import transform_from_pose
from gworld.scene.world import World

Pose = tuple[float, float, float, float, float, float, float]


@dataclass(frozen=True)
class Options:
    """What to bind, where, and what it can be told. One of --robot, --object and --cut is given."""

    world: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="WORLD")]
    """The world folder to bind into."""
    name: str
    """What the agent or object will be called."""
    out: Path | None = None
    """Write the result here; without it, WORLD itself is replaced (with --overwrite)."""
    robot: Path | None = None
    """A robot model, URDF or MJCF."""
    root: str | None = None
    """Take only the part of the robot from this link on (one arm of two)."""
    package: tuple[Path, ...] = ()
    """Folders besides the robot's own that its meshes may be read from."""
    object: Path | None = None
    """A rigid object: a mesh (obj, stl, dae, glb, off) or a splat file."""
    scale: float = 1.0
    """Length of the object file's unit in metres."""
    cut: tuple[float, float, float, float, float, float] | None = None
    """Make an object of the static scene within x y z X Y Z (metres, world axes)."""
    base: Pose = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)
    """Where the robot's root or the object stands: x y z (metres) qw qx qy qz."""
    joints: tuple[str, ...] = ()
    """Joint values at rest as NAME=VALUE (radians, metres); others rest as the model says."""
    control: Literal["joint_targets", "joint_velocities", "hand_step", "vehicle"] = "joint_targets"
    """What the agent's action sets."""
    gripper: Literal["auto", "none"] = "auto"
    """Let joints named after fingers or grippers open and shut together, as one component."""
    hand: str = ""
    """The link that hand_step moves; the deepest one when not given."""
    skin: SkinOptions = field(default_factory=SkinOptions)
    """How surfaces are covered with Gaussians."""
    overwrite: bool = False
    """Replace what stands at the output."""
    json: bool = False
    """Print the result as one JSON object on stdout."""


def run(options: Options) -> None:
    """Bind; raises `UsageError` unless exactly one thing is to be bound, `InputError` for what cannot be read."""
    if sum(given is not None for given in (options.robot, options.object, options.cut)) != 1:
        raise UsageError("`gworld bind` needs one of --robot, --object and --cut.")
    norm = math.hypot(*options.base[3:])
    if not (all(map(math.isfinite, options.base)) and abs(norm - 1) < 1e-2):
        raise UsageError(f"--base {options.base} is no pose: x y z and a unit quaternion qw qx qy qz are needed.")
    target = options.out or world_folder(options.world)
    refuse_existing(target, overwrite=options.overwrite)
    world = load_world(world_folder(options.world))
    pose = transform_from_pose(torch.tensor(options.base, dtype=torch.float64))
    before, skeletons, holes = len(world.gaussians), {}, None
    if options.robot is not None:
        skeleton = _robot(options, options.robot)
        skeletons[options.name] = skeleton
        gripper = gripper_joints(skeleton) if options.gripper == "auto" and options.control != "vehicle" else ()
        control = Control(options.control, gripper=gripper, hand=options.hand)
        joints = _values(skeleton, options.joints)
        world = bind_robot(world, skeleton, options.name, pose, joints, control, options.skin)
    elif options.object is not None:
        world = bind_object(world, options.object, options.name, pose, scale=options.scale, skin=options.skin)
    elif options.cut is not None:
        world, holes = _cut(world, options.name, options.cut)
    save_bound(world, skeletons, target, overwrite=options.overwrite)
    _report(world, options, target, len(world.gaussians) - before, holes)


def _robot(options: Options, path: Path) -> Skeleton:
    skeleton = read_robot(path, options.name, options.package)
    return skeleton if options.root is None else subtree(skeleton, options.root, options.name)


def _values(skeleton: Skeleton, words: tuple[str, ...]) -> torch.Tensor:
    values, slots = rest_values(skeleton, torch.float64), value_slots(skeleton)
    for word in words:
        name, _, text = word.rpartition("=")
        slot = slots.get(name)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if slot is None or slot.stop - slot.start != 1 or not math.isfinite(value):
            single = [known for known, place in slots.items() if place.stop - place.start == 1]
            raise UsageError(f"--joints {word} cannot be set; NAME=VALUE with a name out of {', '.join(single)} is.")
        values[slot] = value
    return values


def _cut(
    world: World, name: str, corners: tuple[float, float, float, float, float, float]
) -> tuple[World, list[float] | None]:
    rows = rows_in_box(world, corners[:3], corners[3:])
    holes = None
    if world.cameras is not None and world.cameras.model == "pinhole":
        holes = [round(float(share), 5) for share in hole_shares(world, rows, world.cameras)]
    return cut_object(world, name, rows), holes


def _report(world: World, options: Options, target: Path, added: int, holes: list[float] | None) -> None:
    entity = world.entities[-1]
    owned = int((world.gaussians.links >= entity.links[0]).sum())
    facts: dict[str, Any] = {
        "world": str(target),
        "name": entity.name,
        "kind": entity.kind,
        "links": [world.links[index].name for index in entity.links],
        "gaussians": owned,
        "added": added,
        "action": list(entity.action.names) if entity.action else [],
        "holes": holes,
    }
    if options.json:
        print_json(facts)
        return
    say(f"{entity.kind} `{entity.name}` in {target}: {len(entity.links)} links, {owned:,} Gaussians")
    if entity.action:
        say(f"  told by {', '.join(entity.action.names)}")
    if holes is not None:
        say(f"  leaves holes in {max(holes):.2%} of a picture at most; fill them, or keep the object where it is")
    say(f"  next: gworld render {target}")
