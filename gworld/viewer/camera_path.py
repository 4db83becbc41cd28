"""Camera paths recorded view by view: a smooth curve through them, played in the browser, kept for `gworld render`."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import viser
from jaxtyping import Float
from torch import Tensor

from gworld.errors import InputError
from gworld.files import write_json
from gworld.geometry import pose_from_transform
from gworld.render.paths import spline
from gworld.scene.cameras import Cameras

if TYPE_CHECKING:
    from gworld.viewer.app import Viewer

MAX_KEYS = 200
MAX_SECONDS = 600.0


@dataclass
class CameraPath:
    """Views in order, each `(world_from_camera [4,4], vertical field of view in radians)`, and how the flight goes."""

    keys: list[tuple[Float[Tensor, "4 4"], float]] = field(default_factory=list)
    seconds: float = 4.0
    fps: float = 30.0
    closed: bool = False

    def add(self, camera: Cameras) -> None:
        """Take one more view; raises `InputError` when there are `MAX_KEYS`."""
        if len(self.keys) >= MAX_KEYS:
            raise InputError(f"a path has at most {MAX_KEYS} views; begin another one.")
        fov = 2 * math.atan(0.5 * camera.height / float(camera.K[0, 1, 1]))
        self.keys.append((camera.world_from_camera[0].clone(), fov))

    def cameras(self, width: int = 1280, height: int = 720) -> Cameras:
        """One camera per frame along the path; raises `InputError` for less than two views."""
        if len(self.keys) < 2:
            raise InputError("a path needs two views at least; add this view, move on, and add another.")
        if not 0 < self.seconds <= MAX_SECONDS:
            raise InputError(f"a path of {self.seconds:g} s was asked for; above 0 to {MAX_SECONDS:g} s are possible.")
        focal = torch.tensor([0.5 * height / math.tan(fov / 2) for _, fov in self.keys])
        K = torch.zeros(len(self.keys), 3, 3)
        K[:, 0, 0] = K[:, 1, 1] = focal
        K[:, 0, 2], K[:, 1, 2], K[:, 2, 2] = width / 2, height / 2, 1.0
        whole = Cameras(K, torch.stack([pose for pose, _ in self.keys]), width, height)
        return spline(whole, max(2, round(self.seconds * self.fps)), closed=self.closed)


def write_camera_path(cameras: Cameras, fps: float, path: str | Path) -> None:
    """Write a path as nerfstudio does, which `gworld render --path` reads: OpenGL axes, row by row, fov in degrees."""
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
    frames: list[dict[str, Any]] = []
    for K, pose in zip(cameras.K, cameras.world_from_camera, strict=True):
        fov = math.degrees(2 * math.atan(0.5 * cameras.height / float(K[1, 1])))
        values = (pose.double() @ flip).reshape(-1).tolist()
        frames.append({"camera_to_world": values, "fov": fov, "aspect": cameras.width / cameras.height})
    write_json(
        path,
        {
            "camera_type": "perspective",
            "render_width": cameras.width,
            "render_height": cameras.height,
            "fps": fps,
            "seconds": len(cameras) / fps,
            "camera_path": frames,
        },
    )


def fly(client: viser.ClientHandle, cameras: Cameras, fps: float, viewer: Viewer) -> None:
    """Take a visitor along a path, in a thread of its own; the loop goes on."""

    def run() -> None:
        begin = time.monotonic()
        while (frame := int((time.monotonic() - begin) * fps)) < len(cameras):
            if client.client_id not in viewer.server.get_clients():
                return
            pose = pose_from_transform(cameras.world_from_camera[frame].float()).numpy()
            with client.atomic():
                client.camera.wxyz, client.camera.position = pose[3:], pose[:3]
                client.camera.fov = 2 * math.atan(0.5 * cameras.height / float(cameras.K[frame, 1, 1]))
            time.sleep(1 / fps)

    threading.Thread(target=run, name="flight", daemon=True).start()
