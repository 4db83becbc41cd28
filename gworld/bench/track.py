"""Tracking against truth: generated and simulated films, and a real recording judged by a camera that took no part."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from gworld.bench.rows import Row, at_most
from gworld.bench.track_real import real_rows
from gworld.bench.track_recorded import film_recorded
from gworld.bench.track_scene import Scene, film_scene
from gworld.errors import MissingBackendError
from gworld.geometry import invert_transform, quat_from_matrix, rotvec_from_quat, transform_from_pose
from gworld.reconstruct.motion import Tracked, TrackOptions, track_motion
from gworld.reconstruct.motion_draw import scene_plates
from gworld.reconstruct.motion_film import Plates

if TYPE_CHECKING:
    from gworld.bench.catalogue import BenchInput

MILLIMETRES, DEGREES, RADIANS = 3.0, 1.0, 0.02
FRAMES = 40
RECORDED: dict[str, Literal["planar", "free"]] = {"push": "planar", "arms": "free"}
"""Recorded scenes, and how their objects may move."""
SEED = 3
"""Seed of the recorded episodes: one whose objects move from the first second on."""


def rows(given: BenchInput) -> Iterator[Row]:
    """A generated scene (`quick`: few frames), then push-T in all three ways where `data` holds it."""
    with tempfile.TemporaryDirectory() as folder:
        scene = film_scene(Path(folder), 6 if given.quick else FRAMES, given.seed)
        yield Row("generated, objects hidden on average", 100 * scene.hidden, "%", "about 30")
        options = TrackOptions(search=0.0, reach=0.003, finest=1, paint=False, sharp=True)
        plates = scene_plates(scene.world, scene.cameras)
        plates = replace(plates, known=np.ones_like(plates.known))
        yield from _scene_rows(scene, options, "generated", plates)
    for name, way in RECORDED.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                scene = film_recorded(name, Path(folder), 0.3 if given.quick else 2.0, SEED + given.seed)
            except MissingBackendError as error:
                yield Row(f"recorded `{name}`", float("nan"), "", note=f"left out: {error}")
                continue
            options = TrackOptions(search=0.0, reach=0.003, finest=1, sharp=True, objects=way)
            yield from _scene_rows(scene, options, f"recorded `{name}`")
    if given.data is not None:
        yield from real_rows(given.data, given.quick)


def _scene_rows(scene: Scene, options: TrackOptions, name: str, plates: Plates | None = None) -> Iterator[Row]:
    start = time.process_time()
    found = track_motion(
        scene.world, scene.films, scene.cameras, scene.times, options, robots=scene.robots, plates=plates
    )
    seconds = time.process_time() - start
    for entity in scene.world.entities:
        if entity.kind == "object":
            yield from _object_rows(scene, found, entity.links[0], name)
    off = torch.cat([found.joints[agent].double() - joints for agent, joints in scene.joints.items()], dim=1)
    rest = torch.cat([joints - joints[:1] for joints in scene.joints.values()], dim=1)
    yield at_most(
        f"{name}, joints", float(off.square().mean().sqrt()), "rad RMS", RADIANS, float(rest.square().mean().sqrt())
    )
    yield Row(f"{name}, frames per processor second", len(scene.times) / seconds, "1/s", note="scouting included")


def _object_rows(scene: Scene, found: Tracked, link: int, name: str) -> Iterator[Row]:
    """Place and turn of one object, beside leaving it where it began."""
    poses, truth = transform_from_pose(found.link_poses[:, link].double()), scene.poses[:, link]
    what = f"{name}, `{scene.world.links[link].name}`"
    values = []
    for shown in (poses, truth[:1].expand_as(truth)):
        turn = rotvec_from_quat(quat_from_matrix((invert_transform(truth) @ shown)[:, :3, :3])).norm(dim=-1)
        place = (shown - truth)[:, :3, 3].norm(dim=-1)
        values.append([1000 * float(place.square().mean().sqrt()), float(turn.square().mean().sqrt().rad2deg())])
    sigma = found.pose_sigma[:, link].median(0).values
    note = f"stated uncertainty {1000 * float(sigma[0]):.2g}"
    yield at_most(f"{what}, place", values[0][0], "mm RMS", MILLIMETRES, values[1][0], note)
    note = f"stated uncertainty {float(torch.rad2deg(sigma[1])):.2g}"
    yield at_most(f"{what}, turn", values[0][1], "degrees RMS", DEGREES, values[1][1], note)
