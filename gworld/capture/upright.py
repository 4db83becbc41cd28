"""Which way is up: by how cameras are held, by floors and walls, by an IMU, or as the user says; +Z becomes up."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.capture.planes import Plane, find_planes
from gworld.capture.similarity import Similarity
from gworld.errors import InputError, UsageError
from gworld.scene.views import Views

LEVEL = math.radians(25)
"""A plane counts as a floor or a wall within this angle of what the cameras say."""
_MEAN_WEIGHT = 0.02  # of the mean up vector, which a camera that looks down bends, beside the right vectors
_PLANE_WEIGHT = 4.0
_TOLERANCES = (20.0, 8.0, 3.0, 1.0, 1.0)  # degrees within which planes are believed, narrowed step by step
_FLAT = math.radians(3)
_ROLL = 0.15  # radians of roll at which the cameras' word has lost most of its weight


@dataclass(frozen=True)
class Up:
    """An up direction [3] in the world of the views, unit, float64.

    `confidence` 0..1; `how` names the evidence in words; `ground` is the height along `direction` of the lowest
    floor or table found, in the views' unit, or None.
    """

    direction: Float[Tensor, " 3"]
    confidence: float
    how: str
    ground: float | None = None


def estimate_up(views: Views) -> Up:
    """Up from the cameras (held level, right vectors are horizontal) and from the planes of the sparse points.

    All evidence is one quadratic form, whose smallest eigenvector is up: right vectors and walls' normals are
    perpendicular to it, floors' normals parallel. Raises `InputError` when there are no views.
    """
    if not len(views):
        raise InputError("there are no views to tell which way is up; at least one is needed.")
    poses = torch.stack([view.world_from_camera.double() for view in views.views])
    rights, ups, centres = poses[:, :3, 0], -poses[:, :3, 1], poses[:, :3, 3]
    mean = ups.mean(0)
    held = _form_of(rights) + _MEAN_WEIGHT * float(mean.norm()) * _across(mean)
    direction = _smallest(held, mean)
    trust = _trust_in_cameras(rights, mean, direction)
    planes = find_planes(views.points, _thickness(views, centres)) if len(views.points) >= 30 else ()
    if trust < 0.2 and planes:  # a camera held anyhow: the largest plane is the best word there is
        direction = _towards(planes[0], centres)
        ground = float(planes[0].middle @ direction)
        return Up(direction, min(0.5, planes[0].share), "the largest plane", ground)
    for degrees in _TOLERANCES:
        floors, walls = _sort_planes(planes, direction)
        form = held.clone()
        for plane in floors:
            form += _weight(plane, 1 - float(plane.normal @ direction) ** 2, degrees) * _across(plane.normal)
        for plane in walls:
            weight = _weight(plane, float(plane.normal @ direction) ** 2, degrees)
            form += weight * plane.normal[:, None] * plane.normal
        direction = _smallest(form, mean)
    floors, walls = ([plane for plane in kind if _lean(plane, direction) < _FLAT] for kind in (floors, walls))
    agreed = min(1.0, sum(plane.share for plane in (*floors, *walls)) / 0.2)
    said = [f"{len(views)} cameras"] + [
        f"{len(kind)} {name}" for kind, name in ((floors, "floors"), (walls, "walls")) if kind
    ]
    return Up(direction, 1 - (1 - trust) * (1 - 0.9 * agreed), ", ".join(said), _ground(floors, direction, centres))


def up_by_gravity(views: Views, direction: Float[Tensor, " 3"], confidence: float) -> Up:
    """Up as an IMU tells it, [3] in the world of the views, with the ground by the planes of the sparse points."""
    up = torch.nn.functional.normalize(direction.double(), dim=0)
    centres = torch.stack([view.world_from_camera[:3, 3].double() for view in views.views])
    planes = find_planes(views.points, _thickness(views, centres)) if len(views.points) >= 30 else ()
    floors, _ = _sort_planes(planes, up)
    return Up(up, confidence, "the IMU", _ground([plane for plane in floors if _lean(plane, up) < _FLAT], up, centres))


def parse_up(text: str) -> Up:
    """Up as the user says it: `+z`, `-y`, or three numbers `0,0.1,1`; raises `UsageError` for anything else."""
    named = re.fullmatch(r"\s*([+-]?)([xyzXYZ])\s*", text)
    if named:
        direction = torch.zeros(3, dtype=torch.float64)
        direction["xyz".index(named[2].lower())] = -1.0 if named[1] == "-" else 1.0
        return Up(direction, 1.0, "as given")
    try:
        numbers = [float(part) for part in text.split(",")]
        direction = torch.tensor(numbers, dtype=torch.float64)
        if len(numbers) != 3 or not 1e-6 < float(direction.norm()) < 1e9:
            raise ValueError
    except ValueError as error:
        raise UsageError(
            f"the up direction {text!r:.40} is none; write `+z`, `-y` or three numbers `0,0.1,1`."
        ) from error
    return Up(direction / direction.norm(), 1.0, "as given")


def level_similarity(up: Up) -> Similarity:
    """The shortest turn that makes `up` +Z, and the shift that puts its ground, where there is one, at z = 0.

    Scale stays, and so does which hand the world has.
    """
    direction = torch.nn.functional.normalize(up.direction.double(), dim=0)
    x, y, z = direction.tolist()
    if z < -1 + 1e-12:
        rotation = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    else:  # Rodrigues with the axis up x (0, 0, 1)
        share = 1 / (1 + z)
        rows = [[1 - x * x * share, -x * y * share, -x], [-x * y * share, 1 - y * y * share, -y], [x, y, z]]
        rotation = torch.tensor(rows, dtype=torch.float64)
    shift = torch.tensor([0.0, 0.0, -(up.ground or 0.0)], dtype=torch.float64)
    return Similarity(rotation, shift)


def _form_of(vectors: Tensor) -> Tensor:
    return vectors.T @ vectors / len(vectors)


def _across(vector: Tensor) -> Tensor:
    """The quadratic form that is 0 along a vector and 1 across it."""
    unit = torch.nn.functional.normalize(vector, dim=0)
    return torch.eye(3, dtype=torch.float64) - unit[:, None] * unit


def _smallest(form: Tensor, towards: Tensor) -> Tensor:
    direction = torch.linalg.eigh(form)[1][:, 0]
    return direction if float(direction @ towards) >= 0 else -direction


def _trust_in_cameras(rights: Tensor, mean: Tensor, direction: Tensor) -> float:
    """How far the cameras alone are to be believed: held alike, without roll, and turned about the vertical."""
    roll = float((rights @ direction).square().mean().sqrt())
    turned = float(torch.linalg.eigvalsh(_form_of(rights))[1])
    sure = 0.5 + 0.5 * min(1.0, turned / 0.03)
    alike = float(torch.nn.functional.normalize(mean, dim=0) @ direction) * float(mean.norm())
    return max(0.0, alike) * math.exp(-((roll / _ROLL) ** 2)) * sure


def _thickness(views: Views, centres: Tensor) -> float:
    """One hundredth of the typical distance of the points from the cameras."""
    reach = (views.points.double() - centres.median(0).values).norm(dim=1)
    return 0.01 * float(reach.median())


def _weight(plane: Plane, squared_sine: float, degrees: float) -> float:
    """A plane's word by its size, less the further it leans: slanted planes through the tops of things mislead."""
    return _PLANE_WEIGHT * plane.share / (1 + squared_sine / math.radians(degrees) ** 2) ** 2


def _sort_planes(planes: tuple[Plane, ...], direction: Tensor) -> tuple[list[Plane], list[Plane]]:
    lean = [abs(float(plane.normal @ direction)) for plane in planes]
    floors = [plane for plane, cosine in zip(planes, lean, strict=True) if cosine > math.cos(LEVEL)]
    walls = [plane for plane, cosine in zip(planes, lean, strict=True) if cosine < math.sin(LEVEL / 2)]
    return floors, walls


def _lean(plane: Plane, direction: Tensor) -> float:
    """Radians by which a plane is off the horizontal or the vertical, whichever is nearer."""
    cosine = min(1.0, abs(float(plane.normal @ direction)))
    return min(math.acos(cosine), math.asin(cosine))


def _towards(plane: Plane, centres: Tensor) -> Tensor:
    """The plane's normal on the side of the cameras."""
    above = float((centres @ plane.normal - plane.offset).median())
    return plane.normal if above >= 0 else -plane.normal


def _ground(floors: list[Plane], direction: Tensor, centres: Tensor) -> float | None:
    """The height of the lowest floor that lies below the cameras."""
    heights = [float(plane.middle @ direction) for plane in floors]
    below = [height for height in heights if height < float((centres @ direction).median())]
    return min(below) if below else None
