"""Robots as Gaussians against MuJoCo's own pictures: silhouettes and the link behind every pixel."""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from gworld.agents.skeleton import read_robot
from gworld.agents.skinning import SkinOptions, skin_robot
from gworld.agents.surfaces import shape_surfaces
from gworld.agents.tree import Skeleton
from gworld.bench.rows import Row, at_least
from gworld.data.simulators import open_scene
from gworld.data.simulators_models import PosedModel
from gworld.data.simulators_options import SceneOptions
from gworld.data.simulators_world import write_models
from gworld.geometry import transform_from_pose
from gworld.render.api import RenderOptions
from gworld.render.select import render

if TYPE_CHECKING:
    from gworld.bench.catalogue import BenchInput

GOAL, POSES, CAMERAS, WIDTH, HEIGHT = 0.97, 2, 3, 640, 480
MOST = 150_000
"""Gaussians per robot at most."""
PIXELS, INSET = 1.0, 0.6
"""Spacing in pixels; how far discs lie below the surface, over it: 0.3 for their own blur and 0.3 for the pixels'."""
# robot -> (package, model, folder that may be read besides the model's own)
ROBOTS = {
    "two ViperX 300": ("gym_aloha", "assets/bimanual_viperx_transfer_cube.xml", ""),
    "Fetch": ("gymnasium_robotics", "envs/assets/fetch/pick_and_place.xml", "envs/assets"),
    "Shadow hand": ("gymnasium_robotics", "envs/assets/hand/manipulate_block.xml", "envs/assets"),
    "Adroit hand": ("gymnasium_robotics", "envs/assets/adroit_hand/adroit_hammer.xml", "envs/assets"),
    "Jaco arm": ("dm_control", "third_party/kinova/jaco_arm.xml", ""),
    "ant": ("dm_control", "third_party/ant/ant.xml", ""),
    "humanoid": ("dm_control", "suite/humanoid.xml", ""),
    "quadruped": ("dm_control", "suite/quadruped.xml", ""),
    "walker": ("dm_control", "suite/walker.xml", ""),
    "cheetah": ("dm_control", "suite/cheetah.xml", ""),
}


@dataclass(frozen=True)
class Fit:
    """Intersection over union of silhouettes, share of common pixels with the same link, Gaussians used."""

    iou: float
    links: float
    count: int


def rows(given: BenchInput) -> Iterator[Row]:
    """Per robot the median over poses and cameras (`quick`: one each, three robots), and the worst picture."""
    robots = [*ROBOTS][:2] if given.quick else [*ROBOTS]
    medians = []
    for name in ["our arm", *robots]:
        with tempfile.TemporaryDirectory() as place:
            found = _find(name, Path(place))
            if found is None:
                yield Row(f"{name}, silhouette", float("nan"), "IoU", note="its package is not installed")
                continue
            fits = compare(*found, poses=1 if given.quick else POSES, seed=given.seed)
        medians.append(statistics.median(fit.iou for fit in fits))
        worst, links = min(fit.iou for fit in fits), statistics.median(fit.links for fit in fits)
        note = f"worst {worst:.3f}, same link {links:.3f}, {fits[0].count} Gaussians"
        yield at_least(f"{name}, silhouette", medians[-1], "IoU", GOAL, note=note)
    yield at_least("all robots, silhouette, least median", min(medians), "IoU", GOAL)


def compare(path: Path, folders: tuple[Path, ...], poses: int = POSES, seed: int = 0) -> list[Fit]:
    """One fit per pose and camera of the robot of an MJCF file, without what belongs to the world."""
    model = PosedModel(path)
    whole = read_robot(path, "robot", folders)
    skeleton = replace(whole, shapes=tuple(shape for shape in whole.shapes if shape.kind != "plane"))  # as in the truth
    fits = []
    for number in range(poses):
        stored = model.pose(seed + number)
        cameras = model.cameras(CAMERAS, WIDTH, HEIGHT)
        center = torch.tensor(stored[:, :3].mean(axis=0), dtype=torch.float32)
        distance = float((cameras.world_from_camera[:, :3, 3] - center).norm(dim=1).mean())
        spacing = PIXELS * distance / float(cameras.K[0, 0, 0])
        skin = SkinOptions(per_square_metre=_density(skeleton, spacing), inset=INSET, headlight=0.0)
        gaussians = skin_robot(skeleton, skin)
        world_from_link = transform_from_pose(torch.tensor(stored)).float()
        drawn = render(
            gaussians, world_from_link, cameras, outputs=("alpha", "link_id"), options=RenderOptions(antialiased=True)
        )
        assert drawn.alpha is not None and drawn.link_id is not None
        for index in range(len(cameras)):
            truth = model.draw(cameras, index).links
            ours = np.where(drawn.alpha[0, index].numpy() >= 0.5, drawn.link_id[0, index].numpy(), -1)
            union, common = (ours > 0) | (truth > 0), (ours > 0) & (truth > 0)
            same = float((ours == truth)[common].mean()) if common.any() else 0.0
            fits.append(Fit(float(common.sum() / max(int(union.sum()), 1)), same, len(gaussians)))
    return fits


def _density(skeleton: Skeleton, spacing: float) -> float:
    """Gaussians per square metre for a spacing, fewer where the robot is large."""
    area = 0.0
    for shape in skeleton.shapes:
        if not shape.collision:
            for surface in shape_surfaces(shape):
                a, b, c = surface.vertices[surface.faces].transpose(1, 0, 2)
                area += 0.5 * float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum())
    return min(spacing**-2, MOST / max(area, 1e-9))


def _find(name: str, place: Path) -> tuple[Path, tuple[Path, ...]] | None:
    if name == "our arm":
        written = write_models(open_scene("arms", SceneOptions(agents=1, objects=0)), place)
        return place / written["left"], ()
    package, model, folder = ROBOTS[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    root = Path(spec.submodule_search_locations[0])
    return root / model, (root / folder,) if folder else ()
