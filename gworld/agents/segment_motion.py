"""Which points move as one: rigid bodies among trajectories, found without being told how many there are or where.

Points that stay where they are belong to the scene. Of the rest, three neighbours suggest a motion (the best rigid
transform from a reference frame to every other one, by Kabsch 1976), all points vote, the winner is refitted to its
voters and taken out, until nothing is left that moves together. Bodies that one motion explains are joined again.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gworld.agents.options import MotionOptions
from gworld.errors import InputError
from gworld.files import check_count, existing_file
from gworld.geometry import invert_transform, transform_from
from gworld.scene.world import World

FRAMES = 16
"""Frames, spread over the recording, in which motions are compared."""
VOTERS = 3000
"""Points that vote on a motion; the rest is sorted in afterwards."""
BATCH = 16
MOST_BYTES = 4 << 30


@dataclass(frozen=True, eq=False)
class Motions:
    """labels [N]: 0 the scene, 1..K the moving bodies, largest first, -1 points that fit none; world_from_first
    [T,K+1,4,4]: each body's motion from the reference frame on (identity for the scene, NaN where too few of its points
    are seen); noise in metres; reference frame."""

    labels: Int[Tensor, " N"]
    world_from_first: Float[Tensor, "T _ 4 4"]
    noise: float
    reference: int


def cluster_motion(
    tracks: Float[Tensor, "T N 3"],
    options: MotionOptions = MotionOptions(),  # noqa: B008 (frozen)
) -> Motions:
    """Rigid bodies among N trajectories over T frames (metres, world axes; NaN where a point is not seen).

    The reference frame is the one in which most points are seen. Points not seen there are sorted in by where they go
    later. Raises `InputError` for fewer than two frames, or tracks of which hardly any is seen twice.
    """
    if tracks.ndim != 3 or len(tracks) < 2 or tracks.shape[2] != 3:
        raise InputError(f"tracks of shape {list(tracks.shape)} were given; [T,N,3] with two frames or more is needed.")
    tracks = tracks.double()
    seen = torch.isfinite(tracks).all(-1)
    if not bool((seen.sum(0) >= 2).any()):
        raise InputError("no point of the tracks is seen in two frames; track them through the recording.")
    reference = int(seen.sum(1).argmax())
    rows = torch.linspace(0, len(tracks) - 1, min(FRAMES, len(tracks))).round().long().unique()
    noise = options.noise or _jitter(tracks, seen)
    travel = _travel(tracks, seen)
    labels = torch.full((tracks.shape[1],), -1, dtype=torch.int64)
    labels[(travel < max(options.least_travel, 4 * noise)) & (seen.sum(0) >= 2)] = 0
    generator = torch.Generator().manual_seed(options.seed)
    near = 3.5 * noise
    bodies: list[Tensor] = []
    free = (labels < 0) & seen[reference]
    for _ in range(options.most_bodies):
        if int(free.sum()) < options.least_points:
            break
        body = _largest(tracks[rows], seen[rows], tracks[reference], free, near, options, generator)
        if body is None:
            break
        bodies.append(body)
        free &= ~body
    bodies = _joined(tracks[rows], seen[rows], tracks[reference], bodies, near)
    bodies.sort(key=lambda body: -int(body.sum()))
    poses = torch.eye(4, dtype=torch.float64).expand(len(tracks), len(bodies) + 1, 4, 4).clone()
    for number, body in enumerate(bodies, 1):
        poses[:, number] = _motion(tracks, seen, tracks[reference], body)
    labels = _sorted_in(tracks, seen, labels, bodies, poses, near)
    return Motions(labels, poses, noise, reference)


def rows_by_motion(
    world: World, points: Float[Tensor, "P 3"], labels: Int[Tensor, " P"], *, within: float = 0.05, votes: int = 5
) -> Int[Tensor, " N"]:
    """The body [N] of each static Gaussian: what most of the `votes` nearest labelled points are, -1 with none within
    `within` metres.

    points are where the tracked ones stood when the world was made; where one is tracked for each Gaussian, its own
    label counts.
    """
    from scipy.spatial import cKDTree

    static = world.gaussians.links == 0
    whole = torch.full((len(static),), -1, dtype=torch.int64)
    if len(points) == len(static):
        whole[static] = labels[static]
        return whole
    usable = torch.isfinite(points).all(1) & (labels >= 0)
    known, names = points[usable].double(), labels[usable]
    count = min(votes, len(known))
    if count == 0:
        return whole
    places = world.gaussians.means[static].double().numpy()
    distance, index = cKDTree(known.numpy()).query(places, k=[*range(1, count + 1)], distance_upper_bound=within)
    near = torch.isfinite(torch.from_numpy(distance))
    voted = names[torch.from_numpy(index.clip(max=len(known) - 1))]
    counts = torch.zeros(len(places), int(names.max()) + 1)
    counts.scatter_add_(1, voted, near.float())
    whole[static] = torch.where(near.any(1), counts.argmax(1), torch.full((len(places),), -1))
    return whole


def read_tracks(path: str | Path) -> Float[Tensor, "T N 3"]:
    """Trajectories from an .npy file, or the array `points` of an .npz; raises `InputError` for anything else."""
    file = existing_file(path)
    try:
        with open(file, "rb") as stream:
            if file.suffix.lower() != ".npz":
                return _read_array(stream, file.stat().st_size, str(file))
            with zipfile.ZipFile(stream) as archive:
                entry = archive.getinfo("points.npy")
                if entry.file_size > MOST_BYTES or entry.file_size > 1100 * max(entry.compress_size, 1):
                    raise InputError(f"`{file}` unpacks to {entry.file_size} bytes; at most {MOST_BYTES} are read.")
                with archive.open(entry) as part:
                    return _read_array(part, entry.file_size, str(file))
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise InputError(f"`{file}` holds no array `points`: {error!s:.200}. Write it with numpy.savez.") from error


def _read_array(stream: IO[bytes] | zipfile.ZipExtFile, size: int, source: str) -> Float[Tensor, "T N 3"]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, order, kind = read(stream)
    if len(shape) != 3 or shape[2] != 3 or kind.kind != "f" or order:
        raise InputError(f"`{source}` holds {kind} of shape {list(shape)}; numbers [T,N,3] in C order are needed.")
    count = math.prod(shape)
    check_count(count, kind.itemsize, size, source, "numbers")
    values = np.frombuffer(stream.read(count * kind.itemsize), kind)
    if len(values) != count or np.isinf(values).any():
        raise InputError(f"`{source}` is cut off, or holds infinity; NaN marks what was not seen.")
    return torch.from_numpy(values.astype(np.float64).reshape(shape))


def _jitter(tracks: Tensor, seen: Tensor) -> float:
    """The points' scatter from the second differences of their paths, which smooth motion hardly has (6 sigma^2)."""
    bends = tracks[2:] - 2 * tracks[1:-1] + tracks[:-2]
    whole = bends[seen[2:] & seen[1:-1] & seen[:-2]]
    if len(whole) < 30:
        return 0.002
    return max(float(whole.abs().median()) / 0.6745 / 6**0.5, 1e-4)


def _travel(tracks: Tensor, seen: Tensor) -> Float[Tensor, " N"]:
    """How far each point gets from where it was seen first (90th percentile: one bad frame counts little)."""
    first = seen.int().argmax(0)
    start = tracks[first, torch.arange(tracks.shape[1])]
    away = (tracks - start).norm(dim=-1)
    return torch.nan_to_num(away.nanquantile(0.9, dim=0), nan=0.0)


def _largest(
    tracks: Tensor,
    seen: Tensor,
    start: Tensor,
    free: Bool[Tensor, " N"],
    near: float,
    options: MotionOptions,
    generator: torch.Generator,
) -> Bool[Tensor, " N"] | None:
    """The free points that the motion with the most followers explains; None when too few follow any."""
    rows = free.nonzero()[:, 0]
    voters = rows[torch.randperm(len(rows), generator=generator)[:VOTERS]]
    neighbours = _neighbours(start[voters], 24)
    best, most = None, 0
    for _ in range(0, options.trials, BATCH):
        seeds = torch.randint(len(voters), (BATCH,), generator=generator)
        pick = torch.randint(1, neighbours.shape[1], (BATCH, 3), generator=generator)
        triple = torch.cat([seeds[:, None], neighbours[seeds[:, None], pick]], dim=1)
        poses = _kabsch(tracks[:, voters[triple]].transpose(0, 1), seen[:, voters[triple]].transpose(0, 1),
                        start[voters[triple]])  # fmt: skip
        off = _misfit(tracks[:, voters], seen[:, voters], start[voters], poses)
        votes = (off < near).sum(1)
        if int(votes.max()) > most:
            most, best = int(votes.max()), poses[int(votes.argmax())]
    if best is None or most < min(options.least_points, len(voters)):
        return None
    body = torch.zeros_like(free)
    for _ in range(4):
        inside = _misfit(tracks[:, rows], seen[:, rows], start[rows], best[None])[0] < near
        if int(inside.sum()) < options.least_points:
            return None
        body = torch.zeros_like(free)
        body[rows[inside]] = True
        best = _motion(tracks, seen, start, body)
    return body


def _neighbours(points: Float[Tensor, "M 3"], count: int) -> Int[Tensor, "M k"]:
    from scipy.spatial import cKDTree

    _, index = cKDTree(points.numpy()).query(points.numpy(), k=[*range(1, min(count, len(points)) + 1)])
    return torch.from_numpy(index)


def _motion(tracks: Tensor, seen: Tensor, start: Tensor, body: Tensor) -> Float[Tensor, "T 4 4"]:
    """The rigid motion of a body's points from the reference frame to each frame."""
    usable = body & torch.isfinite(start).all(1)
    return _kabsch(tracks[None, :, usable], seen[None, :, usable], start[usable][None])[0]


def _kabsch(
    there: Float[Tensor, "B T M 3"], seen: Bool[Tensor, "B T M"], start: Float[Tensor, "B M 3"]
) -> Float[Tensor, "B T 4 4"]:
    """The rotations and shifts that bring `start` nearest to where its points are seen; NaN with fewer than three."""
    weight = seen.double()[..., None]
    total = weight.sum(-2).clamp_min(1e-9)
    there = torch.nan_to_num(there)
    here = start[:, None].expand_as(there)
    middle_here, middle_there = (here * weight).sum(-2) / total, (there * weight).sum(-2) / total
    a, b = (here - middle_here[..., None, :]) * weight, there - middle_there[..., None, :]
    u, _, vt = torch.linalg.svd(b.mT @ a)
    sign = torch.ones_like(middle_here)
    sign[..., 2] = torch.linalg.det(u @ vt)
    turn = u @ (sign[..., None] * vt)
    pose = transform_from(turn, middle_there - (turn @ middle_here[..., None])[..., 0])
    return torch.where((seen.sum(-1) >= 3)[..., None, None], pose, torch.nan)


def _misfit(
    tracks: Float[Tensor, "T M 3"], seen: Bool[Tensor, "T M"], start: Float[Tensor, "M 3"],
    poses: Float[Tensor, "B T 4 4"],
) -> Float[Tensor, "B M"]:  # fmt: skip
    """How far off points are under motions: root mean square over the frames in which both are known."""
    moved = torch.einsum("btij,mj->btmi", poses[..., :3, :3], start) + poses[..., None, :3, 3]
    square = (moved - tracks).square().sum(-1)
    known = torch.isfinite(square)
    mean = torch.nan_to_num(square).sum(1) / known.sum(1).clamp_min(1)
    return torch.where(known.sum(1) >= 2, (mean / 3).sqrt(), torch.inf)


def _joined(tracks: Tensor, seen: Tensor, start: Tensor, bodies: list[Tensor], near: float) -> list[Tensor]:
    """Bodies of which one motion explains both are one."""
    merged = True
    while merged:
        merged = False
        for a in range(len(bodies)):
            for b in range(a + 1, len(bodies)):
                union = bodies[a] | bodies[b]
                pose = _motion(tracks, seen, start, union)[None]
                rows = union.nonzero()[:, 0]
                if float((_misfit(tracks[:, rows], seen[:, rows], start[rows], pose)[0] < near).double().mean()) > 0.9:
                    bodies = [body for row, body in enumerate(bodies) if row not in (a, b)] + [union]
                    merged = True
                    break
            if merged:
                break
    return bodies


def _sorted_in(
    tracks: Tensor, seen: Tensor, labels: Tensor, bodies: list[Tensor], poses: Tensor, near: float
) -> Int[Tensor, " N"]:
    """Labels of all points: those that voted for no body, and those not seen in the reference frame, by what fits."""
    labels = labels.clone()
    for number, body in enumerate(bodies, 1):
        labels[body] = number
    left = (labels < 0).nonzero()[:, 0]
    if not len(left) or not bodies:
        return labels
    first = seen[:, left].int().argmax(0)  # carried back to the reference frame under each body's motion
    seen_first = tracks[first, left]
    off = []
    for number in range(len(bodies) + 1):
        back = invert_transform(poses[:, number])[first]
        start = (back[:, :3, :3] @ seen_first[..., None])[..., 0] + back[:, :3, 3]
        off.append(_misfit(tracks[:, left], seen[:, left], start, poses[None, :, number])[0])
    best, which = torch.stack(off).min(0)
    labels[left] = torch.where(best < 1.5 * near, which, torch.full_like(which, -1))
    return labels
