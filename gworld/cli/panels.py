"""Render outputs as pictures for people: depth, labels and flow in colour, side by side."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from gworld.render.api import RenderOutput
from gworld.render.native import native_cpu_status
from gworld.render.native_train import yuv420_planes
from gworld.render.video import Frame, as_uint8, side_by_side


def video_frame(output: RenderOutput, names: tuple[str, ...]) -> Frame:
    """What a video takes of one instant: YUV planes straight from a lone colour picture on the CPU, else panels."""
    picture = output.rgb
    if names != ("rgb",) or picture is None or picture.device.type != "cpu" or native_cpu_status() is not None:
        return draw_panels(output, names)
    return yuv420_planes(picture[0, 0])


def draw_panels(output: RenderOutput, names: tuple[str, ...]) -> np.ndarray:
    """One uint8 image [H, W', 3]: the first world and camera of each named output, side by side."""
    panels = [draw(name, getattr(output, name)[0, 0]) for name in names]
    return panels[0] if len(panels) == 1 else side_by_side(panels, names)


def draw(name: str, values: Tensor) -> np.ndarray:
    """One output [H,W,..] as a uint8 image: depth near = bright, links in distinct colours, flow by direction."""
    array = values.detach().cpu().numpy()
    if name == "rgb":
        return as_uint8(array)
    if name == "alpha":
        return as_uint8(np.repeat(array[..., None], 3, axis=2))
    if name == "depth":
        return as_uint8(np.repeat(_nearness(array)[..., None], 3, axis=2))
    if name == "link_id":
        return _palette()[np.where(array < 0, 255, array % 255)]
    angle = np.arctan2(array[..., 1], array[..., 0])
    strength = np.clip(np.hypot(array[..., 0], array[..., 1]) / 8.0, 0.0, 1.0)  # 8 pixels per frame is full colour
    wheel = 0.5 + 0.5 * np.cos(angle[..., None] - np.array([0.0, 2.0944, 4.1888]))
    return as_uint8(1.0 - strength[..., None] * (1.0 - wheel))


def _nearness(depth: np.ndarray) -> np.ndarray:
    """Inverse depth scaled to 0.1 .. 1 between its 2nd and 98th percentile; 0 where there is nothing."""
    seen = depth > 0
    if not seen.any():
        return np.zeros_like(depth)
    inverse = np.where(seen, 1.0 / np.where(seen, depth, 1.0), 0.0)
    low, high = np.percentile(inverse[seen], [2, 98])
    scaled = 0.1 + 0.9 * np.clip((inverse - low) / max(high - low, 1e-12), 0.0, 1.0)
    return np.where(seen, scaled, 0.0)


def _palette() -> np.ndarray:
    """256 well-separated colours [256,3] uint8 by golden-angle hue; the last one (nothing) is white."""
    hue = (np.arange(256) * 0.6180339887498949) % 1.0
    wheel = 0.5 + 0.5 * np.cos(2 * np.pi * (hue[:, None] - np.array([0.0, 1 / 3, 2 / 3])))
    colors = np.round(255 * (0.25 + 0.7 * wheel)).astype(np.uint8)
    colors[0], colors[255] = (150, 150, 150), (255, 255, 255)
    return colors
