"""The stages of `gworld reconstruct`, each written down when it is done, so that a run can be gone on with."""

from __future__ import annotations

import contextlib
import math
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from gworld.capture.calibration import write_calibration
from gworld.capture.colmap_library import load_pycolmap
from gworld.capture.extract import extract_footage, load_facts
from gworld.capture.footage import Footage, FootageCamera, Shot, load_footage, save_footage, shots_of
from gworld.capture.known import known_views, match_known
from gworld.capture.localise import FixedCamera, localise_cameras
from gworld.capture.logfile import read_hand_log, read_imu_log
from gworld.capture.masks import mask_footage, read_findings
from gworld.capture.overlay import write_overlay
from gworld.capture.poses import find_poses
from gworld.capture.times import read_times, set_times
from gworld.checkpoint import latest_checkpoint
from gworld.cli.options import say
from gworld.cli.reconstruct import Options
from gworld.cli.reconstruct_episodes import Scan, reconstruct_scan
from gworld.cli.reconstruct_output import Story, write_outputs
from gworld.config import config_from, read_recipe, save_config
from gworld.errors import InputError, UsageError
from gworld.files import read_json, refuse_existing, write_json
from gworld.formats.transforms import write_transforms
from gworld.reconstruct.fit import Fit, fit_views
from gworld.reconstruct.frame import place_views
from gworld.reconstruct.options import FitOptions
from gworld.reconstruct.schedule import seconds_of
from gworld.render.select import why_unavailable
from gworld.scene.views import Views
from gworld.viewer.follow import LIVE, SAVED_EVERY, WISH, Watched

STAGES = "stages.json"
OWN = ("config.yaml", STAGES, "footage", "poses", "checkpoints", "previews", "log.jsonl", "metrics.csv", "plan.json",
       "world", "report.html", "orbit.mp4", "masks.mp4", "mesh.ply", "fixed", "fixed.json", ".lock",
       LIVE, WISH)  # fmt: skip


def make(options: Options) -> dict[str, Any]:
    """Reconstruct and return the figures; raises as `run`."""
    started = time.monotonic()
    if options.episodes is not None:
        facts = _from_episodes(options, options.episodes)
        return facts | {"seconds": round(time.monotonic() - started, 1)}
    options = _begin(options)
    with contextlib.ExitStack() as stack:
        watched = stack.enter_context(Watched(options.out)) if options.view else None
        record = _Record(options.out, watched)
        try:
            footage = _capture(options, record)
            views = _pose(options, record, footage)
            _place_fixed(options, record, views)
            fit = _fit(options, record, views)
            record.progress()("scores, coverage, report", 0.0)
            facts = write_outputs(Story(options.out, views, fit, dict(record.stages), _command(), options.mesh))
        except KeyboardInterrupt:
            say(f"interrupted; go on with: gworld reconstruct --resume --out {shlex.quote(str(options.out))}")
            raise
    facts["seconds"] = round(time.monotonic() - started, 1)
    return facts


def _from_episodes(options: Options, episodes: Path) -> dict[str, Any]:
    """A world out of recorded episodes; refuses options that belong to other footage."""
    if options.video or options.data is not None or options.resume:
        raise UsageError("`--episodes` goes without `--video`, `--data` and `--resume`.")
    scan = Scan(episodes, options.bound or episodes / "world", options.out, options.fit, options.overwrite)
    return reconstruct_scan(scan, _progress())


class _Record:
    """Which stages of a run are done, and what was found in each; written after each. Tells who watches, too."""

    def __init__(self, out: Path, watched: Watched | None = None) -> None:
        self.path, self.watched = out / STAGES, watched
        self.stages: dict[str, Any] = read_json(self.path) if self.path.exists() else {}

    def done(self, name: str, began: float, **facts: Any) -> None:
        """Note a finished stage and its seconds."""
        self.stages[name] = {"seconds": round(time.monotonic() - began, 2), **facts}
        write_json(self.path, self.stages)

    def progress(self) -> Callable[[str, float], None]:
        """What a stage tells of its progress: a line for the terminal, a word for viewers."""
        line, watched = _progress(), self.watched
        if watched is None:
            return line

        def tell(stage: str, share: float) -> None:
            line(stage, share)
            watched.tell(stage, share)

        return tell


def _begin(options: Options) -> Options:
    """The options of the run: those given for a new one, those written down for one that is resumed."""
    config = options.out / "config.yaml"
    if options.resume:
        if not config.is_file():
            raise UsageError(f"`{options.out}` holds no run to resume (no config.yaml). Start one without `--resume`.")
        kept = config_from(Options, read_recipe(config), source=f"`{config}`")
        kept = replace(kept, out=options.out, resume=True, json=options.json, view=options.view)
        return replace(kept, mesh=options.mesh or kept.mesh)
    if bool(options.video) == (options.data is not None):
        raise UsageError(
            "give footage (`--video FILE`) or posed pictures (`--data FOLDER`), one of the two; or `--episodes STORE`."
        )
    for log in ("hand_log", "imu_log"):
        if getattr(options, log) is not None and len(options.video) != 1:
            name = f"--{log.replace('_', '-')}"
            raise UsageError(f"`{name}` belongs to one video; {len(options.video)} were given.")
    if options.times and len(options.times) != len(options.video):
        raise UsageError(f"{len(options.times)} `--times` were given for {len(options.video)} inputs; one for each.")
    refuse_existing(options.out, overwrite=options.overwrite or _barren(options.out))
    _clear(options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    options = _absolute(options)
    save_config(replace(options, overwrite=False), config)
    return options


def _absolute(options: Options) -> Options:
    """Inputs by their whole paths, so that the run can be resumed from anywhere."""

    def whole(path: Path | None) -> Path | None:
        return None if path is None else path.resolve()

    source = options.masks.source
    return replace(
        options,
        video=tuple(path.resolve() for path in options.video),
        fixed=tuple(path.resolve() for path in options.fixed),
        times=tuple(path.resolve() for path in options.times),
        data=whole(options.data),
        poses_from=whole(options.poses_from),
        hand_log=whole(options.hand_log),
        imu_log=whole(options.imu_log),
        masks=replace(options.masks, source=source if source in ("auto", "none") else str(Path(source).resolve())),
    )


def _barren(out: Path) -> bool:
    """Whether a run ended before it made anything, as with a mistyped path: the mended command may take its place."""
    return out.is_dir() and [entry.name for entry in out.iterdir()] == ["config.yaml"]


def _clear(out: Path) -> None:
    """Remove an earlier run; a folder that holds anything else is left alone."""
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / "config.yaml").is_file()):
        raise UsageError(f"`{out}` holds other things than a run of gworld; choose another `--out`.")
    strange = sorted(entry.name for entry in out.iterdir() if entry.name not in OWN)
    if strange:
        raise UsageError(f"`{out}` also holds {', '.join(strange[:3])}; move that away, or choose another `--out`.")
    shutil.rmtree(out)


def _capture(options: Options, record: _Record) -> Footage:
    """Pictures, and what moves in them masked."""
    folder, began, tell = options.out / "footage", time.monotonic(), record.progress()
    if options.data is not None:
        return _footage_of(known_views(options.data), folder)
    if "masks" in record.stages:
        return load_footage(folder)
    footage = extract_footage(options.video, folder, options.capture, tell)
    for fact in load_facts(folder):
        say(f"{fact.source}: {fact.kept} of {fact.looked} pictures kept" + (", the camera stands still" * fact.still))
    if options.times:
        cameras = [fact.cameras for fact in load_facts(folder)]
        footage = set_times(footage, cameras, [read_times(path) for path in options.times])
        save_footage(footage)
    record.done("capture", began, pictures=len(footage), inputs=[asdict(fact) for fact in load_facts(folder)])
    began = time.monotonic()
    footage = mask_footage(footage, options.masks, tell)
    save_footage(footage)
    for found in read_findings(footage):
        if not found.trusted:
            say(
                f"warning: {found.camera}: the camera's motion explains only {found.explained:.0%} of the picture, so "
                "nothing was masked as moving; give masks (`--masks.source FOLDER`) if something large moves"
            )
    masked = [shot for shot in footage.shots if shot.mask is not None]
    if masked:
        write_overlay(footage, options.out / "masks.mp4")
        say(f"masked what moves in {len(masked)} pictures; look at {options.out / 'masks.mp4'}")
    record.done("masks", began, masked=len(masked))
    return footage


def _footage_of(views: Views, folder: Path) -> Footage:
    """The pictures of posed views as footage, where they lie."""
    if any(view.image is None for view in views.views):
        missing = next(view.name for view in views.views if view.image is None)
        raise InputError(f"view `{missing}` has no picture beside its pose. Put the pictures where the data set says.")
    first = views.views[0]
    camera = FootageCamera("data", first.width, first.height, photos=True)
    shots = [Shot(v.name, 0, v.image, k, v.time, v.mask, v.depth) for k, v in enumerate(views.views) if v.image]
    return Footage(folder, (camera,), tuple(shots), views.depth_scale)


def _pose(options: Options, record: _Record, footage: Footage) -> Views:
    """Poses found or taken, upright, and in metres where anything tells."""
    folder, began = options.out / "poses", time.monotonic()
    if "poses" in record.stages:
        return known_views(folder / "transforms.json")
    load_pycolmap()  # first from the main thread, so that SIGTERM stays ours
    known = None
    if options.data is not None:
        known = known_views(options.data)
    elif options.poses_from is not None:
        known = match_known(footage, known_views(options.poses_from))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    posed = find_poses(footage, folder, options.poses, known, record.progress())
    log = None if options.hand_log is None else read_hand_log(options.hand_log)
    sensor = footage.depth_scale if any(shot.depth for shot in footage.shots) else None
    imu = None if options.imu_log is None else read_imu_log(options.imu_log)
    views, frame = place_views(posed.views, options.frame, log, sensor, imu)
    frame = replace(frame, warnings=(*posed.warnings, *frame.warnings))
    write_transforms(views, folder / "transforms.json")
    for warning in frame.warnings:
        say(f"warning: {warning}")
    quality = posed.quality
    say(f"posed {quality.registered} of {quality.pictures} pictures by {posed.how}")
    say(f"scale: {frame.scale}; up: {frame.up}")
    record.done("poses", began, how=posed.how, quality=_finite(asdict(quality)), frame=asdict(frame))
    return known_views(folder / "transforms.json")


def _place_fixed(options: Options, record: _Record, views: Views) -> None:
    """Find the cameras that stand still by what they share with the posed pictures; write their calibration."""
    began = time.monotonic()
    if not options.fixed or "fixed" in record.stages:
        return
    footage = extract_footage(options.fixed, options.out / "fixed", options.capture, record.progress())
    cameras = [
        FixedCamera(c.name, c.width, c.height, tuple(s.image for s in shots_of(footage, k)), c.K, c.distortion)
        for k, c in enumerate(footage.cameras)
    ]
    found = localise_cameras(views, cameras, progress=record.progress())
    placed = Views(tuple(one.view for one in found), metric=views.metric)
    write_calibration(placed, options.out / "fixed.json")
    unit = "m" if views.metric else "units"
    for one in found:
        turn = math.degrees(one.turn_spread)
        sure = f"{one.place_spread:.2g} {unit} and {turn:.2g} degrees"
        say(f"{one.view.name}: placed by {one.matches} points, sure to {sure}")
    record.done("fixed", began, cameras=[one.view.name for one in found])


def _fit(options: Options, record: _Record, views: Views) -> Fit:
    began = time.monotonic()
    if not torch.cuda.is_available() and (reason := why_unavailable("native-cpu")) is not None:
        say(f"warning: the fit runs on plain torch, hundreds of times slower than the native renderer: {reason}")
    own_steps = options.fit.steps != FitOptions.steps
    appearance = options.fit.appearance
    if appearance.poses is None:
        given = record.stages["poses"]["how"] == "known poses" and views.metric
        appearance = replace(appearance, poses=not given)
    budget = options.fit.budget or ("" if own_steps else options.budget)
    fit = replace(options.fit, budget=budget, appearance=appearance)
    progress, watched = record.progress(), record.watched
    if watched is not None:
        fit = replace(fit, save_every=min(fit.save_every, SAVED_EVERY))  # what viewers see
    rest = None if watched is None else watched.between
    result = fit_views(views, fit, options.out, resume=_has_checkpoint(options), progress=progress, rest=rest)
    if budget and result.seconds < 0.8 * seconds_of(budget):
        say(
            f"the fit needed {result.seconds:.0f} s of its {budget}: every picture was fitted {fit.epochs} times, and "
            "more would be learned by heart (`--fit.epochs 0` goes on)"
        )
    record.done("fit", began, steps=result.steps)
    return result


def _has_checkpoint(options: Options) -> bool:
    return options.resume and latest_checkpoint(options.out) is not None


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """NaN is not JSON."""
    return {key: None if isinstance(value, float) and value != value else value for key, value in values.items()}


def _command() -> str:
    return shlex.join(["gworld", *sys.argv[1:]])


def _progress() -> Callable[[str, float], None]:
    """A line on a terminal that rewrites itself; elsewhere a line when a stage ends or ten seconds have passed."""
    live = sys.stderr.isatty()
    last: tuple[float, str] = (0.0, "")

    def tell(stage: str, share: float) -> None:
        nonlocal last
        now = time.monotonic()
        if live:
            width = shutil.get_terminal_size().columns - 1
            end = "\n" if share >= 1 else ""
            print(f"\r{f'{share:4.0%} {stage}':<{width}.{width}}", end=end, file=sys.stderr, flush=True)
        elif now - last[0] > 10 or (share >= 1 and last[1] != stage):
            last = (now, stage)
            print(f"{share:4.0%} {stage}", file=sys.stderr, flush=True)

    return tell
