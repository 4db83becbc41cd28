"""`gworld reconstruct`: footage or posed pictures in, a Gaussian world and its report out; stopped and resumed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from gworld.capture.keyframes import KeyframeOptions
from gworld.capture.options import MaskOptions, PoseOptions
from gworld.cli.options import print_json, say
from gworld.reconstruct.options import FitOptions, FrameOptions


@dataclass(frozen=True)
class Options:
    """What to reconstruct, from what, and how long to take."""

    video: Annotated[tuple[Path, ...], tyro.conf.arg(aliases=("-i",))] = ()
    """Videos, folders of photos, or RGB-D folders; several are several cameras."""
    data: Path | None = None
    """Posed pictures instead of footage: a nerfstudio data set, a transforms.json, a COLMAP model."""
    episodes: Path | None = None
    """Recorded episodes instead of footage: calibrated videos of standing cameras, with the poses of all that moves."""
    bound: Path | None = None
    """With --episodes, the world whose robots and things are in the films (their shapes count); STORE/world if not
    given."""
    poses_from: Path | None = None
    """Known poses of the footage: a calibration file, a transforms.json or a COLMAP model, matched by name."""
    times: tuple[Path, ...] = ()
    """Seconds of each frame where a video's own clock is wrong, one file per input: a number per line, JSON, or
    EuRoC's data.csv."""
    hand_log: Path | None = None
    """A robot's log for a wrist camera, CSV with time,x,y,z,qw,qx,qy,qz: gives metres and the robot's frame."""
    imu_log: Path | None = None
    """A log of the IMU on the camera, CSV with time,gx,gy,gz,ax,ay,az (rad/s, m/s^2) or EuRoC's columns: gives up and
    metres."""
    fixed: tuple[Path, ...] = ()
    """Videos of cameras that stand still in the same room: placed into the reconstruction, poses in fixed.json."""
    out: Path = Path("runs/world")
    """The run's folder."""
    budget: str = "10m"
    """Wall time for the fit: 90s, 10m, 1h; steps and the number of Gaussians are planned for it. `--fit.steps` counts
    instead where it is given."""
    mesh: bool = False
    """Also extract a mesh (mesh.ply) for collision and simulators."""
    capture: KeyframeOptions = field(default_factory=KeyframeOptions)
    """Which pictures are taken out of videos."""
    masks: MaskOptions = field(default_factory=MaskOptions)
    """What moves and is left out."""
    poses: PoseOptions = field(default_factory=PoseOptions)
    """How camera poses are found and judged."""
    frame: FrameOptions = field(default_factory=FrameOptions)
    """Up and scale."""
    fit: FitOptions = field(default_factory=FitOptions)
    """How Gaussians are fitted."""
    view: bool = False
    """Watch in the browser: progress, the Gaussians so far, any view beside its picture; pause and step."""
    resume: bool = False
    """Go on with the run in `--out` where it stopped, with the options it was begun with."""
    overwrite: bool = False
    """Replace the run if it exists."""
    json: bool = False
    """Print the result as one JSON object on stdout."""


def run(options: Options) -> None:
    """Reconstruct; see `Options`. Raises `InputError` for footage that no world can be built from, with the reason."""
    from gworld.cli.reconstruct_stages import make

    facts = make(options)
    if options.json:
        print_json(facts)
        return
    for line in facts["lines"]:
        say(line)
