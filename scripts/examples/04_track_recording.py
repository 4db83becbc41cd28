"""A real recording becomes a world and an episode: a Franka pushes a T-shaped block before three standing cameras.

python scripts/examples/04_track_recording.py DATA OUT [--end SECONDS] [--hold-out CAMERA]

DATA holds the folder `embodied_gaussians` of github.com/bdaiinstitute/embodied_gaussians: three videos with the
times of their frames, a calibration, the plane of the table, the block as Gaussians, the robot's URDF. Nobody recorded
joints: the first ones are given by hand, all others are found by looking. Each step is one command, printed before it
runs; with your own recording, only paths and first poses change. OUT/world is then what `gworld simulate` and `gworld
train dynamics` take, OUT/episodes what was tracked.
"""

import argparse
import json
import shlex
from pathlib import Path

import torch

from gworld.cli.main import main
from gworld.formats.registry import write
from gworld.geometry import pose_from_transform
from gworld.scene.gaussians import Gaussians
from gworld.scene.harmonics import sh_from_rgb

HOME = "embodied_gaussians/examples/embodied_environments/pusht_embodied"
START = (-0.675, -1.08, 1.565, -2.475, 1.27, 1.96, 0.95)
STEP = "0.0365"
"""Every other picture."""


def block(source: Path, out: Path) -> list[str]:
    """Write the block as a splat file; return its first pose as words."""
    data = json.loads(source.read_text(encoding="utf-8"))
    given = {name: torch.tensor(values).float() for name, values in data["gaussians"].items()}
    gaussians = Gaussians(
        means=given["means"],
        quats_wxyz=given["quats"],
        log_scales=given["scales"].log(),
        opacity_logits=given["opacities"].clamp(0.05, 0.99).logit(),
        sh=sh_from_rgb(given["colors"].flip(-1))[:, None],  # stored blue first
        links=torch.zeros(len(given["means"]), dtype=torch.int32),
    )
    write(gaussians, out, overwrite=True)
    return [f"{value:.6f}" for value in pose_from_transform(torch.tensor(data["X_WB"], dtype=torch.float64)).tolist()]


def commands(data: Path, out: Path, end: float | None, hold_out: str) -> list[list[str]]:
    """The commands, one after the other."""
    home = data / HOME
    videos = sorted((home / "sample_demos/0/videos").glob("*.mp4"))
    footage = ["--video", *map(str, videos), "--times", *(str(video.with_suffix(".json")) for video in videos)]
    plane = json.loads((home / "environment/ground_plane.json").read_text(encoding="utf-8"))["plane"]
    place = block(home / "objects/tblock.json", out / "tblock.ply")
    static, held, whole = str(out / "static"), str(out / "held"), str(out / "bound")
    joints = [f"panda_joint{number}={value}" for number, value in enumerate(START, 1)]
    calibration = str(home / "sample_demos/0/cameras.json")
    table = [str(value) for value in plane]
    return [
        ["backdrop", *footage, "--cameras", calibration, "--refine-cameras", "--rig.plane", *table, "--out", static],
        ["bind", static, "--object", str(out / "tblock.ply"), "--name", "tblock", "--base", *place, "--out", held],
        ["bind", held, "--robot", str(data / "embodied_gaussians/robot/panda.urdf"), "--name", "panda", "--out", whole,
         "--joints", *joints, "--skin.per-square-metre", "6000"],
        ["track", whole, *footage, "--step", STEP, "--out", str(out / "episodes"), "--world-out", str(out / "world"),
         "--colours", "panda=0.92,0.85,0.8", "--track.objects", "planar", "--track.hold", "panda_finger_joint1",
         "--track.search", "0", "--track.reach", "0.12", "--track.stride", "3", "--track.rig.plane", *table,
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
