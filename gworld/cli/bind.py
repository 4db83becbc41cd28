"""`gworld bind`: put a robot, a thing or a cut-out of the scene into a world; give it dynamics or a refiner."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gworld.agents.options import MotionOptions, SkinOptions
from gworld.errors import UsageError
from gworld.reconstruct.options import LookOptions

Pose = tuple[float, float, float, float, float, float, float]
HERE: Pose = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class FindBase:
    """With --base auto: by which evidence the robot's base is found."""

    by: Literal["auto", "marker", "look", "hand"] = "auto"
    """marker (a tag or board on or near the robot), look (draw the robot and compare), hand (a wrist camera's motion);
    auto takes the marker or the wrist camera's views where they are given, else looks."""
    episodes: Path | None = None
    """An episode store with joint values and calibrated videos of fixed cameras."""
    number: int = 0
    """Which of its episodes, counted from 0."""
    pictures: tuple[Path, ...] = ()
    """Pictures that show a marker, named like the cameras that took them; instead of --find.episodes."""
    cameras: Path | None = None
    """Calibration of --find.pictures; the world's own cameras when not given."""
    marker: str = ""
    """`tag:FAMILY:NUMBER:SIDEm`, `charuco:COLUMNSxROWS:SQUAREm:TAGm:FAMILY` or `grid:..`."""
    marker_link: str = ""
    """The link that the marker sits on (or stands fixed to); the root when not given."""
    marker_offset: Pose | None = HERE
    """Where the marker stands in that link: x y z qw qx qy qz; None finds it too, if the link moves enough."""
    views: Path | None = None
    """Posed views of a wrist camera in this world, with times, as RUN/poses/transforms.json; joints come from
    --find.episodes."""
    hand: str = ""
    """The link that the wrist camera sits on; the deepest one when not given."""
    near: Pose = HERE
    """Where the base is thought to be: x y z qw qx qy qz (look)."""
    plates: Literal["video", "world"] = "video"
    """What stands behind the robot (look): learned from the footage, or the world's static Gaussians, if the robot is
    none of them."""
    look: LookOptions = field(default_factory=LookOptions)
    """How far and how finely is searched (look)."""


@dataclass(frozen=True)
class Options:
    """What to bind, where, and what it can be told. One of --robot, --object, --cut, --cut-motion, --dynamics and
    --refiner is given."""

    world: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="WORLD")]
    """The world folder to bind into."""
    name: str = ""
    """What the agent or object will be called; of several, the first one."""
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
    cut_model: Literal["no", "take", "drop"] = "no"
    """With --robot or --object: Gaussians of the scene on the model where it stands become its own looks (take), or go
    (drop)."""
    cut_within: float = 0.01
    """How far from the model's surface, in metres, they lie at most."""
    cut_motion: Path | None = None
    """Make an object of each body that moves in tracks: .npz or .npy of `points` [T,N,3], metres, NaN where unseen."""
    cut_frame: int = 0
    """The frame of --cut-motion in which things stand as in the world."""
    motion: MotionOptions = field(default_factory=MotionOptions)
    """What counts as moving (--cut-motion)."""
    dynamics: Path | None = None
    """Bind learned dynamics: a training's folder or a checkpoint; `gworld simulate` then uses it."""
    refiner: Path | None = None
    """Bind a refiner: a training's folder or a checkpoint."""
    base: Pose | Literal["auto"] = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)
    """Where the robot's root or the object stands: x y z (metres) qw qx qy qz; or auto, to find it (see --find)."""
    find: FindBase = field(default_factory=FindBase)
    """How the base is found."""
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
    kinds = ("robot", "object", "cut", "cut_motion", "dynamics", "refiner")
    given = [kind for kind in kinds if getattr(options, kind) is not None]
    if len(given) != 1:
        names = ", ".join(f"--{kind.replace('_', '-')}" for kind in kinds)
        raise UsageError(f"`gworld bind` needs one of {names}.")
    if given[0] not in ("dynamics", "refiner") and not options.name:
        raise UsageError("`gworld bind` needs `--name`, what the agent or object will be called.")
    from gworld.cli.bind_world import bind_into

    bind_into(options, given[0])
