"""The real push as dynamics reads it: block and pusher on the table's plane, the block's outline, its pushes, windows.

Everything comes from a tracked motion and from the Gaussians of block and pusher. Places on the plane are x, y and the
turn about its normal; the block's frame is at the middle of its outline's area.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.errors import InputError
from gworld.geometry import invert_transform, matrix_from_quat, normalize_quat, transform_from
from gworld.reconstruct.motion_lens import FREE
from gworld.scene.gaussians import Gaussians, select_gaussians
from gworld.scene.world import World

HELD = "220422302296"
"""The camera that the track takes no part in, where it does not say."""
CELL, MARGIN = 1e-3, 0.03
"""Width of the outline's cells and how far its grid reaches beyond the Gaussians (m)."""
SMOOTH = 0.08
"""Seconds over which the pusher's path is smoothed: its tracked place jitters by millimetres."""
MOVES, PAUSE, LEAST = 0.008, 0.5, 0.01
"""Speed (m/s) above which the block moves, rest (s) that ends a push, and what a push moves it at least (m)."""
DISPLACED = 0.005
"""True motion (m) that a window holds at least."""
SPOTS = 24
"""Points of the outline whose distance is the pose error."""


@dataclass(frozen=True, eq=False)
class Track:
    """A tracked motion: times [T] s evenly apart, world_from_link [T,L,4,4], the table `plane` a b c d, the cameras as
    refined, which of them took no part, and the lenses that were taken away from the films (as in `motion_lens`)."""

    times: Float[Tensor, " T"]
    world_from_link: Float[Tensor, "T L 4 4"]
    link_names: tuple[str, ...]
    plane: tuple[float, ...]
    camera_names: tuple[str, ...]
    world_from_camera: Float[Tensor, "C 4 4"]
    held: str = HELD
    lenses: Float[Tensor, "C 7"] | None = None


@dataclass(frozen=True, eq=False)
class Outline:
    """A shape on the plane as signed distances `sd` [N,M] (m, negative inside) at corners from `low` [2] on."""

    sd: Float[Tensor, "N M"]
    low: Float[Tensor, " 2"]
    spots: Float[Tensor, "K 2"]

    def distance(self, points: Float[Tensor, "*B 2"]) -> tuple[Float[Tensor, "*B"], Float[Tensor, "*B 2"]]:
        """Signed distances of points in the shape's frame, and the unit direction in which they grow."""
        count = self.sd.new_tensor(self.sd.shape)
        free = (points - self.low) / CELL
        at = torch.minimum(free.clamp_min(0.0), count - 1.001)
        corner = at.detach().floor()
        x, y = (at - corner).unbind(-1)
        row = corner.long()
        first = row[..., 0] * self.sd.shape[1] + row[..., 1]
        a, b, c, d = (self.sd.flatten()[first + k] for k in (0, 1, self.sd.shape[1], self.sd.shape[1] + 1))
        value = (a * (1 - y) + b * y) * (1 - x) + (c * (1 - y) + d * y) * x
        slope = torch.stack([(c - a) * (1 - y) + (d - b) * y, (b - a) * (1 - x) + (d - c) * x], dim=-1)
        return value + (free - at).norm(dim=-1) * CELL, torch.nn.functional.normalize(slope, dim=-1)

    @property
    def spread(self) -> float:
        """Mean distance of the shape's area from its middle (m): the lever of even pressure."""
        inside = (self.sd < 0).nonzero().double() * CELL + self.low
        return float(inside.norm(dim=-1).mean())


@dataclass(frozen=True, eq=False)
class Pushing:
    """The recording on the plane: times [T], block [T,3] (x y turn), pusher [T,2] (smoothed), their shapes, and how to
    come back: the link's pose is `world_from_plane @ lift(block) @ outline_from_link`."""

    times: Float[Tensor, " T"]
    block: Float[Tensor, "T 3"]
    pusher: Float[Tensor, "T 2"]
    outline: Outline
    radius: float
    height: float
    world_from_plane: Float[Tensor, "4 4"]
    outline_from_link: Float[Tensor, "4 4"]

    @property
    def dt(self) -> float:
        """Seconds between instants."""
        return float((self.times[-1] - self.times[0]) / (len(self.times) - 1))

    def links(self, block: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 4 4"]:
        """world_from_link of the block at places on the plane."""
        return self.world_from_plane @ lift(block) @ self.outline_from_link

    def apart(self, a: Float[Tensor, "*B 3"], b: Float[Tensor, "*#B 3"]) -> Float[Tensor, "*B"]:
        """Pose error (m): mean distance of the outline's points."""
        return (place(a, self.outline.spots) - place(b, self.outline.spots)).norm(dim=-1).mean(-1)


def read_track(path: Path) -> Track:
    """A track file: an .npz with the fields of `Track` (`held` and `lenses` may be missing).

    Raises `InputError` where one is missing or not finite.
    """
    wanted = ("times", "world_from_link", "link_names", "plane", "camera_names", "world_from_camera")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            found = {key: file[key] for key in wanted}
            held = str(np.atleast_1d(file["held"])[0]) if "held" in file.files else HELD
            found["lenses"] = file["lenses"] if "lenses" in file.files else np.zeros((len(found["camera_names"]), FREE))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"`{path}` is no track ({error}); it needs {', '.join(wanted)}.") from error
    tables = {key: torch.from_numpy(value.astype(np.float64)) for key, value in found.items() if key[-5:] != "names"}
    names, cameras = (tuple(str(name) for name in found[key]) for key in ("link_names", "camera_names"))
    times, poses, eyes = (tables[key] for key in ("times", "world_from_link", "world_from_camera"))
    fits = poses.shape == (len(times), len(names), 4, 4) and eyes.shape == (len(cameras), 4, 4)
    fits = fits and tables["lenses"].shape == (len(cameras), FREE)
    if not fits or tables["plane"].shape != (4,) or not all(bool(torch.isfinite(t).all()) for t in tables.values()):
        raise InputError(f"`{path}` holds poses {tuple(poses.shape)} for {len(times)} times and {len(names)} links.")
    return Track(times, poses, names, tuple(tables["plane"].tolist()), cameras, eyes, held, tables["lenses"])


def on_plane(track: Track, world: World, block: str, pusher: str) -> Pushing:
    """The motion of two links of a track on its table.

    Raises `InputError` when the track lacks a link.
    """
    missing = {block, pusher} - set(track.link_names)
    if missing:
        raise InputError(f"the track has no link {', '.join(sorted(missing))}; it has {', '.join(track.link_names)}.")
    plane_from_world = _plane_frame(track.plane)
    poses = plane_from_world @ track.world_from_link
    mine = poses[:, track.link_names.index(block)]
    skins = {
        link.name: select_gaussians(world.gaussians, world.gaussians.links == i) for i, link in enumerate(world.links)
    }
    shape = skins[block]
    means = shape.means.double() @ mine[0, :3, :3].T + mine[0, :3, 3]
    flat = _turn(mine)
    start = torch.stack([mine[0, 0, 3], mine[0, 1, 3], flat[0]])
    outline, middle = outline_of(shape, invert_transform(lift(start)) @ mine[0])
    place_ = torch.cat([_turned(middle, flat) + mine[:, :2, 3], flat[:, None]], dim=-1)
    link = invert_transform(lift(place_[0])) @ mine[0]
    height = float(means[:, 2].quantile(0.95))
    path, radius = _stick(skins[pusher], poses[:, track.link_names.index(pusher)], 0.5 * height)
    dt = float(track.times.diff().median())
    return Pushing(
        track.times,
        place_,
        smoothed(path, SMOOTH / dt),
        outline,
        radius,
        height,
        invert_transform(plane_from_world),
        link,
    )


def outline_of(shape: Gaussians, flat_from_link: Float[Tensor, "4 4"]) -> tuple[Outline, Float[Tensor, " 2"]]:
    """The outline (half covered) of Gaussians seen along z, in a frame at its area's middle, and that middle."""
    from scipy import ndimage

    means = shape.means.double() @ flat_from_link[:3, :3].T + flat_from_link[:3, 3]
    axes = flat_from_link[:3, :3] @ matrix_from_quat(normalize_quat(shape.quats_wxyz.double()))
    spread = (axes * (2.0 * shape.log_scales.double()).exp()[:, None]) @ axes.transpose(-1, -2)
    ease = torch.linalg.inv(spread[:, :2, :2])
    low, high = means[:, :2].amin(0) - MARGIN, means[:, :2].amax(0) + MARGIN
    ticks = [low[k] + CELL * torch.arange(int((high - low)[k] / CELL)) for k in (0, 1)]
    grid = torch.stack(torch.meshgrid(*ticks, indexing="ij"), dim=-1)
    clear = torch.zeros(grid.shape[:2], dtype=torch.float64)
    wide = 4.0 * spread[:, :2, :2].diagonal(dim1=-2, dim2=-1).sqrt()
    begin = ((means[:, :2] - wide - low) / CELL).floor().clamp_min(0).long().tolist()
    end = ((means[:, :2] + wide - low) / CELL).ceil().clamp_min(0).long().tolist()
    for index, opacity in enumerate(torch.sigmoid(shape.opacity_logits.double())):
        part = tuple(slice(first, last + 1) for first, last in zip(begin[index], end[index], strict=True))
        arm = grid[part] - means[index, :2]
        size = (arm @ ease[index] * arm).sum(-1)
        clear[part] += torch.log1p(-(opacity * (-0.5 * size).exp()).clamp_max(0.999))
    covered = (clear < np.log(0.5)).numpy()
    if not covered.any():
        raise InputError("the block's Gaussians cover nothing; opaque ones are needed.")
    inside, outside = (ndimage.distance_transform_edt(part) for part in (covered, ~covered))
    sd = torch.from_numpy((np.maximum(outside - 0.5, 0) - np.maximum(inside - 0.5, 0)) * CELL)
    middle = grid[torch.from_numpy(covered)].mean(0)
    edge = grid[(sd < 0) & (sd > -CELL)] - middle
    angle = torch.atan2(edge[:, 1], edge[:, 0]).argsort()
    spots = edge[angle[torch.linspace(0, len(edge) - 1, SPOTS).long()]]
    return Outline(sd, low - middle, spots), middle


def pushes_of(given: Pushing) -> list[tuple[float, float]]:
    """(first, last) second of every push: where the block moves, with no longer rest in between."""
    from scipy import ndimage

    step = given.apart(given.block[1:], given.block[:-1]) / given.dt
    moves = ndimage.gaussian_filter1d(step.numpy(), 0.1 / given.dt) > MOVES
    rows = np.flatnonzero(moves)
    parts = np.split(rows, np.flatnonzero(np.diff(rows) * given.dt > PAUSE) + 1) if len(rows) else []
    found = []
    for part in parts:
        if float(given.apart(given.block[part[0]], given.block[part[-1] + 1])) >= LEAST:
            found.append((float(given.times[part[0]]), float(given.times[part[-1] + 1])))
    return found


def windows_of(given: Pushing, push: int, pushes: list[tuple[float, float]], seconds: float) -> tuple[Tensor, int]:
    """Every start [N] from which the block moves 5 mm within `seconds` by this push alone, and a window's steps."""
    steps = round(seconds / given.dt)
    rows = torch.arange(2, len(given.times) - steps)
    first, last = given.times[rows], given.times[rows + steps]
    touched = torch.stack([(last >= begin) & (first <= end) for begin, end in pushes])
    moved = given.apart(given.block[rows], given.block[rows + steps]) >= DISPLACED
    return rows[touched[push] & (touched.sum(0) == 1) & moved], steps


def place(block: Float[Tensor, "*B 3"], points: Float[Tensor, "K 2"]) -> Float[Tensor, "*B K 2"]:
    """Where points of the block are on the plane."""
    return _turned(points, block[..., None, 2]) + block[..., None, :2]


def lift(block: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 4 4"]:
    """The transform of a place on the plane."""
    cosine, sine = block[..., 2].cos(), block[..., 2].sin()
    zero, one = torch.zeros_like(sine), torch.ones_like(sine)
    turn = torch.stack([cosine, -sine, zero, sine, cosine, zero, zero, zero, one], dim=-1).unflatten(-1, (3, 3))
    return transform_from(turn, torch.stack([block[..., 0], block[..., 1], zero], dim=-1))


def _turned(vector: Tensor, angle: Tensor) -> Tensor:
    x, y = vector.unbind(-1)
    return torch.stack([angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y], dim=-1)


def _turn(poses: Float[Tensor, "T 4 4"]) -> Float[Tensor, " T"]:
    """The turn of a link's x axis about z, without jumps."""
    return torch.from_numpy(np.unwrap(torch.atan2(poses[:, 1, 0], poses[:, 0, 0]).numpy()))


def _plane_frame(plane: tuple[float, ...]) -> Float[Tensor, "4 4"]:
    """plane_from_world: z along the plane's normal from the plane, x and y as near to the world's as can be."""
    normal = np.asarray(plane[:3], float)
    size = np.linalg.norm(normal)
    up, height = (normal / size, plane[3] / size) if normal[2] >= 0 else (-normal / size, -plane[3] / size)
    x = np.array([1.0, 0, 0]) - up[0] * up
    x /= np.linalg.norm(x)
    return transform_from(
        torch.from_numpy(np.stack([x, np.cross(up, x), up])), torch.tensor([0.0, 0.0, height], dtype=torch.float64)
    )


def _stick(skin: Gaussians, poses: Float[Tensor, "T 4 4"], height: float) -> tuple[Float[Tensor, "T 2"], float]:
    """Where the longest axis of a stick passes a height [T,2], and the radius of its lower half."""
    means = skin.means.double()
    middle = means.mean(0)
    axis = torch.linalg.svd(means - middle, full_matrices=False).Vh[0]
    along = (means - middle) @ axis
    off = (means - middle - along[:, None] * axis).norm(dim=-1)
    down = (poses[0, :3, :3] @ axis)[2] < 0
    low = along > along.median() if bool(down) else along < along.median()
    at, way = poses[:, :3, :3] @ middle + poses[:, :3, 3], poses[:, :3, :3] @ axis
    path = at + ((height - at[:, 2]) / way[:, 2])[:, None] * way
    return path[:, :2], float(off[low].quantile(0.9))


def smoothed(path: Float[Tensor, "T 2"], width: float) -> Float[Tensor, "T 2"]:
    """A path averaged over some steps."""
    from scipy import ndimage

    return torch.from_numpy(ndimage.gaussian_filter1d(path.numpy(), width, axis=0, mode="nearest"))
