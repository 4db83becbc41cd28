"""Refined views written back into the Gaussians: views between the photos, what several fits show there, fitted again.

Fits of few photos agree where they are right and differ by chance where they are wrong (floaters, wrong depth): the
median of what they show, refined, is nearer to the truth than each. A round draws that between the photos, further off
from round to round, and fits photos and drawn views together; photos count more, and a bounded distortion takes up
what the drawn ones get wrong. Source of the idea that differing fits tell wrong geometry: Zhang et al., "CoR-GS", 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from gworld.errors import InputError, UsageError
from gworld.geometry import interpolate_transform
from gworld.reconstruct.appearance import AppearanceOptions
from gworld.reconstruct.fit import fit_views
from gworld.reconstruct.options import FitOptions
from gworld.reconstruct.pairs import PairOptions, Scene, cameras_at, known_scene, look
from gworld.render.video import as_uint8
from gworld.scene.cameras import Cameras
from gworld.scene.clip import Clip
from gworld.scene.views import View, Views

Refine = Callable[[Clip, Clip], Tensor]
"""(clip [T], photos) -> pictures [T,H,W,3]."""


@dataclass(frozen=True)
class RoundOptions:
    """How refined views are written back."""

    rounds: int = 1
    """How many times."""
    fits: int = 3
    """Fits that are asked in each round; the first is the one that there is."""
    views: int = 24
    """The most views drawn per round."""
    photos: int = 2
    """How many times as much a photo counts as a drawn view."""
    distortion_px: float = 1.0
    """Largest shift that the fit may explain a picture's error by, in pixels; 0 for none."""
    aside: float = 0.03
    """How far drawn views may lie off the line between photos, as a part of the distance to the scene, in the last
    round; the rounds before stay nearer."""


def write_back(
    scene: Scene,
    views: Views,
    refine: Refine,
    folder: Path,
    options: PairOptions = PairOptions(),  # noqa: B008 (frozen)
    told: RoundOptions = RoundOptions(),
) -> Iterator[Scene]:
    """The scene after each round; `views` are the photos of the fit, `options` tell steps, Gaussians and size of fits.

    `folder` keeps the drawn pictures and the fits' runs. Raises `UsageError` for options that make no sense,
    `InputError` for fewer than two photos or a scene with moving links, which a fit would lose.
    """
    if min(told.rounds, told.fits, told.views, told.photos) < 1:
        raise UsageError("rounds, fits, views and photos of `--rounds` are at least 1 each.")
    if len(views) < 2 or bool((scene.gaussians.links != 0).any()):
        raise InputError(
            "writing back needs at least two photos, and Gaussians of one still scene; refine the world before agents "
            "are bound to it."
        )
    fitted = views
    for number in range(1, told.rounds + 1):
        work = folder / f"round-{number}"
        cameras = between(views, options, told, number)
        drawn: list[Tensor] = []
        for fit in range(told.fits):
            seed = options.seed + 100 * number + fit
            asked = scene if fit == 0 else _fit(fitted, views, options, told, work / f"fit-{fit}", seed)
            drawn.append(refine(look(asked, cameras), asked.references).clamp(0, 1))
        fitted = _joined(views, cameras, torch.stack(drawn).median(0).values, told, work / "views")
        scene = _fit(fitted, views, options, told, work / "fit", options.seed + 100 * number + told.fits)
        yield scene


def between(views: Views, options: PairOptions, told: RoundOptions, number: int) -> Cameras:
    """Cameras between each photo and its two nearest, a third of the way from either."""
    photos = cameras_at(views, options.longest)
    poses = photos.world_from_camera
    eyes = poses[:, :3, 3]
    near = (torch.cdist(eyes, eyes) + 1e9 * torch.eye(len(eyes))).argsort(dim=1)[:, :2].tolist()
    joined = sorted({(min(i, j), max(i, j)) for i, row in enumerate(near) for j in row if i != j})
    ends = [(pair, share) for pair in joined for share in (1 / 3, 2 / 3)]
    rows = torch.linspace(0, len(ends) - 1, min(len(ends), told.views)).round().long().tolist()
    first, second = (torch.tensor([ends[row][0][end] for row in rows]) for end in (0, 1))
    found = interpolate_transform(poses[first], poses[second], torch.tensor([ends[row][1] for row in rows]))
    spread = told.aside * _distance(poses, views) * number / told.rounds
    random = torch.Generator().manual_seed(options.seed + number)
    found[:, :3, 3] += spread * torch.randn(len(rows), 3, generator=random)
    return replace(photos, K=photos.K[first], world_from_camera=found, names=())


def _distance(poses: Float[Tensor, "V 4 4"], views: Views) -> float:
    """How far the scene is from the cameras: the median depth of its points, or how far apart the cameras are."""
    if len(views.points) == 0:
        return float((poses[:, :3, 3] - poses[:, :3, 3].mean(0)).norm(dim=1).max().clamp_min(1e-3))
    points = views.points.to(poses)[:: max(1, len(views.points) // 1000)]
    depth = ((points[None] - poses[:, None, :3, 3]) * poses[:, None, :3, 2]).sum(-1)
    return float(depth[depth > 0].median()) if bool((depth > 0).any()) else 1.0


def _joined(views: Views, cameras: Cameras, pictures: Tensor, told: RoundOptions, folder: Path) -> Views:
    """The photos, each as often as it counts, and the drawn views as files."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [replace(view, name=f"{time}-{view.name}") for time in range(told.photos) for view in views.views]
    for row, picture in enumerate(pictures):
        path = folder / f"drawn-{row:04d}.png"
        Image.fromarray(as_uint8(picture)).save(path)
        pose = cameras.world_from_camera[row].to(views.views[0].world_from_camera)
        K = cameras.K[row].to(views.views[0].K)
        found.append(View(path.name, cameras.width, cameras.height, K, pose, image=path))
    return replace(views, views=tuple(found))


def _fit(fitted: Views, photos: Views, options: PairOptions, told: RoundOptions, run: Path, seed: int) -> Scene:
    options_of_fit = FitOptions(
        steps=options.steps, gaussians=options.gaussians, longest=options.longest, hold_out=0, score_every=0, seed=seed,
        appearance=AppearanceOptions(poses=False, distortion_px=told.distortion_px if fitted is not photos else 0.0),
    )  # fmt: skip
    return known_scene(fit_views(fitted, options_of_fit, run).gaussians, photos, options.longest)
