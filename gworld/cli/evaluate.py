"""`gworld evaluate`: what a run or a rollout is worth, as one page that holds its films and charts itself."""

from __future__ import annotations

import math
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from gworld.cli.options import print_json, say
from gworld.errors import UsageError
from gworld.files import refuse_existing

if TYPE_CHECKING:
    from gworld.cli.evaluate_trials import Subject
    from gworld.evaluate.html import Tile, Verdict
    from gworld.evaluate.physics import Physics
    from gworld.evaluate.rollout_report import Check, RolloutFacts
    from gworld.evaluate.trials import Trial

DEEP, GAINED, DRIFTED = 0.005, 0.05, 1e-3
"""Metres of overlap, share of energy and metres of drift up to which a motion passes for physical."""


@dataclass(frozen=True)
class Options:
    """What is judged, beside what."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_ROLLOUT")]
    """A rollout (.parquet, or the video beside it), a folder of rollouts, an episode store, a world with its dynamics,
    or a trained run (with --world and --truth)."""
    truth: Path | None = None
    """Recorded episodes to compare with; a rollout made with --compare knows its own."""
    world: Path | None = None
    """The world; a rollout knows the one that it was made in."""
    out: Path | None = None
    """The page; NAME-report.html beside what is judged when not given."""
    number: int | None = None
    """Compare with this episode of --truth alone; rollouts with episode 0 when not given, runs with several."""
    episodes: int = 6
    """How many recorded episodes a run is judged on."""
    starts: int = 2
    """From how many instants of each episode a run predicts."""
    seconds: float = 3.0
    """How far a run predicts."""
    films: int = 3
    """Predictions that are filmed, from the worst to the best; 0 leaves films out."""
    width: int = 320
    """Width of a film's panel in pixels."""
    overwrite: bool = False
    """Replace the page."""
    json: bool = False
    """Print the figures as one JSON object on stdout."""


def run(options: Options) -> None:
    """Judge; raises `UsageError` for a request that cannot be met, `InputError` for what cannot be read."""
    finished = options.run / "report.html"
    if finished.is_file() and options.truth is None:
        _reconstruction(options, finished)
        return
    figures = make(options)
    if options.json:
        print_json(figures)
        return
    out = Path(figures["report"])
    say(f"report: {out} ({figures['bytes'] / 1e6:.1f} MB, opens anywhere)")
    say(f"result: {figures['headline']}")
    say(f"next: open {shlex.quote(str(out))}" + "".join(f"; broken: {name}" for name in figures["broken"]))


def make(options: Options) -> dict[str, Any]:
    """Judge and write the page; returns the figures that `--json` prints."""
    from gworld.cli.evaluate_trials import gather_subject
    from gworld.evaluate.rollout_report import write_rollout_report

    out = options.out or default_page(options.run)
    refuse_existing(out, overwrite=options.overwrite)
    facts, figures = judge(gather_subject(options), options)
    write_rollout_report(out, facts)
    broken = [check.name for check in facts.checks if check.ok is False]
    size = out.stat().st_size
    return {"report": str(out), "bytes": size, "headline": facts.headline, "broken": broken, **figures}


def default_page(run: Path) -> Path:
    """Where the page goes when nothing is said."""
    return run.parent / f"{run.stem if run.is_file() else run.name}-report.html"


def judge(subject: Subject, options: Options) -> tuple[RolloutFacts, dict[str, Any]]:
    """The page's facts, and the figures for machines."""
    from gworld import __version__
    from gworld.bench.rows import machine
    from gworld.cli.evaluate_films import film_trials
    from gworld.dynamics.tokens import compile_scene
    from gworld.evaluate.physics import measure_physics
    from gworld.evaluate.rollout_report import Chart, RolloutFacts
    from gworld.evaluate.trials import body_rows, horizon_lines

    world, trials = subject.world, subject.trials
    command = shlex.join(["gworld", *sys.argv[1:]])
    physics, meters = [], []
    if bool((world.gaussians.links > 0).any()):  # a world of which nothing moves has no bodies to be judged
        shapes = compile_scene([world], trials[0].seconds)
        physics = [measure_physics(world, trial.predicted, trial.seconds, shapes) for trial in trials]
        meters = [measure_physics(world, t.truth, t.seconds, shapes) for t in trials if t.truth is not None]
    charts = []
    for kind in ("object", "agent"):
        caption = (
            f"Median of all {kind}s that truly moved a centimetre by then; shaded: the 10th to 90th percentile "
            f"({_counted(len(trials), 'prediction')})."
        )
        lines = horizon_lines(world, trials, kind)
        charts.append(Chart(f"{kind.capitalize()}s", lines, "seconds ahead", "error, mm", caption, command))
    films, pixels = film_trials(subject, options) if options.films else ([], [])
    charts += pixels
    bodies = body_rows(world, trials)
    checks = _checks(physics, meters, subject.null_drift)
    figures = _figures(subject, bodies, physics)
    return (
        RolloutFacts(
            title=options.run.name,
            source=subject.source,
            headline=_headline(figures, trials),
            tiles=_tiles(figures, physics),
            charts=[chart for chart in charts if chart.lines],
            films=films,
            bodies=bodies,
            checks=checks,
            costs=subject.costs,
            cost_command=subject.command or command,
            warnings=subject.warnings,
            command=command,
            version=__version__,
            machine=machine(),
        ),
        figures,
    )


def _figures(subject: Subject, bodies: list[Any], physics: list[Physics]) -> dict[str, Any]:
    from gworld.evaluate.trials import false_motion
    from gworld.simulate.score import motion_ratio

    judged = [trial for trial in subject.trials if trial.truth is not None]
    moved = [row for row in bodies if row.moved > 0.01]

    def mean(name: str) -> float | None:
        return sum(getattr(row, name) for row in moved) / len(moved) if moved else None

    ratios = [motion_ratio(subject.world, t.predicted, t.truth) for t in judged if t.truth is not None]
    ratios = [ratio for ratio in ratios if math.isfinite(ratio)]
    kept, rested = false_motion(subject.world, judged)
    overlaps = [found.overlap for found in physics if math.isfinite(found.overlap)]
    return {
        "trials": len(subject.trials),
        "seconds": max((float(trial.times[-1]) for trial in subject.trials), default=0.0),
        "error_m": mean("error"),
        "copy_m": mean("copy"),
        "constant_velocity_m": mean("coast"),
        "motion_ratio": sum(ratios) / len(ratios) if ratios else None,
        "rest_kept": kept,
        "rested": rested,
        "overlap_m": max(overlaps) if overlaps else None,
        "null_drift_m": subject.null_drift,
    }


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _headline(figures: dict[str, Any], trials: list[Trial]) -> str:
    if not any(trial.truth is not None for trial in trials):
        what = _counted(figures["trials"], "motion")
        return f"{what} of {figures['seconds']:.1f} s; no truth is known, physics alone is judged."
    if figures["error_m"] is None:
        return "Nothing truly moved by a centimetre, so there is no motion to predict."
    return (
        f"What moved is {1e3 * figures['error_m']:.1f} mm off after {figures['seconds']:.1f} s (copying the start "
        f"{1e3 * figures['copy_m']:.1f} mm, constant velocity {1e3 * figures['constant_velocity_m']:.1f} mm)."
    )


def _tiles(figures: dict[str, Any], physics: list[Physics]) -> list[Tile]:
    from gworld.evaluate.html import Tile

    tiles = []
    if figures["error_m"] is not None:
        best = min(figures["copy_m"], figures["constant_velocity_m"])
        kind: Verdict = "good" if figures["error_m"] < best else "poor"
        note = f"best baseline {1e3 * best:.1f} mm; mean of bodies that move"
        tiles.append(Tile("Error at the end", f"{1e3 * figures['error_m']:.1f} mm", note, kind))
    if figures["motion_ratio"] is not None:
        tiles.append(
            Tile("Motion ratio", f"{figures['motion_ratio']:.2f}", "predicted path over true path; 1 is right")
        )
    if figures["rested"]:
        tiles.append(
            Tile("Rest kept", f"{figures['rest_kept']} of {figures['rested']}", "resting objects left to 1 mm")
        )
    if figures["overlap_m"] is not None:
        worst = max(physics, key=lambda found: found.overlap if math.isfinite(found.overlap) else -1)
        tiles.append(Tile("Deepest overlap", f"{1e3 * figures['overlap_m']:.1f} mm", worst.between))
    if figures["null_drift_m"] is not None:
        note = "of objects in 10 s when nobody acts"
        tiles.append(Tile("Drift at rest", f"{1e3 * figures['null_drift_m']:.2f} mm", note))
    return tiles


def _checks(physics: list[Physics], meters: list[Physics], null_drift: float | None) -> list[Check]:
    """The worst of each figure over all motions; a limit is widened to what the recording itself shows."""
    from gworld.evaluate.rollout_report import Check

    def worst(name: str, found: list[Physics]) -> float:
        values = [getattr(each, name) for each in found]
        return max((value for value in values if math.isfinite(value)), default=math.nan)

    rows = (
        ("overlap of two bodies, mm", "overlap", 1e3, 1e3 * DEEP),
        ("sunk into what objects lie on, mm", "sunk", 1e3, 1e3 * DEEP),
        ("energy gained by an object nothing touches, % of its most", "energy", 100.0, 100 * GAINED),
        ("momentum: speed gained by such an object in a step, mm/s", "speed", 1e3, 10.0),
        ("drift of objects at rest before anything touches them, mm", "drift", 1e3, 1e3 * DRIFTED),
    )
    checks = []
    for label, name, unit, limit in rows:
        value, truth = unit * worst(name, physics), unit * worst(name, meters)
        if math.isfinite(value):
            bound = max(limit, 1.2 * truth) if math.isfinite(truth) else limit
            shown = f"{truth:.3g}" if math.isfinite(truth) else ""
            checks.append(Check(label, f"{value:.3g}", shown, f"<= {bound:.3g}", value <= bound))
    if null_drift is not None:
        value = 1e3 * null_drift
        checks.append(Check("drift in 10 s when nobody acts, mm", f"{value:.3g}", "", "<= 0.1", value <= 0.1))
    return checks


def _reconstruction(options: Options, report: Path) -> None:
    """A reconstruction has been judged where it was made, on pictures held out from it."""
    if options.out is not None:
        raise UsageError(f"`{options.run}` has its report already: {report}. Leave `--out` away.")
    if options.json:
        print_json({"report": str(report), "bytes": report.stat().st_size})
        return
    say(f"report: {report} (made with the reconstruction, on views held out from it)")
