"""Fit Gaussians to posed pictures: what goes in, what comes out, and what stays the same in between (loop.py)."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.config import mapping_from
from gworld.errors import InputError, MissingBackendError, UsageError
from gworld.files import check_memory
from gworld.reconstruct.appearance import new_appearance, refined
from gworld.reconstruct.density import DEAD
from gworld.reconstruct.initial import initial_gaussians, measure_extent
from gworld.reconstruct.loop import Loop, Progress, Rest, run_on
from gworld.reconstruct.optimise import choose_tools
from gworld.reconstruct.options import FitOptions
from gworld.reconstruct.pictures import Album, read_album
from gworld.reconstruct.schedule import LEVELS, Plan, planned_gaussians, seconds_of
from gworld.reconstruct.score import Score, score_views
from gworld.reconstruct.state import NAMES, State, gaussians_of, load_state
from gworld.reconstruct.step import Setting, neutral_exposures
from gworld.reconstruct.visibility import in_the_way
from gworld.render.api import RenderOptions
from gworld.render.native_train import new_adam_state
from gworld.runlog import RunLog
from gworld.scene.gaussians import Gaussians, select_gaussians
from gworld.scene.views import Views, split_views

FEWEST_VIEWS = 2
BACKGROUNDS = {"white": (1.0, 1.0, 1.0)}
BYTES_EACH = 4 * 59 * 5
"""Memory of a Gaussian in training: values, gradients, two moments, and a copy while their number changes."""


@dataclass(frozen=True)
class Fit:
    """What a fit made, in the frame of its views.

    `score` is of the views `held_out` at the end, None without any; `history` the scored rows of `metrics.csv`;
    `exposures [V,6]` (log gains, then offsets) and refined `world_from_camera [V,4,4]` are those of the fitted views,
    in the order of `names`. `skipped` steps had a result that was not finite. `seconds` count all processes of a
    resumed run, `peak_mb` is that of this process.
    """

    gaussians: Gaussians
    score: Score | None
    history: list[dict[str, float]]
    names: tuple[str, ...]
    held_out: tuple[str, ...]
    exposures: Float[Tensor, "V 6"] | None
    world_from_camera: Float[Tensor, "V 4 4"]
    background: tuple[float, float, float]
    steps: int
    skipped: int
    seconds: float
    peak_mb: float


def fit_views(
    views: Views,
    options: FitOptions,
    run: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    rest: Rest | None = None,
) -> Fit:
    """Fit Gaussians to `views`, keeping log, metrics, checkpoints and previews in the folder `run`.

    `rest` may hold the fit between any two steps (see `Rest`); budget and result are those of a fit that never rested.
    With `resume`, a run that was stopped goes on from its newest checkpoint to the same result (bit for bit on a CPU).
    Raises `InputError` for views that cannot be fitted, `UsageError` for options that make no sense or a run in use,
    `MissingBackendError` for a device that is not here, `ResourceError` when memory is short.
    """
    started = time.monotonic()
    budget = _checked(options, views)
    device = _device(options)
    fitted, held_out = split_views(views, options.hold_out) if options.hold_out else (views, Views(()))
    if len(fitted) < FEWEST_VIEWS:
        raise InputError(f"{len(fitted)} views are left to fit; at least {FEWEST_VIEWS} are needed. Add pictures.")
    album, unseen = (read_album(part, options.longest, LEVELS, device) for part in (fitted, held_out))
    limit = options.gaussians or planned_gaussians(budget, options.steps, device.type, len(album))
    check_memory(limit * BYTES_EACH, f"Fitting {limit} Gaussians")
    points, colours = _points(views, device)
    extent = measure_extent(album, points)
    setting = _setting(album, options, extent.width, extent.near, device)
    facts = _facts(options, album, unseen, limit)
    state = load_state(run, facts, device) if resume else None
    with RunLog(run, resume_step=0 if state is None else state.step + 1) as log:
        plan = Plan(run, budget, options.steps, options.epochs * len(album))
        if state is None:
            plan.path.unlink(missing_ok=True)
            first = min(limit, max(int(1.1 * len(points)), min(10_000, limit)))
            state = _begin(setting, initial_gaussians(album, points, colours, first, options.seed))
        else:
            plan.replay()
        origin = started - state.seconds
        log.event("fit", step=state.step, limit=limit, width=extent.width, views=len(album), held_out=len(unseen))
        run_on(Loop(setting, unseen, state, run, log, plan, limit, facts, origin, progress, rest))
        return _finish(setting, unseen, state, log)


def _checked(options: FitOptions, views: Views) -> float:
    """The budget in seconds (0 for none), when the options make sense."""
    wrong = {
        "steps": not 1 <= options.steps <= 10_000_000,
        "epochs": options.epochs < 0,
        "gaussians": not 0 <= options.gaussians <= 50_000_000,
        "longest": not 16 <= options.longest <= 16_384,
        "sh_degree": options.sh_degree not in (0, 1, 2, 3),
        "ssim_weight": not 0 <= options.ssim_weight <= 1,
        "refine_every": options.refine_every < 1,
        "hold_out": options.hold_out < 0 or options.hold_out == 1,
        "score_every": options.score_every < 0,
        "appearance.distortion_px": not 0 <= options.appearance.distortion_px <= 64,
    }
    for name, bad in wrong.items():
        if bad:
            raise UsageError(f"`{name}` cannot be {_value(options, name)}. See the range in the help.")
    if len({view.name for view in views.views}) != len(views):
        raise InputError("two of the views have one name; name them apart.")
    return seconds_of(options.budget)


def _value(options: Any, name: str) -> Any:
    for part in name.split("."):
        options = getattr(options, part)
    return options


def _device(options: FitOptions) -> torch.device:
    has = torch.cuda.is_available()
    if options.device == "cuda" and not has:
        raise MissingBackendError("this machine shows PyTorch no CUDA device. Use `--device cpu`.")
    return torch.device("cuda" if options.device != "cpu" and has and options.backend != "native-cpu" else "cpu")


def _points(views: Views, device: torch.device) -> tuple[Tensor, Tensor]:
    points = views.points.float().to(device)
    if len(views.colors):
        return points, views.colors.float().to(device) / 255
    return points, torch.full_like(points, 0.5)


def _setting(album: Album, options: FitOptions, width: float, near: float, device: torch.device) -> Setting:
    drawing = RenderOptions(
        background=BACKGROUNDS.get(options.background, (0.0, 0.0, 0.0)),
        antialiased=options.antialiased,
        near=max(0.5 * near, 1e-4 * width),
    )
    has_depth = any(p.depth is not None for p in album.levels[0]) and options.depth_weight > 0
    return Setting(album, options, choose_tools(device), width, drawing, has_depth)


def _facts(options: FitOptions, album: Album, unseen: Album, limit: int) -> dict[str, Any]:
    """What a resumed run must have in common with the run it goes on with."""
    free = ("save_every", "score_every", "device")
    told = {name: value for name, value in mapping_from(options).items() if name not in free}
    sizes = [[p.camera.width, p.camera.height] for p in album.levels[0]]
    return {**told, "views": list(album.names), "held_out": list(unseen.names), "sizes": sizes, "limit": limit}


def _begin(setting: Setting, gaussians: Gaussians) -> State:
    params = {name: getattr(gaussians, name).clone() for name in NAMES}
    count, device = len(gaussians), gaussians.device
    appearance = new_appearance(len(setting.album), setting.options.appearance, device)
    if setting.options.background == "learned":
        appearance["background"] = torch.zeros(1, 3, device=device)
    return State(
        step=0,
        params=params,
        adam=new_adam_state(params),
        appearance=appearance,
        appearance_adam=new_adam_state(appearance),
        pull=torch.zeros(count, device=device),
        hits=torch.zeros(count, dtype=torch.int32, device=device),
        first=count,
    )


def _finish(setting: Setting, unseen: Album, state: State, log: RunLog) -> Fit:
    whole = gaussians_of(state.params)
    alive = (whole.opacity_logits.sigmoid() > DEAD) & torch.stack(
        [value.reshape(len(value), -1).isfinite().all(1) for value in state.params.values()]
    ).all(0)
    alive &= ~in_the_way(setting.album, whole.means, setting.drawing.near)
    gaussians = select_gaussians(whole, alive)
    learned = state.appearance.get("background")
    score = score_views(setting, unseen, gaussians, None if learned is None else learned[0])
    twists = state.appearance.get("twist")
    poses = [
        refined(picture.camera, None if twists is None else twists[view], setting.width)[0]
        for view, picture in enumerate(setting.album.levels[0])
    ]
    background = setting.drawing.background if learned is None else tuple(learned[0].tolist())
    shown = {} if score is None else {"psnr": score.psnr, "ssim": score.ssim}
    log.event("done", step=state.step, gaussians=len(gaussians), seconds=state.seconds, **shown)
    return Fit(
        gaussians=gaussians,
        score=score,
        history=list(state.history),
        names=setting.album.names,
        held_out=unseen.names,
        exposures=neutral_exposures(state),
        world_from_camera=torch.stack(poses),
        background=background,
        steps=state.step,
        skipped=state.skipped,
        seconds=state.seconds,
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )
