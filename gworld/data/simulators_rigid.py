"""The cameras that a MuJoCo model brings along, as far as they are rigidly mounted, and more around it where few."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from gworld.data.simulators_driver import mujoco_library
from gworld.scene.cameras import Cameras, intrinsics, look_at

RISE, AROUND = 0.6, 1.7
"""Elevation in radians of the added cameras, and their distance over the model's extent."""


def model_cameras(model: Any, data: Any, count: int, width: int, height: int) -> Cameras | None:
    """Up to `count` cameras: the model's own that keep their place on a link, then ones around its middle.

    A camera that follows a target is rigid where moving the joints leaves it in place; that is tried out.
    """
    found = [(name, link, pose, fov) for name, link, pose, fov in _mounted(model, data)][:count]
    center, extent = np.array(model.stat.center), float(model.stat.extent)
    for number in range(count - len(found)):
        angle = -np.pi / 2 + 2 * np.pi * number / max(count - len(found), 1)
        toward = np.array([np.cos(RISE) * np.cos(angle), np.cos(RISE) * np.sin(angle), np.sin(RISE)])
        target = torch.tensor(center)
        pose = look_at(target + AROUND * extent * torch.tensor(toward), target).numpy()
        found.append((f"around{number}", 0, pose, 0.75))
    if not found:
        return None
    return Cameras(
        torch.stack([intrinsics(width, height, fov) for *_, fov in found]),
        torch.tensor(np.stack([pose for _, _, pose, _ in found]), dtype=torch.float32),
        width,
        height,
        names=tuple(name for name, *_ in found),
        links=tuple(link for _, link, *_ in found),
    )


def _mounted(model: Any, data: Any) -> list[tuple[str, int, np.ndarray, float]]:
    mujoco = mujoco_library()
    probe, rng = mujoco.MjData(model), np.random.default_rng(0)
    places = []
    for attempt in range(4):
        probe.qpos[:] = data.qpos
        if attempt:
            push = rng.normal(0.0, 0.3, model.nv)
            mujoco.mj_integratePos(model, probe.qpos, push, 1.0)
        mujoco.mj_kinematics(model, probe)
        mujoco.mj_comPos(model, probe)
        mujoco.mj_camlight(model, probe)
        places.append([_link_from_camera(model, probe, camera) for camera in range(model.ncam)])
    rows = []
    for camera in range(model.ncam):
        drift = max(float(np.abs(each[camera] - places[0][camera]).max()) for each in places)
        if drift < 1e-5:
            name = (model.cam(camera).name or f"camera{camera}").replace("/", "_")
            fov = float(np.radians(model.cam_fovy[camera]))
            rows.append((name, int(model.cam_bodyid[camera]), places[0][camera], fov))
    return rows


def _link_from_camera(model: Any, data: Any, camera: int) -> np.ndarray:
    """OpenCV axes: MuJoCo's cameras look along their -z with y up."""
    link = int(model.cam_bodyid[camera])
    turn = data.xmat[link].reshape(3, 3).T
    pose = np.eye(4)
    pose[:3, :3] = turn @ data.cam_xmat[camera].reshape(3, 3) @ np.diag([1.0, -1.0, -1.0])
    pose[:3, 3] = turn @ (data.cam_xpos[camera] - data.xpos[link])
    return pose
