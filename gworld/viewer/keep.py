"""What is kept of a motion: actions and rollout, an episode, a film, an animated GLB, a page. Films take a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gworld.data.store import EpisodeWriter
from gworld.errors import GWorldError
from gworld.geometry import transform_from_pose
from gworld.render.video import write_video
from gworld.scene.cameras import Cameras
from gworld.scene.rollout import Rollout, poses_at
from gworld.simulate.files import make_episode, write_animation
from gworld.viewer.driver import Driver, free_name, write_driven
from gworld.viewer.export import export_page
from gworld.viewer.player import fit_rollout

if TYPE_CHECKING:
    from gworld.viewer.app import Viewer

KINDS = ("MP4", "GLB", "page")
FILM_RATE = 30.0
MAX_FRAMES = 9000
"""Frames of a film: five minutes."""


def keep_drive(viewer: Viewer, driver: Driver, rollout: Rollout, camera: Cameras | None) -> Path:
    """Write a drive's actions and rollout now, and, soon, its film from a visitor's view and its episode.

    Returns the rollout's path; the film is `drive-N.mp4`, the episode goes into the store `episodes`, both beside it.
    """
    folder, behaviours = viewer.options.keep, driver.behaviours()
    acts, motion = write_driven(rollout, driver.engine, folder)
    viewer.message = f"kept {len(rollout) - 1} steps in {motion} and {acts}"

    def rest() -> str:
        films: dict[str, Path] = {}
        if camera is not None:
            films["view"] = motion.with_suffix(".mp4")
            write_film(viewer, rollout, camera, films["view"], 1.0 / driver.engine.options.step)
        with EpisodeWriter(folder / "episodes") as store:
            episode = make_episode(viewer.world, rollout, films, camera, behaviours)
            number = store.add(episode, key=motion.stem)
        film = f", its film {films['view'].name}" if films else ""
        return f"kept {motion} with its actions{film} and episode {number} in {folder / 'episodes'}"

    if camera is None:  # it ends: nothing may be left to a thread
        viewer.message = rest()
    else:
        in_background(viewer, rest)
    return motion


def keep_as(viewer: Viewer, rollout: Rollout, kind: str, camera: Cameras) -> None:
    """Write a motion as a film from a camera (`MP4`), as an animated `GLB`, or as a `page` that plays it."""
    folder, world = viewer.options.keep, viewer.world

    def work() -> str:
        moves = fit_rollout(rollout, world)
        if kind == "MP4":
            path = free_name(folder, "film", ".mp4")
            write_film(viewer, moves, camera, path, FILM_RATE)
        elif kind == "GLB":
            path = free_name(folder, "motion", ".glb")
            write_animation(world, moves, path)
        else:
            path = free_name(folder, "page", ".html")
            export_page(world, path, moves, splats=min(viewer.options.splats, 300_000))
        return f"kept {path}"

    viewer.message = f"making a {kind} of it .."
    in_background(viewer, work)


def write_film(viewer: Viewer, rollout: Rollout, camera: Cameras, path: Path, rate: float) -> int:
    """Draw a motion from one camera at `rate` frames per second; of longer ones `MAX_FRAMES` are drawn."""
    start, end = float(rollout.times[0]), float(rollout.times[-1])
    count = min(1 + int((end - start) * rate + 1e-6), MAX_FRAMES)
    poses = (poses_at(rollout, start + frame / rate) for frame in range(count))
    return write_video((viewer.pixels.draw(transform_from_pose(pose.float()), camera) for pose in poses), path, rate)


def in_background(viewer: Viewer, work: Callable[[], str]) -> None:
    """Do something slow beside the loop; what it says, or why it failed, stands in the panels then."""

    def run() -> None:
        with torch.no_grad():
            try:
                said = work()
            except GWorldError as error:
                said = str(error)
        viewer.do(lambda: setattr(viewer, "message", said))

    thread = threading.Thread(target=run, name="keeping")
    viewer.keeping = [*(old for old in viewer.keeping if old.is_alive()), thread]
    thread.start()
