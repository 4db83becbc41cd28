"""Floaters: Gaussians that hang in free space, where the cameras see through to the surface behind.

Each Gaussian is judged by the training views whose picture holds its centre. D is the mean depth there of all others
(blended as they are drawn, its own light taken out), z its own depth, and the margin `tolerance` D, plus two standard
deviations of it along the ray, plus `SPREAD` standard deviations of the others' depths: a surface that the fit made of
several faint layers is thick, but what lies in its front layer does not hang in the air.

    through   z < D - margin: the view sees a surface behind it;   on   |z - D| <= margin: it lies on what is seen
    pierced   views through / views (through or on), where at least `least_views` see through it
    close     it gives light to fewer than `least_views` views and lies nearer than `close` of their median depth:
              nothing but its own picture holds it up
    island    it belongs to a clump of touching Gaussians that touches nothing else, gives less than `island` of all
              light, and is surrounded by empty space: of 14 points around each member, at `SHELL` times its reach, some
              view sees past `EMPTY` of them. A solid that hangs freely stays: half of those points lie inside it

A floater is pierced in more than `limit` of the views, close, or on an island. The score is the share of all rendered
light (blend weights summed over pixels and views) that floaters give: 0 for a clean surface, 0.02 when one fiftieth of
the pictures hangs in the air. Gaussians that give less than `FAINT` pixels of light in all views are `unseen`, and no
floaters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gworld.geometry import invert_transform, transform_points
from gworld.reconstruct.contribution import LONGEST, Glimpse, Masks, glimpses, light_shares, poses_by_view
from gworld.reconstruct.coverage import ARRIVES
from gworld.render.api import RenderOptions
from gworld.render.projection import pose_of_gaussians, scaled_axes
from gworld.render.select import render
from gworld.scene.cameras import Cameras, project_points
from gworld.scene.gaussians import Gaussians, select_gaussians
from gworld.scene.harmonics import C0

NEIGHBOURS = 16
REACH = 2.0
"""Standard deviations (of its longest axis) within which a Gaussian touches its neighbour's."""
SHELL, EMPTY, FAINT = 1.5, 0.7, 0.1
SPREAD = 1.5
OTHERS = 0.3
"""Opacity of all others at a pixel from which on they count as a surface."""
DIRECTIONS = np.array(
    [[x, y, z] for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if abs(x) + abs(y) + abs(z) in (1, 3)],
    np.float64,
)
"""Six faces and eight corners of a cube."""


@dataclass(frozen=True)
class FloaterOptions:
    """When a Gaussian counts as hanging in free space."""

    tolerance: float = 0.04
    """Part of the depth by which a surface must lie behind a Gaussian for it to be in front."""
    limit: float = 0.5
    """Share of views that see through it beyond which it is a floater."""
    least_views: int = 2
    """Views that must see through it, or give it a hold."""
    close: float = 0.25
    """Part of the median depth below which a Gaussian that one view alone sees is a floater."""
    island: float = 0.05
    """Share of all light below which a clump in empty space is a floater and no thing of its own."""


@dataclass(frozen=True)
class Floaters:
    """What hangs in the air.

    score is the share of light that floaters give; rows [N] tells which Gaussians they are; light [N] is the sum of
    blend weights over all views (pixels); unseen [N] tells who gives next to none; marks counts rows by their sign.
    """

    score: float
    rows: Bool[Tensor, " N"]
    light: Float[Tensor, " N"]
    unseen: Bool[Tensor, " N"]
    marks: dict[str, int]


def find_floaters(
    gaussians: Gaussians,
    cameras: Sequence[Cameras],
    options: FloaterOptions = FloaterOptions(),
    *,
    masks: Masks | None = None,
    world_from_link: Float[Tensor, "L 4 4"] | None = None,
    drawn: RenderOptions = RenderOptions(),  # noqa: B008 (frozen)
    longest: int = LONGEST,
    backend: str = "auto",
) -> Floaters:
    """Judge every Gaussian by the views it was fitted to (`cameras` one by one, see `contribution.glimpses`).

    Links stand still at `world_from_link`. About two pictures per camera are drawn, at most `longest` pixels wide.
    """
    poses = poses_by_view(gaussians, world_from_link, 1)[0]
    clumps = _find_clumps(gaussians, poses)
    count = len(gaussians)
    light = torch.zeros(count)
    through, on, holds = (torch.zeros(count, dtype=torch.int32) for _ in range(3))
    close = torch.zeros(count, dtype=torch.bool)
    empty = torch.zeros(len(clumps.rows), len(DIRECTIONS), dtype=torch.bool)
    looks = glimpses(
        gaussians, cameras, masks=masks, world_from_link=poses, options=drawn, longest=longest, backend=backend
    )
    for look in looks:
        light += look.weights.cpu()
        shares = light_shares(gaussians, look, drawn)
        arrived = (shares >= ARRIVES).cpu()
        depth, inside, surface, margin = (part.cpu() for part in _depths(gaussians, look, shares, options, backend))
        front, level = inside & (depth < surface - margin), inside & ((depth - surface).abs() <= margin)
        through, on, holds = through + front.int(), on + level.int(), holds + arrived.int()
        covered = look.depth[look.alpha >= 0.5]
        if len(covered):
            close |= arrived & (depth < options.close * covered.median().cpu())
        empty |= _empty_around(clumps, look, options)
    return _judge(options, light, through, on, (holds < options.least_views) & close, (clumps, empty))


def drop_floaters(gaussians: Gaussians, floaters: Floaters, *, unseen: bool = False) -> tuple[Gaussians, Tensor]:
    """The Gaussians that are no floaters (nor unseen, if these may go too), and the rows `[N]` that were kept."""
    keep = ~(floaters.rows | floaters.unseen) if unseen else ~floaters.rows
    return select_gaussians(gaussians, keep.to(gaussians.device)), keep


@dataclass(frozen=True)
class _Clumps:
    """Groups of touching Gaussians but the largest: `rows [M]` who is in one, `group [M]` which, centres, reach."""

    rows: Int[Tensor, " M"]
    group: Int[Tensor, " M"]
    centres: Float[Tensor, "M 3"]
    reach: Float[Tensor, " M"]


def _judge(
    options: FloaterOptions, light: Tensor, through: Tensor, on: Tensor, close: Tensor, clumped: tuple[_Clumps, Tensor]
) -> Floaters:
    clumps, empty = clumped
    total = float(light.sum())
    pierced = (through >= options.least_views) & (through > options.limit * (through + on))
    island = torch.zeros_like(pierced)
    if len(clumps.rows):
        groups = int(clumps.group.max()) + 1
        glow = torch.zeros(groups).index_add_(0, clumps.group, light[clumps.rows])
        share = torch.zeros(groups).index_add_(0, clumps.group, empty.float().mean(1))
        share /= torch.bincount(clumps.group, minlength=groups)
        island[clumps.rows] = ((share >= EMPTY) & (glow < options.island * total))[clumps.group]
    unseen = light < FAINT
    rows = (pierced | close | island) & ~unseen
    found = {"pierced": pierced, "close": close, "island": island}
    marks = {name: int((sign & ~unseen).sum()) for name, sign in found.items()}
    return Floaters(float(light[rows].sum()) / total if total > 0 else 0.0, rows, light, unseen, marks)


def _depths(
    gaussians: Gaussians, look: Glimpse, shares: Float[Tensor, " N"], options: FloaterOptions, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each Gaussian: its depth, whether others make a surface where its centre falls, their mean depth there, and
    the margin. `shares` [N] are how much of its light arrives."""
    camera_from_link = invert_transform(look.camera.world_from_camera[0]).to(look.poses) @ look.poses
    pose = pose_of_gaussians(gaussians, camera_from_link)
    centre = transform_points(pose, gaussians.means[:, None])[:, 0]
    pixels = centre @ look.camera.K[0].T.to(centre)
    own = gaussians.opacity_logits.sigmoid() * shares.to(centre)
    inside, others, surface, spread = _others(
        gaussians, look, centre[:, 2], pixels[:, :2] / pixels[:, 2:], own, backend
    )
    ray = torch.nn.functional.normalize(centre, dim=1)
    along = ((pose[:, :3, :3] @ scaled_axes(gaussians)).transpose(1, 2) @ ray[..., None])[..., 0].norm(dim=1)
    return centre[:, 2], inside & (others >= OTHERS), surface, options.tolerance * surface + 2 * along + SPREAD * spread


def _others(
    gaussians: Gaussians, look: Glimpse, depth: Tensor, pixels: Tensor, own: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """At the pixel of each Gaussian's centre: whether it lies in the picture, and the opacity, mean depth and standard
    deviation of depth of all others. Depths are drawn as colours, so that they blend as the picture does."""
    far = float(depth[look.weights > 0].max()) if bool((look.weights > 0).any()) else 1.0
    share = (depth / far).clamp(0, 1)
    colours = torch.stack([share, share**2, torch.ones_like(share)], dim=1)
    painted = replace(gaussians, sh=((colours - 0.5) / C0)[:, None])
    out = render(painted, look.poses, look.camera, outputs=("rgb",), backend=backend)
    assert out.rgb is not None
    height, width = look.depth.shape
    column, row = pixels.nan_to_num(-1.0).clamp(-1.0, 1e6).floor().long().unbind(-1)
    inside = (depth > 0) & (column >= 0) & (row >= 0) & (column < width) & (row < height)
    sums = out.rgb[0, 0].detach()[row.clamp(0, height - 1), column.clamp(0, width - 1)].to(depth)
    sums = sums - own[:, None] * colours
    others = sums[:, 2].clamp_min(1e-6)
    mean = (sums[:, 0] / others).clamp(0, 1)
    spread = (sums[:, 1] / others - mean**2).clamp_min(0).sqrt()
    return inside, sums[:, 2], far * mean, far * spread


def _sample(pixels: Float[Tensor, "N 2"], depth: Float[Tensor, " N"], look: Glimpse) -> tuple[Tensor, Tensor]:
    """Which points lie in the picture, and the least depth of the 3 x 3 pixels there, infinite without a surface."""
    height, width = look.depth.shape
    drawn = torch.where(look.alpha >= 0.5, look.depth, torch.full_like(look.depth, torch.inf))
    least = -torch.nn.functional.max_pool2d(-drawn[None], 3, stride=1, padding=1)[0]
    column, row = pixels.nan_to_num(-1.0).clamp(-1.0, 1e6).floor().long().unbind(-1)
    inside = (depth > 0) & (column >= 0) & (row >= 0) & (column < width) & (row < height)
    surface = least[row.clamp(0, height - 1), column.clamp(0, width - 1)]
    return inside, surface


def _empty_around(clumps: _Clumps, look: Glimpse, options: FloaterOptions) -> Bool[Tensor, "M D"]:
    """Which of the points around each member of a clump this view sees to be empty: the surface lies behind them."""
    if not len(clumps.rows):
        return torch.zeros(0, len(DIRECTIONS), dtype=torch.bool)
    directions = torch.nn.functional.normalize(torch.from_numpy(DIRECTIONS).float(), dim=1)
    points = clumps.centres[:, None] + SHELL * clumps.reach[:, None, None] * directions
    pixels, depth = project_points(look.camera, points.flatten(0, 1).to(look.camera.K))
    inside, surface = _sample(pixels[0], depth[0], look)
    return (inside & (depth[0] < (1 - options.tolerance) * surface)).view(len(points), -1).cpu()


def _find_clumps(gaussians: Gaussians, poses: Float[Tensor, "L 4 4"]) -> _Clumps:
    """Group Gaussians whose ellipsoids touch those of their nearest neighbours, and leave the largest group out."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    count = len(gaussians)
    if count <= NEIGHBOURS:
        none = torch.zeros(0, dtype=torch.long)
        return _Clumps(none, none, torch.zeros(0, 3), torch.zeros(0))
    pose = pose_of_gaussians(gaussians, poses)
    means = transform_points(pose, gaussians.means[:, None])[:, 0].detach().cpu().double().numpy()
    reach = REACH * gaussians.log_scales.detach().exp().amax(1).cpu().double().numpy()
    sound = np.isfinite(means).all(1) & np.isfinite(reach)
    means, reach = np.where(sound[:, None], means, 0.0), np.where(sound, reach, 0.0)
    distance, other = cKDTree(means).query(means, NEIGHBOURS + 1)
    touching = distance <= reach[:, None] + reach[other]
    first = np.broadcast_to(np.arange(count)[:, None], other.shape)[touching]
    links = coo_matrix((np.ones(len(first), bool), (first, other[touching])), (count, count))
    _, group = connected_components(links, directed=False)
    rows = np.flatnonzero((group != np.bincount(group).argmax()) & sound)
    _, group = np.unique(group[rows], return_inverse=True)
    return _Clumps(
        torch.from_numpy(rows),
        torch.from_numpy(group.astype(np.int64)),
        torch.from_numpy(means[rows]).float(),
        torch.from_numpy(reach[rows]).float(),
    )
