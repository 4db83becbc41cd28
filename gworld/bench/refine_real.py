"""The refiner on real pictures: photos of a skull, eight of them fitted; a recording whose third camera is held out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gworld.bench.track_real import HOME
from gworld.capture.calibration import read_calibration
from gworld.capture.undistort import undistort_views
from gworld.data.clips import read_frames
from gworld.formats.colmap import read_colmap
from gworld.reconstruct.motion_rig import RigOptions, refine_rig
from gworld.reconstruct.pairs import PairOptions, Scene, cameras_at, fit_scene, look, true_pictures
from gworld.scene.cameras import Cameras
from gworld.scene.clip import Clip
from gworld.scene.views import View, Views

FEW, JUDGES = 8, 12
"""Photos of the skull that are fitted, and that judge at the most."""
SIDE, SPACING = 0.8, 0.02
"""Half the side of the table that first points lie on, and how far apart they are (metres)."""

Judged = tuple[str, Clip, list[Scene]]
"""What is looked at, the first fit's renders with their truth, all fits."""


def skull_views(place: Path, folder: Path, options: PairOptions, fits: int) -> Iterator[Judged]:
    """Fits of eight photos, seen from others."""
    views = undistort_views(read_colmap(place), folder / "skull")
    ordered = sorted(views.views, key=lambda view: view.name)
    few = ordered[:: max(1, len(ordered) // FEW)][:FEW]
    others = [view for view in ordered if view not in few][:: max(1, len(ordered) // JUDGES)]
    yield _judged("skull, 8 photos", replace(views, views=tuple(few)), tuple(others), options, fits, folder)


def camera_views(data: Path, folder: Path, options: PairOptions, fits: int) -> Iterator[Judged]:
    """The first pictures of a recording's two cameras, fitted, and seen from its third; each is held out once.

    Where the cameras are was refined on all three pictures, the one held out among them.
    """
    views = _first_pictures(data, folder / "pictures")
    for held in range(len(views)):
        few = tuple(view for row, view in enumerate(views.views) if row != held)
        name = f"push-T, camera {views.views[held].name} held out"
        yield _judged(
            name, replace(views, views=few), views.views[held : held + 1], options, fits, folder / f"way-{held}"
        )


def _judged(
    name: str, few: Views, others: tuple[View, ...], options: PairOptions, fits: int, folder: Path
) -> Judged:  # fmt: skip
    scenes = [fit_scene(few, replace(options, seed=options.seed + row), folder / f"real-{row}") for row in range(fits)]
    held_out = replace(few, views=others)
    clip = look(scenes[0], cameras_at(held_out, options.longest), true_pictures(held_out, options.longest))
    return name, clip, scenes


def _first_pictures(data: Path, folder: Path) -> Views:
    """The recording's first pictures as posed photos, and points on its table in the colour that they have there."""
    home = data / HOME
    views = read_calibration(home / "sample_demos/0/cameras.json").views
    pictures = np.stack(
        [next(iter(read_frames(home / "sample_demos/0/videos" / f"{view.name}.mp4"))) for view in views]
    )
    K, poses = (torch.stack([getattr(view, name) for view in views]).float() for name in ("K", "world_from_camera"))
    plane = json.loads((home / "environment/ground_plane.json").read_text(encoding="utf-8"))["plane"]
    cameras = Cameras(K, poses, views[0].width, views[0].height, names=tuple(view.name for view in views))
    cameras = refine_rig(pictures.astype(np.float32) / 255, cameras, RigOptions(plane=tuple(plane))).cameras
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for row, picture in enumerate(pictures):
        path = folder / f"{cameras.names[row]}.png"
        Image.fromarray(picture).save(path)
        found.append(
            View(cameras.names[row], cameras.width, cameras.height, cameras.K[row], cameras.world_from_camera[row],
                 image=path)
        )  # fmt: skip
    return Views(tuple(found), _table(cameras, plane), metric=True)


def _table(cameras: Cameras, plane: list[float]) -> Tensor:
    """Points on the plane (normal and offset) around the place that the first camera looks at."""
    normal, offset = torch.tensor(plane[:3]), float(plane[3])
    pose = cameras.world_from_camera[0]
    eye, forward = pose[:3, 3], pose[:3, 2]
    middle = eye - forward * ((eye @ normal + offset) / (forward @ normal))
    right = torch.nn.functional.normalize(torch.linalg.cross(normal, forward), dim=0)
    ahead = torch.linalg.cross(normal, right)
    steps = torch.arange(-SIDE, SIDE, SPACING)
    return (middle + steps[:, None, None] * right + steps[None, :, None] * ahead).reshape(-1, 3)
