"""Offscreen pictures of a MuJoCo scene: colour, depth and the link behind every pixel, for calibrated cameras."""

from __future__ import annotations

import os
import weakref
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8

from gworld.data.simulators_driver import mujoco_library
from gworld.errors import MissingBackendError
from gworld.geometry import transform_from_pose
from gworld.scene.cameras import Cameras

NEAR, FAR = 0.05, 150.0
"""Planes of the pictures' frustum in metres; a wrist's nearest parts lie before the near one."""


class Picture(NamedTuple):
    """rgb [H,W,3]; depth [H,W] metres along the camera's z, 0 where nothing is; links [H,W], -1 where nothing is."""

    rgb: UInt8[np.ndarray, "H W 3"]
    depth: Float[np.ndarray, "H W"]
    links: Int[np.ndarray, "H W"]


class Painter:
    """A drawing context for pictures of one size; raises `MissingBackendError` where no offscreen OpenGL is at hand."""

    def __init__(self, model: Any, width: int, height: int) -> None:
        mujoco = mujoco_library()
        self.model, self.width, self.height = model, width, height
        model.vis.global_.offwidth = max(int(model.vis.global_.offwidth), width)
        model.vis.global_.offheight = max(int(model.vis.global_.offheight), height)
        model.vis.quality.shadowsize = model.vis.quality.offsamples = 0  # 26 against 640 pictures a second
        self._gl = context = _context(mujoco, width, height)
        self._scene = mujoco.MjvScene(model=model, maxgeom=model.ngeom + 200)
        self._option = mujoco.MjvOption()
        self._option.sitegroup[:] = 0
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._buffer = buffer = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        self.close = weakref.finalize(self, _free, context, buffer)
        """Free the context; happens by itself when nobody holds the painter, and before the interpreter ends."""
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._buffer)
        self._buffer.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR

    def draw(self, data: Any, cameras: Cameras, index: int, truth: bool = True) -> Picture:
        """One camera's picture of a state whose kinematics are up to date; its lens is a pinhole with square pixels.

        Without `truth`, depth and links are left out: all 0 and all -1.
        """
        mujoco = mujoco_library()
        self._gl.make_current()
        free = mujoco.MjvCamera()
        every = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self.model, data, self._option, None, free, every, self._scene)
        self._aim(data, cameras, index)
        rgb = np.empty((self.height, self.width, 3), np.uint8)
        ids, raw = np.empty_like(rgb), np.empty((self.height, self.width), np.float32)
        mujoco.mjr_render(self._rect, self._scene, self._buffer)
        mujoco.mjr_readPixels(rgb, None, self._rect, self._buffer)
        if not truth:
            return Picture(rgb[::-1].copy(), np.zeros(rgb.shape[:2], np.float32), np.full(rgb.shape[:2], -1, np.int32))
        flags = self._scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = True
        mujoco.mjr_render(self._rect, self._scene, self._buffer)
        mujoco.mjr_readPixels(ids, raw, self._rect, self._buffer)
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = False
        links = self._links(ids)
        deep = raw.astype(np.float64)  # 1 at the near plane, 0 at the far one
        depth = np.where(links >= 0, NEAR * FAR / (NEAR + deep * (FAR - NEAR)), 0.0).astype(np.float32)
        return Picture(rgb[::-1].copy(), depth[::-1].copy(), links[::-1].copy())

    def _aim(self, data: Any, cameras: Cameras, index: int) -> None:
        pose = cameras.world_from_camera[index].double().numpy()
        if cameras.links and cameras.links[index]:
            link = cameras.links[index]
            stored = torch.tensor(np.concatenate([data.xpos[link], data.xquat[link]]))
            pose = transform_from_pose(stored).numpy() @ pose
        K = cameras.K[index].double().numpy()
        scale_x, scale_y = self.width / cameras.width, self.height / cameras.height
        for eye in self._scene.camera:  # the left and the right eye, which see alike
            eye.pos, eye.forward, eye.up = pose[:3, 3], pose[:3, 2], -pose[:3, 1]
            eye.frustum_near, eye.frustum_far = NEAR, FAR
            eye.frustum_top = NEAR * K[1, 2] * scale_y / (K[1, 1] * scale_y)
            eye.frustum_bottom = -NEAR * (cameras.height - K[1, 2]) / K[1, 1]
            eye.frustum_center = NEAR * (cameras.width / 2 - K[0, 2]) / K[0, 0]
            eye.frustum_width = NEAR * cameras.width * scale_x / (2 * K[0, 0] * scale_x)
            eye.orthographic = 0

    def _links(self, ids: np.ndarray) -> np.ndarray:
        """Colours of the second pass into links."""
        number = ids[:, :, 0].astype(np.int32) + (ids[:, :, 1].astype(np.int32) << 8)
        links = np.full(self._scene.ngeom + 1, -1, np.int32)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.segid >= 0 and geom.objtype == 5:  # mjOBJ_GEOM
                links[geom.segid + 1] = self.model.geom_bodyid[geom.objid]
        return links[np.minimum(number, len(links) - 1)]


def _context(mujoco: Any, width: int, height: int) -> Any:
    """An OpenGL context: what MUJOCO_GL says, else EGL, else OSMesa."""
    wanted = os.environ.get("MUJOCO_GL", "").lower()
    tried = []
    for name in (wanted,) if wanted in ("egl", "osmesa", "glfw") else ("egl", "osmesa"):
        try:
            kind = _module(name).GLContext
            kind._context = getattr(kind, "_context", None)  # it is asked for when one that failed is thrown away
            context = kind(width, height)
            context.make_current()
            return context
        except (ImportError, RuntimeError, OSError, AttributeError, TypeError, mujoco.FatalError) as error:
            tried.append(f"{name}: {' '.join(str(error).split())[:120] or type(error).__name__}")
    raise MissingBackendError(
        f"no offscreen OpenGL works here ({'; '.join(tried)}). Install it (apt install libegl1 libgl1-mesa-dri), or "
        "record states alone with --no-video."
    )


def _free(context: Any, buffer: Any) -> None:
    buffer.free()
    context.free()


def _module(name: str) -> Any:
    import importlib

    return importlib.import_module({"egl": "mujoco.egl", "osmesa": "mujoco.osmesa", "glfw": "mujoco.glfw"}[name])
