"""What a reconstruction leaves: the world with its coverage, an orbit video, a mesh where asked, the report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gworld.cli.reconstruct_report import compare_held_out, gather_facts
from gworld.cli.scenes import place_world, render_frames
from gworld.evaluate.report import ReconstructionFacts, closing_lines, mean_scores, write_reconstruction_report
from gworld.formats.world import save_world
from gworld.reconstruct.contribution import shrunk, single_cameras, view_masks
from gworld.reconstruct.coverage import Coverage, coverage_map, coverage_shares, measure_coverage, save_coverage
from gworld.reconstruct.fit import Fit
from gworld.reconstruct.floaters import find_floaters
from gworld.reconstruct.mesh import extract_mesh, write_mesh
from gworld.render.api import RenderOptions
from gworld.render.paths import spline
from gworld.render.video import as_uint8, write_video
from gworld.scene.cameras import Cameras, resize_cameras
from gworld.scene.views import View, Views, cameras_of
from gworld.scene.world import World

ORBIT_SECONDS, ORBIT_FPS, ORBIT_WIDTH = 6.0, 24.0, 640
KEYFRAMES = 14
COVERAGE_SIDE = 320
FILES = {
    "world": "the world: gaussians.ply opens in any splat viewer",
    "orbit.mp4": "a flight along the cameras and back",
    "poses": "pinhole pictures, transforms.json and points, as nerfstudio reads them",
    "fixed.json": "poses and lenses of the cameras that stand still",
    "mesh.ply": "the surface, for collision",
    "masks.mp4": "what was left out of the pictures",
    "metrics.csv": "the course of the fit",
}


@dataclass(frozen=True)
class Story:
    """A finished fit with all that was found on the way to it."""

    run: Path
    views: Views
    fit: Fit
    stages: dict[str, Any]
    command: str
    mesh: bool


def write_outputs(story: Story) -> dict[str, Any]:
    """Write `world/`, `orbit.mp4`, `report.html` and, where asked, `mesh.ply`; return figures and closing lines."""
    began = time.monotonic()
    fit, run = story.fit, story.run
    views = _refined(story.views, fit)
    cameras = single_cameras(views)
    drawn = RenderOptions(background=fit.background)
    floaters = find_floaters(fit.gaussians, cameras, masks=view_masks(views), drawn=drawn)
    world = World(fit.gaussians, cameras=_one_size(views), metric=views.metric, background=fit.background)
    save_world(world, run / "world", overwrite=True)
    coverage = measure_coverage(fit.gaussians, cameras, masks=view_masks(views), options=drawn)
    save_coverage(coverage, run / "world")
    write_orbit(world, run / "orbit.mp4", fit.background)
    if story.mesh:
        write_mesh(extract_mesh(fit.gaussians, cameras), run / "mesh.ply")
    held = compare_held_out(views, fit)
    shares = _coverage_shares(world, coverage, cameras, [view.name for view in views.views], fit)
    stages = {**story.stages, "output": {"seconds": round(time.monotonic() - began, 2)}}
    facts = gather_facts(
        run,
        views,
        fit,
        stages,
        story.command,
        held,
        floater_score=floaters.score,
        coverage=shares,
        seconds=sum(stage["seconds"] for stage in stages.values()),
        files={name: what for name, what in FILES.items() if (run / name).exists()},
    )
    write_reconstruction_report(run / "report.html", facts)
    return _facts(story, facts)


def _coverage_shares(
    world: World, coverage: Coverage, cameras: Sequence[Cameras], names: Sequence[str], fit: Fit
) -> dict[str, float]:
    """Shares of seen, extrapolated and invented pixels in the held-out views."""
    rows = [index for index, name in enumerate(names) if name in fit.held_out]
    maps = [coverage_map(coverage, world.gaussians, shrunk(cameras[row], COVERAGE_SIDE))[0].flatten() for row in rows]
    return coverage_shares(torch.cat(maps)) if maps else {}


def write_orbit(world: World, path: Path, background: tuple[float, float, float]) -> int:
    """A smooth flight along the cameras that the world was made from, and back; returns the number of frames."""
    assert world.cameras is not None
    cameras = world.cameras
    rows = np.unique(np.linspace(0, len(cameras) - 1, min(KEYFRAMES, len(cameras))).round().astype(int)).tolist()
    rows = rows + rows[-2:0:-1]
    keys = replace(cameras, K=cameras.K[rows], world_from_camera=cameras.world_from_camera[rows], names=(), links=())
    scale = ORBIT_WIDTH / cameras.width
    keys = resize_cameras(keys, ORBIT_WIDTH, max(2, round(cameras.height * scale)))
    count = round(ORBIT_SECONDS * ORBIT_FPS)
    flight = spline(keys, count, closed=True) if len(keys) > 1 else keys
    placed = place_world(world, "auto")
    poses = placed.rest_poses()[None]

    def frames() -> Iterator[np.ndarray]:
        options = RenderOptions(background=background)
        for output in render_frames(placed, poses, flight, ("rgb",), options, "auto"):
            assert output.rgb is not None
            yield as_uint8(output.rgb[0, 0])

    return write_video(frames(), path, ORBIT_FPS)


def _refined(views: Views, fit: Fit) -> Views:
    """The views with the poses that the fit arrived at."""
    refined = dict(zip(fit.names, fit.world_from_camera, strict=True))
    moved = [
        replace(view, world_from_camera=refined[view.name].to(view.world_from_camera)) if view.name in refined else view
        for view in views.views
    ]
    return replace(views, views=tuple(moved))


def _one_size(views: Views) -> Cameras:
    """The cameras of the commonest picture size as one batch, in order of time or name."""
    size = Counter((view.width, view.height) for view in views.views).most_common(1)[0][0]
    some = [view for view in views.views if (view.width, view.height) == size]
    return cameras_of(replace(views, views=tuple(sorted(some, key=_moment))))


def _moment(view: View) -> tuple[int, float, str]:
    return view.camera_id, -1.0 if view.time is None else view.time, view.name


def _facts(story: Story, facts: ReconstructionFacts) -> dict[str, Any]:
    score = mean_scores(facts.held_out)
    return {
        "out": str(story.run),
        "gaussians": facts.gaussians,
        "steps": facts.steps,
        "psnr": None if score is None else round(score[0], 3),
        "ssim": None if score is None else round(score[1], 4),
        "baseline_psnr": None if facts.baseline is None else round(facts.baseline.psnr, 3),
        "floaters": round(facts.floater_score, 5),
        "metric": facts.metric,
        "pictures": facts.shots,
        "registered": facts.registered,
        "fit_seconds": round(story.fit.seconds, 1),
        "peak_mb": round(facts.peak_mb),
        "lines": closing_lines(facts, story.run),
    }
