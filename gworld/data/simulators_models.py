"""Any MJCF file in any pose, photographed by MuJoCo: the truth that other drawings of a robot are judged by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from gworld.data.simulators_driver import mujoco_library
from gworld.data.simulators_view import Painter, Picture
from gworld.errors import InputError
from gworld.files import existing_file
from gworld.scene.cameras import Cameras, intrinsics, look_at

FIELD = 0.7
"""Vertical field of view of the cameras around a model, in radians."""
ENDLESS = (0, 1)
"""Planes and height fields have no end or no triangles of their own; they are left out of the pictures."""


class PosedModel:
    """A model in a pose; link k is MuJoCo's body k. Raises `InputError` for a file that MuJoCo refuses."""

    def __init__(self, path: str | Path) -> None:
        mujoco = mujoco_library()
        try:
            self.model = mujoco.MjModel.from_xml_path(str(existing_file(path)))
        except (ValueError, mujoco.FatalError) as error:
            raise InputError(f"`{path}` is refused by MuJoCo: {' '.join(str(error).split())[:300]}.") from error
        self.data = mujoco.MjData(self.model)
        self.model.geom_rgba[np.isin(self.model.geom_type, ENDLESS), 3] = 0.0
        self._painter: Painter | None = None

    def pose(self, seed: int, share: float = 0.5) -> Float[np.ndarray, "L 7"]:
        """Bend every hinge and slide at random by up to `share` of its range; returns `world_from_link`."""
        mujoco, model, data = mujoco_library(), self.model, self.data
        rng = np.random.default_rng([seed, 17])
        data.qpos[:] = model.key_qpos[0] if model.nkey else model.qpos0
        for joint in range(model.njnt):
            if model.jnt_type[joint] not in (2, 3):
                continue
            low, high = model.jnt_range[joint] if model.jnt_limited[joint] else (-0.8, 0.8)
            at = model.jnt_qposadr[joint]
            data.qpos[at] = np.clip(data.qpos[at] + share / 2 * rng.uniform(-1, 1) * (high - low), low, high)
        mujoco.mj_kinematics(model, data)
        return np.concatenate([data.xpos, data.xquat], axis=1)

    def cameras(self, count: int, width: int, height: int) -> Cameras:
        """Cameras around the model's links as they stand now, near enough to fill the pictures."""
        rows = (self.model.geom_bodyid > 0) & (self.model.geom_group < 3) & (self.model.geom_rgba[:, 3] > 0)
        if not rows.any():
            raise InputError("the model has no visible geom on a link that could move.")
        places, sizes = self.data.geom_xpos[rows], self.model.geom_rbound[rows]
        low, high = (places - sizes[:, None]).min(axis=0), (places + sizes[:, None]).max(axis=0)
        center = (low + high) / 2
        distance = float(np.linalg.norm(places - center, axis=1).max() + sizes.max()) / np.sin(FIELD / 2)
        around = 2 * np.pi * (np.arange(count) + 0.25) / count
        toward = np.stack([np.cos(0.4) * np.cos(around), np.cos(0.4) * np.sin(around), np.full(count, np.sin(0.4))], 1)
        target = torch.tensor(center, dtype=torch.float32).expand(count, 3)
        poses = look_at(target + distance * torch.tensor(toward, dtype=torch.float32), target)
        return Cameras(intrinsics(width, height, FIELD).expand(count, 3, 3).clone(), poses, width, height)

    def draw(self, cameras: Cameras, index: int) -> Picture:
        """One camera's picture; raises `MissingBackendError` where no offscreen OpenGL is at hand."""
        if self._painter is None:
            self._painter = Painter(self.model, cameras.width, cameras.height)
        return self._painter.draw(self.data, cameras, index)
