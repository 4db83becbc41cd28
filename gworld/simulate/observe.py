"""What a state looks like: pictures of W worlds from fixed, mounted and travelling cameras, and labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from gworld.dynamics.state import Motion
from gworld.errors import InputError, UsageError
from gworld.geometry import invert_transform
from gworld.render.api import OUTPUTS, RenderOptions, RenderOutput
from gworld.render.native_cache import BackgroundCache
from gworld.render.select import render
from gworld.scene.cameras import Cameras
from gworld.scene.world import World

FrameName = Literal["rgb", "alpha", "depth", "link_id", "flow", "scene_flow", "visibility", "seen"]
NAMES: tuple[FrameName, ...] = get_args(FrameName)
NEEDS = {"scene_flow": ("depth", "link_id"), "visibility": ("link_id",)}
"""What the renderer must draw for labels that are computed from its pictures."""
Path = Callable[[float], Cameras]
"""Cameras as a function of time in seconds: always as many, of one size."""
SeenMap = Callable[[Tensor, Cameras], Tensor]
"""(world_from_link [L,4,4], cameras fixed in the world) -> [C,H,W] uint8: 2 seen, 1 extrapolated, 0 invented."""


@dataclass(frozen=True)
class Frame:
    """Pictures and labels of W worlds x C cameras at one instant; what was not asked for is None.

    rgb, alpha, depth (m along z), link_id, flow (pixels since the frame before) as the renderer defines them;
    scene_flow [W,C,H,V,3] metres by which the surface in the pixel moved since the frame before, world axes; visibility
    [W,C,L] pixels in which each link is in front; seen [W,C,H,V] 2 seen, 1 extrapolated, 0 invented.
    """

    time: float
    cameras: Cameras
    rgb: Float[Tensor, "W C H V 3"] | None = None
    alpha: Float[Tensor, "W C H V"] | None = None
    depth: Float[Tensor, "W C H V"] | None = None
    link_id: Int[Tensor, "W C H V"] | None = None
    flow: Float[Tensor, "W C H V 2"] | None = None
    scene_flow: Float[Tensor, "W C H V 3"] | None = None
    visibility: Int[Tensor, "W C L"] | None = None
    seen: UInt8[Tensor, "W C H V"] | None = None


class Observer:
    """Draws one state after the other; what stands still before fixed cameras is drawn once.

    `cameras` are the world's own when None, `options` draw its own background when None; a function of time lets
    cameras travel. `seen` makes the map of what the footage showed (from the reconstruction's coverage, joined by
    whoever has both).
    """

    def __init__(
        self,
        world: World,
        cameras: Cameras | Path | None = None,
        outputs: Sequence[str] = ("rgb",),
        *,
        options: RenderOptions | None = None,
        backend: str = "auto",
        seen: SeenMap | None = None,
    ) -> None:
        strange = [name for name in outputs if name not in NAMES]
        if strange or not outputs:
            raise UsageError(f"the outputs {tuple(outputs)} cannot be drawn; name some of {', '.join(NAMES)}.")
        if cameras is None and world.cameras is None:
            raise InputError("the world holds no cameras; give some, or a path.")
        if "seen" in outputs and seen is None:
            raise InputError("the world says nothing of what was seen (coverage); reconstruct it with this version.")
        self.world, self.outputs = world, tuple(dict.fromkeys(outputs))
        self._cameras = world.cameras if cameras is None else cameras
        own = RenderOptions(background=world.background or (0.0, 0.0, 0.0))
        self._options, self._backend, self._seen = options or own, backend, seen
        needed = {part for name in self.outputs for part in NEEDS.get(name, (name,))}
        self._drawn = tuple(name for name in OUTPUTS if name in needed)
        self._cache = BackgroundCache()
        self._last: tuple[Tensor, Cameras] | None = None

    def forget(self) -> None:
        """Begin a new sequence: the next frame has no flow, as nothing came before it."""
        self._last = None

    def cameras_at(self, time: float) -> Cameras:
        """The cameras at an instant, mounted ones as they are mounted."""
        given = self._cameras
        assert given is not None
        return _pinhole(given(time) if callable(given) else given)

    def __call__(self, motion: Motion) -> Frame:
        """The frame of a state. Raises what `render` raises."""
        poses, cameras = motion.world_from_link, self.cameras_at(motion.time)
        before = self._last or (poses, cameras)
        if len(before[0]) != len(poses):
            before = (poses, cameras)
        drawn = self._draw(poses, cameras, before) if self._drawn else RenderOutput()
        found: dict[str, Any] = {name: getattr(drawn, name) for name in OUTPUTS if name in self.outputs}
        if "scene_flow" in self.outputs:
            found["scene_flow"] = scene_flow(drawn, poses, before[0], cameras)
        if "visibility" in self.outputs:
            found["visibility"] = count_pixels(cast(Tensor, drawn.link_id), poses.shape[1])
        if "seen" in self.outputs and self._seen is not None:
            rows = [self._seen(pose, placed(cameras, pose)) for pose in poses]
            found["seen"] = torch.stack(rows)
        self._last = (poses, cameras)
        return Frame(motion.time, cameras, **found)

    def _draw(self, poses: Tensor, cameras: Cameras, before: tuple[Tensor, Cameras]) -> RenderOutput:
        """Fixed cameras through the cache, mounted ones without: their background never stands still."""
        mounted = [index for index, link in enumerate(cameras.links) if link]
        fixed = [index for index in range(len(cameras)) if index not in mounted]
        parts: list[tuple[list[int], RenderOutput]] = []
        for rows in (fixed, mounted):
            if not rows:
                continue
            still = rows is fixed and not callable(self._cameras)
            with torch.no_grad():
                out = render(
                    self.world.gaussians,
                    poses,
                    pick_cameras(cameras, rows),
                    outputs=self._drawn,
                    previous=(before[0], pick_cameras(before[1], rows)),
                    options=self._options,
                    backend=self._backend,
                    cache=self._cache if still else None,
                )
            parts.append((rows, out))
        if len(parts) == 1:
            return parts[0][1]
        order = torch.tensor([row for rows, _ in parts for row in rows]).argsort()
        joined = {}
        for each in fields(RenderOutput):
            pictures = [getattr(out, each.name) for _, out in parts]
            if pictures[0] is not None:
                joined[each.name] = torch.cat(pictures, dim=1)[:, order.to(pictures[0].device)]
        return RenderOutput(**joined)


def scene_flow(
    drawn: RenderOutput, poses: Float[Tensor, "W L 4 4"], before: Float[Tensor, "W L 4 4"], cameras: Cameras
) -> Float[Tensor, "W C H V 3"]:
    """How far the surface in each pixel moved between two states (m, world axes): rigidly with its link; 0 for none."""
    assert drawn.depth is not None and drawn.link_id is not None
    depth, links = drawn.depth, drawn.link_id.long()
    rows, columns = torch.meshgrid(torch.arange(cameras.height) + 0.5, torch.arange(cameras.width) + 0.5, indexing="ij")
    rays = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1).to(depth)
    back = torch.linalg.inv(cameras.K.to(depth))
    step = before @ invert_transform(poses) - torch.eye(4).to(poses)
    flow = torch.zeros(*depth.shape, 3).to(depth)
    for world in range(len(poses)):
        world_from_camera = placed(cameras, poses[world]).world_from_camera.to(depth)
        for camera in range(len(cameras)):
            moving = (links[world, camera] > 0).nonzero(as_tuple=True)
            points = (rays[moving] @ back[camera].T) * depth[world, camera][moving][:, None]
            pose = world_from_camera[camera]
            points = points @ pose[:3, :3].T + pose[:3, 3]
            moved = step[world][links[world, camera][moving]]
            flow[world, camera][moving] = -((moved[:, :3, :3] @ points[..., None])[..., 0] + moved[:, :3, 3])
    return flow


def count_pixels(link_id: Int[Tensor, "W C H V"], links: int) -> Int[Tensor, "W C L"]:
    """Pixels in which each link is in front."""
    worlds, cameras = link_id.shape[:2]
    flat = link_id.long().reshape(worlds * cameras, -1) + 1
    counts = torch.zeros(worlds * cameras, links + 1, dtype=torch.int64, device=flat.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    return counts[:, 1:].reshape(worlds, cameras, links)


def placed(cameras: Cameras, world_from_link: Float[Tensor, "L 4 4"]) -> Cameras:
    """Cameras where they stand in the world when the links stand so: mounted ones no longer are."""
    if not any(cameras.links):
        return replace(cameras, links=())
    mounts = world_from_link[list(cameras.links)].to(cameras.world_from_camera)
    return replace(cameras, world_from_camera=mounts @ cameras.world_from_camera, links=())


def pick_cameras(cameras: Cameras, rows: Sequence[int]) -> Cameras:
    """Some of the cameras, in the order given."""
    chosen = list(rows)
    return replace(
        cameras,
        K=cameras.K[chosen],
        world_from_camera=cameras.world_from_camera[chosen],
        distortion=None if cameras.distortion is None else cameras.distortion[chosen],
        names=tuple(cameras.names[row] for row in chosen) if cameras.names else (),
        links=tuple(cameras.links[row] for row in chosen) if cameras.links else (),
    )


def travel(path: Cameras, seconds: float) -> Path:
    """A camera that runs along a path, one camera per frame, within `seconds`, and then stays at its end."""
    count = len(path)

    def at(time: float) -> Cameras:
        return path[min(max(round(time / max(seconds, 1e-9) * (count - 1)), 0), count - 1)]

    return at


def _pinhole(cameras: Cameras) -> Cameras:
    """Pictures are drawn without distortion."""
    return cameras if cameras.model == "pinhole" else replace(cameras, model="pinhole", distortion=None)
