"""DROID as far as it goes: the outer cameras placed into the wrist camera's scan, and whether the robot agrees.

The scans are `droid-N` folders beside the track (`gworld reconstruct --video wrist --hand-log .. --fixed ..`), as
scripts/examples/05_real_push.py makes them. Where cameras were placed, the arm is drawn at its recorded joints as they
would see it: what moves in the films must lie under it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from gworld.agents.kinematics import forward_kinematics, rest_values
from gworld.agents.skeleton import read_robot
from gworld.agents.skinning import SkinOptions, skin_robot
from gworld.bench.droid import franka
from gworld.bench.rows import Row, at_least
from gworld.capture.calibration import read_calibration
from gworld.data.clips import read_frames
from gworld.files import atomic_write
from gworld.geometry import pose_from_transform
from gworld.render.select import render
from gworld.scene.cameras import Cameras

WRISTS = (1, 4, 5)
"""Episodes whose wrist camera is posed and agrees with the robot's log."""
RATE = 15.0
"""Recorded states a second, three for each picture."""
MOVES, EVERY = 35, 4
"""Difference (of 255) from a camera's median picture at which something moves, and every how many pictures count."""
UNDER = 0.8
"""Share of what moves that must lie under the arm, for a camera to be believed."""


def hand_log(annotation: Path, out: Path) -> None:
    """The flange's poses of an episode, from its recorded joints, as `gworld reconstruct --hand-log` takes them."""
    joints = torch.tensor(_joints(annotation), dtype=torch.float64)
    poses = pose_from_transform(forward_kinematics(franka(), joints)[:, -1]).tolist()
    lines = ["time,x,y,z,qw,qx,qy,qz"]
    lines += [",".join(f"{value:.9g}" for value in (row / RATE, *pose)) for row, pose in enumerate(poses)]
    with atomic_write(out) as stream:
        stream.write(("\n".join(lines) + "\n").encode())


def droid_rows(data: Path, folder: Path) -> Iterator[Row]:
    """For every wrist: how many of two outer cameras were placed, or why none; for each, what moves under the arm."""
    for number in WRISTS:
        run, name = folder / f"droid-{number}", f"DROID wrist {number}: outer cameras placed, of 2"
        if not data.is_dir() or not run.is_dir():
            yield Row(name, 0.0, "", note="no scan beside the track: skipped")
            continue
        fixed = run / "fixed.json"
        if not fixed.is_file():
            yield Row(name, 0.0, "", note=_reason(folder / f"droid-{number}.log"))
            continue
        views = read_calibration(fixed).views
        yield Row(name, float(len(views)), "")
        for view in views:
            camera = Cameras(view.K[None].float(), view.world_from_camera[None].float(), view.width, view.height)
            pictures = np.stack(list(read_frames(data / "videos" / str(number) / f"{view.name}.mp4")))
            model = data.parent / "embodied_gaussians" / "robot" / "panda.urdf"
            under, chance = moving_under_arm(camera, pictures, _joints(data / "annotation" / f"{number}.json"), model)
            note = f"lens found: {float(view.K[0, 0]):.0f} pixels; baseline: the arm's share of the picture"
            label = f"DROID {number}, camera {view.name}: what moves lies under the arm drawn at its recorded joints"
            yield at_least(label, under, "", UNDER, chance, note)


def moving_under_arm(
    camera: Cameras, pictures: np.ndarray, joints: list[list[float]], model: Path
) -> tuple[float, float]:
    """Share of the moving pixels that a Franka at its recorded joints covers, and its share of the picture."""
    import cv2

    robot = read_robot(model, "panda")
    skin = skin_robot(robot, SkinOptions(per_square_metre=6000))
    usual = np.median(pictures[::EVERY], axis=0)
    covered, moving, area = 0, 0, []
    for row in range(0, len(pictures), EVERY):
        values = rest_values(robot)
        values[:7] = torch.tensor(joints[min(3 * row, len(joints) - 1)])
        alpha = render(skin, forward_kinematics(robot, values)[None], camera, outputs=("alpha",)).alpha
        assert alpha is not None
        arm = alpha[0, 0].numpy() > 0.5
        changed = (np.abs(pictures[row] - usual).max(-1) > MOVES).astype(np.uint8)
        changed = cv2.morphologyEx(changed, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0
        covered, moving = covered + int((changed & arm).sum()), moving + int(changed.sum())
        area.append(float(arm.mean()))
    return covered / max(moving, 1), float(np.mean(area))


def _joints(annotation: Path) -> list[list[float]]:
    found: list[list[float]] = json.loads(annotation.read_text(encoding="utf-8"))["observation.state.joint_position"]
    return found


def _reason(log: Path) -> str:
    """The sentence with which a scan ended, of a log that may be missing."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    told = [line.removeprefix("gworld: ") for line in lines if line.startswith("gworld: ")]
    return told[-1].split("; ")[0] if told else "the scan left no reason"
