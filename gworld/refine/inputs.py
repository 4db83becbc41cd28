"""Conditions as the network takes them: planes of one size, photos warped onto the frame, noise tied to the surface."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gworld.render.conditions import nearest_references
from gworld.scene.clip import AGREES, Clip, correspond, link_points, pixel_grid, sample

REFERENCES = 3
"""Photos that are warped onto each frame."""
NOISE_MASK = (1 << 24) - 1


@dataclass(frozen=True)
class Inputs:
    """B frames for the network, channels first.

    rgb [B,3,H,W]; confidence [B,1,H,W]; geometry [B,6,H,W]: alpha, nearness, border of a link, moving link, flow;
    points [B,3,H,W]: where the surface is in its link's frame, in units of the scene; noise [B,3,H,W], standard normal;
    photos [B,R,7,H,W]: the photo's colour less the render's, what its own render missed, and how surely it shows this
    surface; place [B,2,H,W]: where the frame before shows it (pixels); kept [B,1,H,W]: how surely; truth [B,3,H,W].
    """

    rgb: Float[Tensor, "B 3 H V"]
    confidence: Float[Tensor, "B 1 H V"]
    geometry: Float[Tensor, "B 6 H V"]
    points: Float[Tensor, "B 3 H V"]
    noise: Float[Tensor, "B 3 H V"]
    photos: Float[Tensor, "B R 7 H V"]
    place: Float[Tensor, "B 2 H V"]
    kept: Float[Tensor, "B 1 H V"]
    truth: Float[Tensor, "B 3 H V"] | None = None

    def __len__(self) -> int:
        return len(self.rgb)


def prepare(frame: Clip, before: Clip | None, references: Clip | None, *, own: int | None = None) -> Inputs:
    """One frame of a clip, the one before it (None for the first) and the photos that may be referred to.

    The noise is that of no particular seed; see `surface_noise`. `own` is a photo left out (the frame's own).
    """
    points = link_points(frame)
    place, kept = follow(frame, before, points)
    width = frame.rgb.shape[2]
    seen = frame.depth[0] > 0
    middle = float(frame.depth[0][seen].median()) if bool(seen.any()) else 1.0
    near = torch.where(seen, middle / frame.depth[0].clamp_min(1e-3 * middle), torch.zeros_like(frame.depth[0]))
    link = frame.link_id[0]
    border = torch.zeros_like(near)
    border[:, 1:] = torch.maximum(border[:, 1:], (link[:, 1:] != link[:, :-1]).float())
    border[1:] = torch.maximum(border[1:], (link[1:] != link[:-1]).float())
    flow = (frame.flow[0] * (8.0 / width)).clamp(-1, 1)
    geometry = torch.stack([frame.alpha[0], near.clamp(0, 3) - 1, border, (link > 0).float(), *flow.unbind(-1)])
    return Inputs(
        rgb=_first(frame.rgb),
        confidence=frame.confidence[:, None],
        geometry=geometry[None],
        points=_first(points / max(middle, 1e-6)).clamp(-4, 4),
        noise=surface_noise(points[0], frame, 0)[None],
        photos=warp_photos(frame, references, own)[None],
        place=_first(place[None]),
        kept=kept[None, None],
        truth=None if frame.truth is None else _first(frame.truth),
    )


def follow(
    frame: Clip, before: Clip | None, points: Float[Tensor, "1 H V 3"]
) -> tuple[Float[Tensor, "H V 2"], Float[Tensor, "H V"]]:
    """Where the frame before shows each pixel's surface, by the rendered flow, and whether it is the same surface.

    Whether it is, the points in the links' frames say: they are the same numbers before and after.
    """
    grid = pixel_grid(*frame.depth.shape[1:])
    place = grid - frame.flow[0]
    if before is None:
        return place, torch.zeros_like(frame.depth[0])
    there = sample(link_points(before)[0], place, nearest=True)
    link = sample(before.link_id[0, ..., None].float(), place, nearest=True)[..., 0]
    # Fetched from the nearest pixel, a point may be one pixel beside.
    tolerance = AGREES + 1.0 / float(frame.K[0, 0, 0])
    off = (there - points[0]).norm(dim=-1) / (tolerance * frame.depth[0].clamp_min(1e-6))
    inside = (place > 0).all(-1) & (place[..., 0] < grid.shape[1]) & (place[..., 1] < grid.shape[0])
    good = inside & (frame.depth[0] > 0) & (link == frame.link_id[0])
    return place, torch.exp(-off.square().clamp_max(50.0)) * good


def warp_photos(frame: Clip, references: Clip | None, own: int | None = None) -> Float[Tensor, "R 7 H V"]:
    """The nearest photos as this frame would show them; where a photo shows something else all is 0."""
    height, width = frame.depth.shape[1:]
    out = frame.rgb.new_zeros(REFERENCES, 7, height, width)
    if references is None or references.truth is None:
        return out
    near = [row for row in nearest_references(frame, references, REFERENCES + 1) if row != own]
    for slot, row in enumerate(near[:REFERENCES]):
        photo = references[row]
        assert photo.truth is not None
        place, sure = correspond(frame, photo)
        both = sample(torch.cat([photo.truth[0], photo.truth[0] - photo.rgb[0]], dim=-1), place[0])
        both[..., :3] -= frame.rgb[0]
        out[slot, :6] = (both * (sure[0] > 0.02)[..., None]).movedim(-1, 0)
        out[slot, 6] = sure[0]
    return out


def surface_noise(points: Float[Tensor, "H V 3"], frame: Clip, seed: int) -> Float[Tensor, "3 H V"]:
    """Standard normal noise that sticks to the surface: a hash of the cell a point lies in, in its link's frame.

    Cells are about a pixel wide, in powers of two: from elsewhere, or later, the same surface has the same noise.
    Source: Box and Muller, 1958, for the normal distribution.
    """
    focal = float(frame.K[0, 0, 0])
    size = torch.exp2(torch.log2(frame.depth[0].clamp_min(1e-3) / focal).ceil())
    cell = torch.floor(points / size[..., None]).to(torch.int64)
    octave = torch.log2(size).round().to(torch.int64)
    link = frame.link_id[0].to(torch.int64)
    key = cell[..., 0] * 73856093 ^ cell[..., 1] * 19349663 ^ cell[..., 2] * 83492791
    key = key ^ (link + 7) * 2654435761 ^ (octave + 64) * 40503 ^ (seed + 1) * 97
    return torch.stack([_normal(key + 7919 * channel) for channel in range(3)])


def add_seed(inputs: Inputs, frame: Clip, seed: int) -> Inputs:
    """The same with the noise of a seed."""
    return replace(inputs, noise=surface_noise(link_points(frame)[0], frame, seed)[None])


def change_inputs(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """The same change made to every plane."""
    found = {each.name: getattr(inputs, each.name) for each in fields(Inputs)}
    truth = found.pop("truth")
    changed = {name: change(value) for name, value in found.items()}
    return Inputs(**changed, truth=None if truth is None else change(truth))


def stack_inputs(parts: list[Inputs]) -> Inputs:
    """Frames of one size as one batch; the truth is kept where all have it."""
    found = {each.name: torch.cat([getattr(part, each.name) for part in parts]) for each in fields(Inputs)[:-1]}
    truths = [part.truth for part in parts if part.truth is not None]
    return Inputs(**found, truth=torch.cat(truths) if len(truths) == len(parts) else None)


def move_inputs(inputs: Inputs, kind: torch.dtype | torch.device) -> Inputs:
    """The same as another floating type or on another device."""
    return change_inputs(inputs, lambda value: value.to(kind))


def warp(image: Float[Tensor, "B C H V"], place: Float[Tensor, "B 2 H V"]) -> Float[Tensor, "B C H V"]:
    """An image fetched from places given in its pixels, bilinear."""
    size = place.new_tensor([image.shape[3], image.shape[2]])
    grid = 2 * place.movedim(1, -1) / size - 1
    return torch.nn.functional.grid_sample(image, grid, mode="bilinear", align_corners=False)


def _normal(key: Int[Tensor, "H V"]) -> Float[Tensor, "H V"]:
    first, second = _scramble(key), _scramble(key ^ 0x5DEECE66D)
    u = (first & NOISE_MASK).float().add(0.5) / (NOISE_MASK + 1)
    v = (second & NOISE_MASK).float() / (NOISE_MASK + 1)
    return (-2 * u.log()).sqrt() * torch.cos(2 * math.pi * v)


def _scramble(key: Int[Tensor, "H V"]) -> Int[Tensor, "H V"]:
    key = (key ^ (key >> 15)) * 0x2C1B3C6D & 0x7FFFFFFF
    key = (key ^ (key >> 12)) * 0x297A2D39 & 0x7FFFFFFF
    return key ^ (key >> 15)


def _first(image: Float[Tensor, "1 H V C"]) -> Float[Tensor, "1 C H V"]:
    return image.movedim(-1, 1)
