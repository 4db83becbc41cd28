"""Structure from motion: camera poses and sparse points of matched pictures, by COLMAP's two mappers.

Incremental (Schoenberger and Frahm, CVPR 2016) first; where it splits the footage or leaves more than a few pictures
out, global (Pan et al., GLOMAP, ECCV 2024) as well, and the caller chooses by what can be measured. Of each only the
part that holds together is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gworld.capture.covisibility import firm_part, trim_to
from gworld.capture.matching import Matched, Progress, open_database, quiet
from gworld.capture.options import SolveOptions
from gworld.formats.camera_models import ColmapCamera, optics_of
from gworld.scene.views import View, Views

STRAIGHT = "incremental, straight lens"
ENOUGH = 0.95  # share of pictures registered by the incremental mapper with which the global one is not asked


@dataclass(frozen=True)
class Solution:
    """A reconstruction of pycolmap, by which mapper (`how`), and how many separate models that mapper made."""

    model: Any
    how: str
    models: int

    @property
    def registered(self) -> int:
        """The number of pictures that have a pose."""
        return int(self.model.num_reg_images())


def solve(
    matched: Matched,
    workspace: Path,
    options: SolveOptions = SolveOptions(),  # noqa: B008 (frozen)
    progress: Progress = None,
) -> Iterator[Solution]:
    """Yield the incremental solution and, where it falls short, another that takes every unknown lens for one that
    does not bend lines, and the global one; nothing where none is found."""
    first = _incremental(matched, workspace / "incremental", options, progress)
    if first is not None:
        yield first
    if first is None or first.models > 1 or first.registered < ENOUGH * len(matched.shots):
        straight = _incremental(matched, workspace / "straight", options, progress, bent=False)
        if straight is not None:
            yield replace(straight, how=STRAIGHT)
        second = _global(matched, workspace / "global", options)
        if second is not None:
            yield second


def solve_with_field(
    matched: Matched,
    workspace: Path,
    degrees: float,
    options: SolveOptions = SolveOptions(),  # noqa: B008 (frozen)
    progress: Progress = None,
) -> Solution | None:
    """The incremental solution with the horizontal field of view of every unknown lens held at so many degrees.

    Driving straight ahead leaves focal length and depth to each other; a lens that is held settles both.
    """
    with open_database(matched.database) as database:
        known = _known_cameras(matched)
        for camera in database.read_all_cameras():
            if camera.camera_id not in known:
                params = np.array(camera.params)
                params[0] = camera.width / 2 / np.tan(np.radians(degrees) / 2)
                params[3:] = 0
                camera.params, camera.has_prior_focal_length = params, True
                database.update_camera(camera)
    return _incremental(matched, workspace / "held", options, progress, hold_all=True)


def views_of(solution: Solution, matched: Matched) -> Views:
    """The registered pictures as views with their cameras' distortion, in order of camera and name, and the points."""
    model = solution.model
    views = []
    for identity in model.reg_image_ids():
        image = model.image(identity)
        camera = model.camera(image.camera_id)
        row = ColmapCamera(camera.model_name, camera.width, camera.height, tuple(map(float, camera.params)))
        optics = optics_of(row, image.name)
        shot = matched.shots[image.name]
        pose = np.eye(4)
        pose[:3] = image.cam_from_world().inverse().matrix()
        view = View(
            name=f"{shot.name}{shot.image.suffix}",
            width=camera.width,
            height=camera.height,
            K=optics.K,
            world_from_camera=torch.from_numpy(pose),
            model=optics.model,
            distortion=optics.distortion,
            image=shot.image,
            mask=shot.mask,
            depth=shot.depth,
            time=shot.time,
            camera_id=shot.camera + 1,
            source_model=row.model,
            source_params=row.params,
        )
        views.append(view)
    points, colors = points_of(model)
    views.sort(key=lambda view: (view.camera_id, view.name))
    return Views(tuple(views), points, colors, metric=False, depth_scale=matched.footage.depth_scale)


def points_of(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions [P,3] float64 and colours [P,3] uint8 of a reconstruction's points."""
    rows = [point for _, point in sorted(model.points3D.items())]
    points = np.array([point.xyz for point in rows], np.float64).reshape(-1, 3)
    colors = np.array([point.color for point in rows], np.uint8).reshape(-1, 3)
    return torch.from_numpy(points), torch.from_numpy(colors)


def triangulate(matched: Matched, views: Views, workspace: Path, options: SolveOptions = SolveOptions()) -> Any:  # noqa: B008 (frozen)
    """Points seen by pictures whose poses are known: a reconstruction in which cameras stay as they are.

    `views` are pinhole views of the matched pictures, by their image files.
    """
    import pycolmap

    model = pycolmap.Reconstruction()
    view_of = {view.image.resolve(): view for view in views.views if view.image is not None}
    with open_database(matched.database) as database:
        for camera in database.read_all_cameras():
            model.add_camera_with_trivial_rig(camera)
        for image in database.read_all_images():
            view = view_of[matched.shots[image.name].image.resolve()]
            matrix = torch.linalg.inv(view.world_from_camera.double()).numpy()[:3]
            model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(matrix))
    workspace.mkdir(parents=True, exist_ok=True)
    settings = _pipeline_options(options)
    with quiet():
        folder = matched.footage.folder.resolve()
        return pycolmap.triangulate_points(model, matched.database, folder, workspace, options=settings)


def _incremental(
    matched: Matched,
    workspace: Path,
    options: SolveOptions,
    progress: Progress,
    hold_all: bool = False,
    bent: bool = True,
) -> Solution | None:
    import pycolmap

    settings = _pipeline_options(options)
    settings.max_num_models = 3
    settings.min_model_size = min(10, max(3, len(matched.shots) // 4))  # a smaller start is thrown away for another
    # Everything is adjusted when the model has grown by 30 %, not by 10 %: a third of the time, the same result.
    settings.ba_global_frames_ratio = settings.ba_global_points_ratio = 1.3
    settings.ba_refine_extra_params = bent
    if hold_all or not options.refine_known:
        settings.constant_cameras = _known_cameras(matched, hold_all)
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress("poses", min(0.99, done / len(matched.shots)))

    _empty(workspace)
    with quiet():
        models = pycolmap.incremental_mapping(
            matched.database, matched.footage.folder.resolve(), workspace, settings, next_image_callback=advance
        )
    return _largest(models, "incremental", bool(settings.constant_cameras), bent)


def _global(matched: Matched, workspace: Path, options: SolveOptions) -> Solution | None:
    import pycolmap

    settings = pycolmap.GlobalPipelineOptions(num_threads=options.threads, random_seed=options.seed)
    mapper = settings.mapper
    mapper.num_threads, mapper.random_seed = options.threads, options.seed
    for part in (mapper.rotation_averaging, mapper.global_positioning, mapper.retriangulation):
        part.random_seed = options.seed
    mapper.global_positioning.use_gpu = mapper.bundle_adjustment.ceres.use_gpu = False
    held = bool(_known_cameras(matched)) and not options.refine_known
    if held:  # the global mapper holds all cameras or none
        mapper.bundle_adjustment.refine_focal_length = mapper.bundle_adjustment.refine_extra_params = False
    _empty(workspace)
    with quiet():
        models = pycolmap.global_mapping(matched.database, matched.footage.folder.resolve(), workspace, settings)
    return _largest(models, "global", held)


def _pipeline_options(options: SolveOptions) -> Any:
    import pycolmap

    # One thread: with more, sums in another order start another model in some runs.
    settings = pycolmap.IncrementalPipelineOptions(num_threads=1, random_seed=options.seed)
    settings.mapper.num_threads, settings.mapper.random_seed = 1, options.seed
    settings.triangulation.random_seed = options.seed
    settings.ba_use_gpu = False
    pycolmap.set_random_seed(options.seed)
    return settings


def _known_cameras(matched: Matched, every: bool = False) -> set[int]:
    """Numbers in the database of the cameras whose intrinsics are known, or of `every` one."""
    with open_database(matched.database) as database:
        owner = {image.camera_id: matched.shots[image.name].camera for image in database.read_all_images()}
    return {number for number, index in owner.items() if every or matched.footage.cameras[index].K}


def _largest(models: dict[int, Any], how: str, held: bool, bent: bool = True) -> Solution | None:
    """The largest model, cut to its firm part and adjusted again where that took pictures away; `held` keeps lenses,
    without `bent` they stay as bent as they are."""
    import pycolmap

    ranked = sorted(models.values(), key=lambda model: (model.num_reg_images(), model.num_points3D()))
    if not ranked or ranked[-1].num_reg_images() < 2:
        return None
    best = ranked[-1]
    gone = trim_to(best, firm_part(best))
    if best.num_reg_images() < 2:
        return None
    if gone:
        adjusting = pycolmap.BundleAdjustmentOptions(print_summary=False)
        adjusting.ceres.loss_function_type = pycolmap.LossFunctionType.SOFT_L1
        adjusting.ceres.use_gpu = False
        adjusting.refine_focal_length, adjusting.refine_extra_params = not held, bent and not held
        with quiet():
            pycolmap.bundle_adjustment(best, adjusting)
    return Solution(best, how, len(ranked) + bool(gone))


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
