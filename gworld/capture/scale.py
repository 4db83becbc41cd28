"""Metric scale: from one known length, from known places of the cameras, or from a depth sensor."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.capture.rays import meet_rays, pixel_rays, project_into
from gworld.capture.similarity import Similarity, fit_similarity, move_points
from gworld.errors import InputError, UsageError
from gworld.scene.views import View, Views

_UNITS = {"": 1.0, "m": 1.0, "cm": 0.01, "mm": 0.001}
_HELP = (
    "Write two points and their distance, `POINT to POINT = 0.42 m`; a point is `picture.png@X,Y` in pixels, better "
    "the same point in two pictures, `a.png@X,Y+b.png@X,Y`, or `X,Y,Z` in the reconstruction."
)
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RADIUS = 0.03  # of the picture's width, within which sparse points tell the depth of a pixel
_SPREAD = 1.25
_MISS = 0.02  # radians by which the rays to one point may miss each other
_TRIALS = 200


@dataclass(frozen=True)
class Spot:
    """A point: as it lies in the world, [3], or as pixels (picture, x, y) that all show it, centres at +0.5."""

    place: tuple[float, float, float] | None = None
    pixels: tuple[tuple[str, float, float], ...] = ()


@dataclass(frozen=True)
class KnownLength:
    """Two points and the metres between them."""

    first: Spot
    second: Spot
    metres: float


def parse_length(text: str) -> KnownLength:
    """`POINT to POINT = LENGTH` (see `--scale-from`); LENGTH in m, cm or mm, metres where nothing is said.

    A POINT is `X,Y,Z`, or `PICTURE@X,Y`, or several of those joined by `+`. Raises `UsageError` for anything else.
    """
    found = re.fullmatch(rf"\s*(.+?)\s+to\s+(.+?)\s*=\s*({_NUMBER})\s*(m|cm|mm)?\s*", text)
    if found is None:
        raise UsageError(f"the length {text!r:.120} cannot be read. {_HELP}")
    metres = float(found[3]) * _UNITS[found[4] or ""]
    if not 1e-4 <= metres <= 1e5:
        raise UsageError(f"the length {text!r:.120} is {metres:g} m; 0.0001 to 100000 m can be used. {_HELP}")
    return KnownLength(_parse_spot(found[1]), _parse_spot(found[2]), metres)


def scale_from_length(views: Views, length: KnownLength) -> float:
    """Metres per unit of the views from a known length.

    A point seen in two pictures or more is where its rays meet; one seen in a single picture takes its depth from the
    sparse points around it. Raises `InputError` when a picture is not among the views, when rays do not meet, or when
    the points around a pixel do not tell its depth.
    """
    first, second = (_place(views, spot) for spot in (length.first, length.second))
    distance = float((first - second).norm())
    if not distance > 1e-9:
        raise InputError("the two points of the known length are one point; choose two that are far apart.")
    return length.metres / distance


def similarity_from_places(
    views: Views, places: dict[str, Float[Tensor, " 3"]], tolerance: float = 0.05
) -> tuple[Similarity, int, float]:
    """World to metres from known places of cameras by name (a tracker, GPS, a hand without its mount).

    Robust: triples, then least squares over the views within `tolerance` metres. Gives the similarity, how many views
    agree and their root mean square distance in metres. Raises `InputError` when fewer than half, or four, agree.
    """
    named = [view for view in views.views if view.name in places]
    if len(named) < 4:
        raise InputError(f"{len(named)} views have a known place; four or more are needed to find scale and frame.")
    source = torch.stack([view.world_from_camera[:3, 3].double() for view in named])
    target = torch.stack([places[view.name].double() for view in named])
    random = torch.Generator().manual_seed(0)
    best = torch.zeros(len(named), dtype=torch.bool)
    for trial in range(_TRIALS):
        rows = torch.randperm(len(named), generator=random)[:3] if trial else torch.arange(len(named))
        try:
            guess, _ = fit_similarity(source[rows], target[rows])
        except InputError:
            continue
        near = (move_points(guess, source) - target).norm(dim=1) < tolerance
        best = near if int(near.sum()) > int(best.sum()) else best
    for _ in range(3):
        if int(best.sum()) < max(4, len(named) / 2):
            raise InputError(
                f"{int(best.sum())} of {len(named)} cameras fit their known places within {tolerance:g} m; half are "
                "needed. Check the names, the unit and the clock of the places."
            )
        guess, _ = fit_similarity(source[best], target[best])
        misses = (move_points(guess, source) - target).norm(dim=1)
        best = misses < tolerance
    return guess, int(best.sum()), float(misses[best].square().mean().sqrt())


def scale_from_depth(views: Views, metres_per_step: float, most_views: int = 30) -> tuple[float, float]:
    """Metres per unit from a depth sensor: (scale, its relative spread over the views).

    In each view the sparse points that fall on a measured pixel give a ratio; the commonest ratio of a view counts,
    because points that something nearer hides give others. `metres_per_step` is the unit of the 16-bit depth maps.
    Raises `InputError` when fewer than two views, or fewer than 20 points in each, can be compared.
    """
    with_depth = [view for view in views.views if view.depth is not None]
    step = max(1, len(with_depth) // most_views)
    scales = [scale for view in with_depth[::step] if (scale := _view_scale(views, view, metres_per_step)) is not None]
    if len(scales) < 2:
        raise InputError(
            f"{len(scales)} of {len(with_depth)} depth maps share 20 or more points with the reconstruction; two are "
            "needed to find the scale. Check that depth and pictures belong together."
        )
    logs = torch.tensor(scales, dtype=torch.float64).log()
    middle = logs.median()
    return float(middle.exp()), float((logs - middle).abs().median())


def _parse_spot(text: str) -> Spot:
    place = re.fullmatch(rf"({_NUMBER}),({_NUMBER}),({_NUMBER})", text)
    if place:
        return Spot(place=(float(place[1]), float(place[2]), float(place[3])))
    pixel = rf"(.+?)@({_NUMBER}),({_NUMBER})(?:\+(?=.)|$)"
    pixels = [(one[1], float(one[2]), float(one[3])) for one in re.finditer(pixel, text)]
    if not pixels or "".join(one[0] for one in re.finditer(pixel, text)) != text:
        raise UsageError(f"the point {text!r:.80} cannot be read. {_HELP}")
    if len({name for name, _, _ in pixels}) != len(pixels):
        raise UsageError(f"the point {text!r:.80} names one picture twice. {_HELP}")
    return Spot(pixels=tuple(pixels))


def _place(views: Views, spot: Spot) -> Float[Tensor, " 3"]:
    if spot.place is not None:
        return torch.tensor(spot.place, dtype=torch.float64)
    named = [(_view_called(views, name), torch.tensor([[x, y]], dtype=torch.float64)) for name, x, y in spot.pixels]
    for view, pixel in named:
        if not (0 <= float(pixel[0, 0]) <= view.width and 0 <= float(pixel[0, 1]) <= view.height):
            raise InputError(f"the pixel {pixel[0].tolist()} lies outside `{view.name}`, {view.width} x {view.height}.")
    if len(named) == 1:
        return _place_in_one(views, *named[0])
    rays = [pixel_rays(view, pixel) for view, pixel in named]
    point, miss, _ = meet_rays(
        torch.cat([origin for origin, _ in rays]), torch.cat([direction for _, direction in rays])
    )
    if miss > _MISS:
        raise InputError(
            f"the pixels {', '.join(f'{name}@{x:g},{y:g}' for name, x, y in spot.pixels)} do not show one point: their "
            f"rays miss it by {np.degrees(miss):.1f} degrees. Mark the same spot in every picture."
        )
    return point


def _view_called(views: Views, name: str) -> View:
    found = [view for view in views.views if name in (view.name, view.name.rsplit(".", 1)[0])]
    found = found or [view for view in views.views if view.image is not None and view.image.name == name]
    if len(found) != 1:
        raise InputError(
            f"{len(found)} views are called `{name}`; one is needed. Names are like `{views.views[0].name}`."
        )
    return found[0]


def _place_in_one(views: Views, view: View, pixel: Tensor) -> Tensor:
    """A pixel's point at the depth of the sparse points nearest to it in the picture."""
    pixels, depths = project_into(view, views.points)
    gaps = (pixels - pixel).norm(dim=1)
    gaps = torch.where((depths > 1e-6) & torch.isfinite(gaps), gaps, torch.inf)
    near = gaps.argsort()[:5]
    near = near[gaps[near] < _RADIUS * view.width]
    around = depths[near]
    if len(near) < 3 or float(around.max() / around.min()) > _SPREAD:
        raise InputError(
            f"the {len(near)} points around {pixel[0].tolist()} in `{view.name}` do not tell how far it is. Mark the "
            "same spot in a second picture, `a.png@X,Y+b.png@X,Y`."
        )
    origin, direction = pixel_rays(view, pixel)
    return origin[0] + direction[0] / float((1 / around).median())


def _view_scale(views: Views, view: View, metres_per_step: float) -> float | None:
    """The commonest ratio of measured to reconstructed depth in one view, or None where too few can be compared."""
    from PIL import Image

    try:
        with Image.open(str(view.depth)) as picture:
            measured = torch.from_numpy(np.array(picture, dtype=np.float64)) * metres_per_step
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"`{view.depth}` cannot be read as a depth map: {error!s:.200}. Replace it.") from error
    if measured.ndim != 2 or tuple(measured.shape) != (view.height, view.width):
        raise InputError(f"`{view.depth}` is {list(measured.shape)}; [{view.height}, {view.width}] is needed.")
    pixels, depths = project_into(view, views.points)
    inside = (depths > 1e-6) & (pixels >= 0).all(1) & (pixels[:, 0] < view.width) & (pixels[:, 1] < view.height)
    columns, rows = pixels[inside].long().unbind(1)
    ratios = measured[rows, columns] / depths[inside]
    logs = ratios[ratios > 0].log().sort().values
    if len(logs) < 20:
        return None
    least = max(10, len(logs) // 5)
    while len(logs) > least:  # the shortest half, again and again: the half-sample mode (Robertson and Cryer 1974)
        half = len(logs) // 2
        start = int((logs[half - 1 :] - logs[: len(logs) - half + 1]).argmin())
        logs = logs[start : start + half]
    return float(logs.mean().exp())
