"""Clips: rendered film with what the world knows of every pixel, and the true pictures where there are any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gworld.errors import InputError
from gworld.geometry import invert_transform

AGREES = 0.02
"""Relative difference of depths up to which two pixels show one surface."""


@dataclass(frozen=True)
class Clip:
    """T frames of one camera: pictures, geometry, confidence, and where camera and links stood.

    rgb and truth [T,H,W,3] in 0..1; alpha, depth (metres along z, 0 for none), confidence (0 .. 1) [T,H,W]; link_id
    [T,H,W] int32 (-1 for none); flow [T,H,W,2] pixels since the frame before; K [T,3,3]; world_from_camera [T,4,4];
    world_from_link [T,L,4,4]. Photos to refer to are a clip whose truth are the photos.
    """

    rgb: Float[Tensor, "T H V 3"]
    alpha: Float[Tensor, "T H V"]
    depth: Float[Tensor, "T H V"]
    link_id: Int[Tensor, "T H V"]
    flow: Float[Tensor, "T H V 2"]
    confidence: Float[Tensor, "T H V"]
    K: Float[Tensor, "T 3 3"]
    world_from_camera: Float[Tensor, "T 4 4"]
    world_from_link: Float[Tensor, "T L 4 4"]
    truth: Float[Tensor, "T H V 3"] | None = None

    def __post_init__(self) -> None:
        T, H, W = self.alpha.shape
        links = self.world_from_link.shape[1] if self.world_from_link.ndim == 4 else -1
        shapes = {
            "rgb": (T, H, W, 3),
            "depth": (T, H, W),
            "link_id": (T, H, W),
            "flow": (T, H, W, 2),
            "confidence": (T, H, W),
            "K": (T, 3, 3),
            "world_from_camera": (T, 4, 4),
            "world_from_link": (T, links, 4, 4),
            "truth": (T, H, W, 3),
        }
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise InputError(f"Clip.{name} has shape {list(value.shape)}; {list(shape)} is needed.")

    def __len__(self) -> int:
        return len(self.rgb)

    def __getitem__(self, index: int | slice | Sequence[int]) -> Clip:
        rows: slice | list[int]
        if isinstance(index, int):
            rows = slice(index, index + 1 or None)
        else:
            rows = index if isinstance(index, slice) else list(index)
        return replace(self, **{name: value[rows] for name, value in _present(self).items()})


def join_clips(clips: Sequence[Clip]) -> Clip:
    """One clip after the other; truth is kept where all have it. Raises `InputError` for none, or sizes that differ."""
    if not clips or len({(clip.rgb.shape[1:], clip.world_from_link.shape[1]) for clip in clips}) != 1:
        raise InputError(f"{len(clips)} clips of different sizes or links cannot be joined; equal ones are needed.")
    names = set.intersection(*(set(_present(clip)) for clip in clips))
    parts = {name: torch.cat([getattr(clip, name) for clip in clips]) for name in names}
    return (
        replace(clips[0], truth=None, **{name: value for name, value in parts.items() if name != "truth"})
        if ("truth" not in parts)
        else replace(clips[0], **parts)
    )


def link_points(clip: Clip) -> Float[Tensor, "T H V 3"]:
    """Where each pixel's surface lies in the frame of its own link (metres): the same numbers from every view and at
    every time; 0 where nothing is."""
    camera = _camera_points(clip.depth, clip.K)
    into = invert_transform(clip.world_from_link) @ clip.world_from_camera[:, None]
    points = torch.stack([_move(camera[t], clip.link_id[t], into[t]) for t in range(len(clip))])
    return points * (clip.depth > 0)[..., None]


def correspond(clip: Clip, other: Clip) -> tuple[Float[Tensor, "T H V 2"], Float[Tensor, "T H V"]]:
    """Where frame t of `other` shows the surface in each pixel of frame t of `clip`, and how surely it does.

    Positions in pixels of `other`, and weights: 1 where it shows the same surface, 0 where that lies outside its
    picture or behind another. Bodies are followed: a point stays on its link.
    """
    camera = _camera_points(clip.depth, clip.K)
    into = invert_transform(clip.world_from_link) @ clip.world_from_camera[:, None]
    onto = invert_transform(other.world_from_camera)[:, None] @ other.world_from_link @ into
    places, sure = [], []
    for t in range(len(clip)):
        local = _move(camera[t], clip.link_id[t], onto[t])
        z = local[..., 2]
        image = local @ other.K[t].T
        place = image[..., :2] / image[..., 2:].clamp_min(1e-6)
        found = sample(other.depth[t, ..., None], place, nearest=True)[..., 0]
        off = (found - z).abs() / (AGREES * z.clamp_min(1e-6))
        inside = (place > 0).all(-1) & (place[..., 0] < other.rgb.shape[2]) & (place[..., 1] < other.rgb.shape[1])
        good = inside & (z > 1e-4) & (found > 0) & (clip.depth[t] > 0)
        places.append(torch.where(good[..., None], place, torch.full_like(place, -1e4)))
        sure.append(torch.exp(-off.square().clamp_max(50.0)) * good)
    return torch.stack(places), torch.stack(sure)


def sample(
    image: Float[Tensor, "H V C"], place: Float[Tensor, "A B 2"], *, nearest: bool = False
) -> Float[Tensor, "A B C"]:
    """Values of an image at places in pixels (centres at +0.5), between pixels linearly; 0 beyond the border."""
    size = place.new_tensor([image.shape[1], image.shape[0]])
    grid = (2 * place / size - 1)[None]
    mode = "nearest" if nearest else "bilinear"
    found = torch.nn.functional.grid_sample(image.movedim(-1, 0)[None], grid.to(image), mode=mode, align_corners=False)
    return found[0].movedim(0, -1)


def pixel_grid(height: int, width: int) -> Float[Tensor, "H V 2"]:
    """The centre of every pixel, (column, row) at +0.5."""
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([columns, rows], dim=-1)


def _camera_points(depth: Float[Tensor, "T H V"], K: Float[Tensor, "T 3 3"]) -> Float[Tensor, "T H V 3"]:
    grid = pixel_grid(*depth.shape[1:]).to(depth)
    x = (grid[..., 0] - K[:, 0, 2, None, None]) / K[:, 0, 0, None, None]
    y = (grid[..., 1] - K[:, 1, 2, None, None]) / K[:, 1, 1, None, None]
    return torch.stack([x * depth, y * depth, depth], dim=-1)


def _move(points: Float[Tensor, "H V 3"], link_id: Int[Tensor, "H V"], moves: Float[Tensor, "L 4 4"]) -> Tensor:
    """Each point moved by the transform of its link."""
    moved = points @ moves[0, :3, :3].T + moves[0, :3, 3]
    for link in range(1, len(moves)):
        own = link_id == link
        if bool(own.any()):
            moved[own] = points[own] @ moves[link, :3, :3].T + moves[link, :3, 3]
    return moved


def _present(clip: Clip) -> dict[str, Tensor]:
    found = {each.name: getattr(clip, each.name) for each in fields(clip)}
    return {name: value for name, value in found.items() if value is not None}
