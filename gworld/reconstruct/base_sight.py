"""A robot of known joint values as a root would let it be seen: drawn, compared with pictures, and differentiated.

Every pixel's residuals are its colour, against the robot drawn over the plate (what stands behind), and the drawn
opacity, against how surely the pixel shows something else than the plate. The derivative is taken from pictures of
roots moved to either side: exact at outlines, where opacity, not colour, moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gworld.agents.kinematics import forward_kinematics
from gworld.agents.skinning import SkinOptions, skin_robot
from gworld.agents.tree import Skeleton
from gworld.errors import InputError
from gworld.geometry import se3_exp
from gworld.reconstruct.motion_film import Film, Level, Plates, Shot, levels_of, shot_at
from gworld.reconstruct.options import LookOptions
from gworld.render.api import RenderOptions
from gworld.render.select import render
from gworld.scene.cameras import Cameras
from gworld.scene.gaussians import Gaussians, select_gaussians
from gworld.scene.harmonics import C0

COLOUR, OUTLINE, TURN = 0.12, 0.45, 3.0
"""Residuals of colour (0..1) and opacity that count as one; their squared sum at which a pixel counts half."""
DOUBT = 0.25
"""How much colours count before they are learned from the pictures."""
PITCH = 0.4
"""Pixels by which the robot's rim is moved to either side for the derivative."""
ALIKE = 24.0
"""Full-size pixels that err alike: as many count as one."""
MARGIN, NEAR, BEHIND = 8, 0.05, 0.02
"""Pixels around the robot that are compared too; metres before a camera; by which the scene must be nearer to hide."""
COARSE, COARSE_INSTANTS, BATCH = 60, 3, 48
"""Pixels across of the smallest pictures; instants that are looked at in them; roots drawn at once."""
SHARP = RenderOptions(antialiased=True)
"""Outlines that are no wider on small pictures."""
UNKNOWN = 0.8
"""Colour residual per channel of a plate that was never seen: between that of a fitting robot and of a wrong one."""
STUCK = 0.5
"""How much an unchanged pixel under the robot counts before plates from its own footage: they may show parts of it."""
MOVING = 1e-3
"""A link whose pose in the robot's root changes by less never moves."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Sighting:
    """The robot's Gaussians, its links' poses in its root per instant, the pictures at each size, its middle in the
    root and how far it reaches (m), how much colours count, and how much it does that nothing changed under it."""

    gaussians: Gaussians
    base_from_link: Float[Tensor, "K L 4 4"]
    levels: dict[int, Level]
    shots: dict[int, list[Shot]]
    middle: Float[Tensor, " 3"]
    radius: float
    colour: float = DOUBT
    blind: float = 1.0


def open_sighting(
    skeleton: Skeleton,
    values: Tensor,
    times: Tensor,
    films: list[Film],
    cameras: Cameras,
    plates: Plates,
    options: LookOptions,
    whole: bool,
) -> Sighting:
    """Pictures at all sizes of instants with postures far from each other, and the robot in them.

    Raises `InputError` for cameras that move, joints that are all unknown, and robots that never move where they must.
    """
    if cameras.model != "pinhole" or any(cameras.links):
        raise InputError("looking for a robot needs pinhole cameras that stand still; undistort the footage first.")
    rows = _instants(values, options.instants)
    base_from_link = forward_kinematics(skeleton, values[rows].double())
    gaussians = skin_robot(skeleton, SkinOptions(per_square_metre=options.density))
    if not whole:
        moves = (base_from_link - base_from_link[:1]).abs().amax((0, 2, 3)) > MOVING
        gaussians = select_gaussians(gaussians, moves[gaussians.links.long()])
        if not len(gaussians):
            raise InputError(
                "the robot's joints never move in this recording, so that nothing tells it from the scene behind it. "
                "Take another episode, or plates without the robot."
            )
    coarsest = max(options.finest, 2 ** max(0, round(math.log2(min(cameras.width, cameras.height) / COARSE))))
    shrinks = tuple(sorted({options.finest, *(s for s in (32, 16, 8, 4, 2, 1) if options.finest <= s <= coarsest)}))
    levels = levels_of(cameras, plates, shrinks)
    clock = times.double()[rows].tolist()
    shots = {shrink: [shot_at(films, time, level) for time in clock] for shrink, level in levels.items()}
    posed = base_from_link[:, gaussians.links.long()[::7]]
    points = (posed[..., :3, :3] @ gaussians.means[::7, :, None].double())[..., 0] + posed[..., :3, 3]
    middle = points.mean((0, 1))
    radius = float((points - middle).norm(dim=-1).quantile(0.95)) if points.shape[1] < 100_000 else 1.0
    return Sighting(gaussians, base_from_link, levels, shots, middle, max(radius, 0.02), blind=1.0 if whole else STUCK)


def _instants(values: Tensor, count: int) -> list[int]:
    """Rows with postures far from each other, the first one first (farthest-point sampling)."""
    usable = torch.isfinite(values).all(dim=1).nonzero()[:, 0]
    if not len(usable):
        raise InputError("no instant of the recording has all joint values. Record the joints beside the video.")
    known = values[usable].double()
    chosen, apart = [0], (known - known[0]).norm(dim=1)
    while len(chosen) < min(count, len(usable)):
        row = int(apart.argmax())
        if row in chosen:
            break
        chosen.append(row)
        apart = torch.minimum(apart, (known - known[row]).norm(dim=1))
    return usable[chosen].tolist()


def shifted(sight: Sighting, base: Tensor, steps: Float[Tensor, "W 6"]) -> Float[Tensor, "W 4 4"]:
    """The root moved by steps in metres: shifts, then turns about the robot's middle, as its rim feels them."""
    middle = torch.eye(4, dtype=torch.float64)
    middle[:3, 3] = sight.middle
    turned = steps / torch.tensor([1.0] * 3 + [sight.radius] * 3, dtype=torch.float64)
    return base @ middle @ se3_exp(turned) @ torch.linalg.inv(middle)


def normal_equations(sight: Sighting, shrink: int, base: Tensor) -> tuple[Tensor, Tensor, float]:
    """Gradient and Gauss-Newton matrix by the six steps, and how far (m) the root was moved to either side."""
    level = sight.levels[shrink]
    pitch = PITCH * _metres_per_pixel(sight, level, base)
    sides = pitch * torch.eye(6, dtype=torch.float64)
    bases = torch.cat([base[None], shifted(sight, base, sides), shifted(sight, base, -sides)])
    gradient, matrix = torch.zeros(6, dtype=torch.float64), torch.zeros(6, 6, dtype=torch.float64)
    for instant, camera, box in boxes_of(sight, shrink, bases):
        residual, _ = residuals_of(sight, shrink, bases, instant, camera, box)
        here = residual[0]
        root = (1 + here.square().sum(-1) / TURN).pow(-0.25)[..., None]  # the square root of the robust weight
        rows = ((residual[1:7] - residual[7:]) / (2 * pitch) * root).reshape(6, -1).double()
        gradient += rows @ (here * root).reshape(-1).double()
        matrix += rows @ rows.T
    share = max(1.0, ALIKE / shrink**2)
    return gradient / share, matrix / share, pitch


def costs_of(sight: Sighting, shrink: int, bases: Float[Tensor, "W 4 4"], *, everything: bool) -> Float[Tensor, " W"]:
    """Robust squares of roots, beyond those of the bare plates; of few instants unless `everything` is asked for."""
    total = torch.zeros(len(bases), dtype=torch.float64)
    for first in range(0, len(bases), BATCH):
        rows = slice(first, first + BATCH)
        for instant, camera, box in boxes_of(sight, shrink, bases[rows], None if everything else COARSE_INSTANTS):
            residual, _ = residuals_of(sight, shrink, bases[rows], instant, camera, box)
            bare = bare_residuals(sight, shrink, instant, camera, box)
            total[rows] += (robust(residual.square().sum(-1)) - robust(bare.square().sum(-1))).sum((1, 2)).double()
    return total / (2 * max(1.0, ALIKE / shrink**2))


def boxes_of(sight: Sighting, shrink: int, bases: Tensor, instants: int | None = None) -> list[tuple[int, int, Box]]:
    """Instants and cameras that see any of the roots' robots, and where in their pictures."""
    level, found = sight.levels[shrink], []
    rows = sight.gaussians.links.long()[::5]
    means = sight.gaussians.means[::5].double()
    width, height = level.cameras.width, level.cameras.height
    for instant in range(len(sight.base_from_link))[:instants]:
        posed = sight.base_from_link[instant][rows]
        points = (posed[:, :3, :3] @ means[..., None])[..., 0] + posed[:, :3, 3]
        for camera in range(len(level.cameras)):
            eye = level.eyes[camera] @ bases
            local = points @ eye[:, :3, :3].mT + eye[:, None, :3, 3]
            local = local[local[..., 2] > NEAR]
            K = level.cameras.K[camera].double()
            pixels = local[:, :2] / local[:, 2:] * K.diagonal()[:2] + K[:2, 2]
            inside = ((pixels > -MARGIN) & (pixels < pixels.new_tensor([width, height]) + MARGIN)).all(-1)
            if not bool(inside.any()):
                continue
            low, high = pixels[inside].amin(0), pixels[inside].amax(0)
            left, top = (max(0, int(value) - MARGIN) for value in low)
            right, bottom = (min(end, int(v) + 1 + MARGIN) for v, end in zip(high, (width, height), strict=True))
            if bottom > top and right > left:
                found.append((instant, camera, (top, left, bottom, right)))
    return found


def residuals_of(
    sight: Sighting, shrink: int, bases: Tensor, instant: int, camera: int, box: Box
) -> tuple[Float[Tensor, "W h w 4"], Float[Tensor, "W h w"]]:
    """Residuals and opacity of W roots in one picture's box."""
    level, shot = sight.levels[shrink], sight.shots[shrink][instant]
    rgb, alpha, _ = _drawn(sight, shrink, bases, instant, camera, box)
    part = (camera, slice(box[0], box[2]), slice(box[1], box[3]))
    known, seen = level.known[part], shot.rgb[part]
    bare = (shot.behind[part] - seen) * known[..., None] + UNKNOWN * COLOUR * (1 - known[..., None])
    colour = rgb - alpha[..., None] * seen + (1 - alpha)[..., None] * bare
    outline = alpha - shot.other[part]
    outline = torch.where(outline > 0, sight.blind * outline, outline) * known / OUTLINE
    return torch.cat([colour * (sight.colour / COLOUR), outline[..., None]], dim=-1), alpha


def _drawn(
    sight: Sighting, shrink: int, bases: Tensor, instant: int, camera: int, box: Box, *, links: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Colours times opacity [W,h,w,3], opacity [W,h,w] and links in front [W,h,w] of W roots in a box."""
    level = sight.levels[shrink]
    top, left, bottom, right = box
    K = level.cameras.K[camera : camera + 1].clone()
    K[:, 0, 2] -= left
    K[:, 1, 2] -= top
    view = replace(level.cameras[camera], K=K, width=right - left, height=bottom - top, names=(), links=())
    outputs = ["rgb", "alpha", *(["depth"] if level.shield is not None else []), *(["link_id"] if links else [])]
    poses = (bases[:, None] @ sight.base_from_link[instant]).float()
    with torch.no_grad():
        shown = render(sight.gaussians, poses, view, outputs=outputs, options=SHARP)
    assert shown.rgb is not None and shown.alpha is not None
    rgb, alpha = shown.rgb[:, 0], shown.alpha[:, 0]
    if level.shield is not None and shown.depth is not None:
        free = (shown.depth[:, 0] < level.shield[camera, top:bottom, left:right] + BEHIND).float()
        rgb, alpha = rgb * free[..., None], alpha * free
    return rgb, alpha, None if shown.link_id is None else shown.link_id[:, 0]


def bare_residuals(sight: Sighting, shrink: int, instant: int, camera: int, box: Box) -> Float[Tensor, "h w 4"]:
    """The residuals of a box without any robot."""
    level, shot = sight.levels[shrink], sight.shots[shrink][instant]
    part = (camera, slice(box[0], box[2]), slice(box[1], box[3]))
    known = level.known[part][..., None]
    colour = (shot.behind[part] - shot.rgb[part]) * known + UNKNOWN * COLOUR * (1 - known)
    return torch.cat([colour * (sight.colour / COLOUR), -shot.other[part][..., None] * known / OUTLINE], dim=-1)


def robust(square: Tensor) -> Tensor:
    """Charbonnier's function: squares near zero, straight lines far out."""
    return 2 * TURN * ((1 + square / TURN).sqrt() - 1)


def painted(sight: Sighting, base: Tensor, shrink: int) -> Sighting:
    """The robot in the colours of the pictures: each link's is shifted by the median of what its pixels differ by."""
    shown: list[Tensor] = []
    owners: list[Tensor] = []
    level = sight.levels[shrink]
    for instant, camera, box in boxes_of(sight, shrink, base[None]):
        rgb, alpha, front = _drawn(sight, shrink, base[None], instant, camera, box, links=True)
        assert front is not None
        seen = sight.shots[shrink][instant].rgb[camera, box[0] : box[2], box[1] : box[3]]
        sure: Bool[Tensor, "h w"] = alpha[0] > 0.95
        shown.append((seen - rgb[0])[sure])
        owners.append(front[0][sure])
    sh = sight.gaussians.sh.clone()
    apart, owner = (torch.cat(parts) if parts else torch.zeros(0, 3) for parts in (shown, owners))
    for link in sight.gaussians.links.unique().tolist():
        pixels = apart[owner == link] if len(apart) else apart
        if len(pixels) * level.shrink**2 > 100:
            sh[sight.gaussians.links == link, 0] += pixels.median(0).values / C0
    return replace(sight, gaussians=replace(sight.gaussians, sh=sh), colour=1.0)


def _metres_per_pixel(sight: Sighting, level: Level, base: Tensor) -> float:
    """The size of a pixel at the robot's middle, of the camera that sees it largest."""
    middle = base[:3, :3] @ sight.middle + base[:3, 3]
    depth = level.eyes[:, 2, :3] @ middle + level.eyes[:, 2, 3]
    sizes = depth / level.cameras.K[:, 0, 0].double()
    sizes = sizes[depth > NEAR]
    return float(sizes.amin()) if len(sizes) else 0.01
