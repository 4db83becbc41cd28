"""A real recording becomes a world and an episode: a Franka pushes a T-shaped block before three standing cameras.

python scripts/examples/04_track_recording.py DATA OUT [--end SECONDS] [--hold-out CAMERA]

DATA holds the folder `embodied_gaussians` of github.com/bdaiinstitute/embodied_gaussians: three videos with the
times of their frames, a calibration, the plane of the table, the block as Gaussians, the robot's URDF. Nobody recorded
joints: the first ones are given, all others are found by looking. The calibration leaves the lenses out: they are
found on the holes of the table. Each step is one command, printed before it
runs; with your own recording, only paths and first poses change. OUT/world is then what `gworld simulate` and `gworld
train dynamics` take, OUT/episodes what was tracked.
"""

import argparse
import json
import shlex
from pathlib import Path

from gworld.bench.track_real import HOLES, HOME, MODEL, SKIN, STAND, STRAIGHT_START, read_block
from gworld.cli.main import main
from gworld.formats.registry import write

STEP = "0.0365"
"""Every other picture."""


def block(source: Path, out: Path) -> list[str]:
    """Write the block as a splat file; return its first pose as words."""
    gaussians, pose = read_block(source)
    write(gaussians, out, overwrite=True)
    return [f"{value:.6f}" for value in pose]


def commands(data: Path, out: Path, end: float | None, hold_out: str) -> list[list[str]]:
    """The commands, one after the other."""
    home = data / HOME
    videos = sorted((home / "sample_demos/0/videos").glob("*.mp4"))
    footage = ["--video", *map(str, videos), "--times", *(str(video.with_suffix(".json")) for video in videos)]
    plane = json.loads((home / "environment/ground_plane.json").read_text(encoding="utf-8"))["plane"]
    place = block(home / "objects/tblock.json", out / "tblock.ply")
    static, held, whole = str(out / "static"), str(out / "held"), str(out / "bound")
    joints = [f"panda_joint{number}={value}" for number, value in enumerate(STRAIGHT_START[:-1], 1)]
    calibration = str(home / "sample_demos/0/cameras.json")
    rig = [*map(str, plane), "--rig.lens", "--rig.dots", str(HOLES)]
    again = [word.replace("--rig", "--track.rig") for word in rig]
    return [
        ["backdrop", *footage, "--cameras", calibration, "--refine-cameras", "--rig.plane", *rig, "--out", static],
        ["bind", static, "--object", str(out / "tblock.ply"), "--name", "tblock", "--base", *place, "--out", held],
        ["bind", held, "--robot", str(data / MODEL), "--name", "panda", "--out", whole,
         "--base", *map(str, STAND), "--joints", *joints, "--skin.per-square-metre", str(int(SKIN))],
        ["track", whole, *footage, "--cameras", calibration, "--track.refine-cameras", "--step", STEP,
         "--out", str(out / "episodes"), "--world-out", str(out / "world"),
         "--colours", "panda=0.92,0.85,0.8", "--track.objects", "planar", "--track.hold", "panda_finger_joint1",
         "--track.search", "0", "--track.reach", "0.12", "--track.stride", "3", "--track.rig.plane", *again,
         *(["--end", str(end)] if end else []), *(["--hold-out", hold_out] if hold_out else [])],
    ]  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--end", type=float)
    parser.add_argument("--hold-out", default="")
    given = parser.parse_args()
    if not (given.data / "embodied_gaussians").is_dir():
        parser.error(f"`{given.data}` holds no folder `embodied_gaussians`")
    given.out.mkdir(parents=True, exist_ok=True)
    for command in commands(given.data, given.out, given.end, given.hold_out):
        print("gworld", shlex.join(command), flush=True)
        if code := main(command):
            raise SystemExit(code)
