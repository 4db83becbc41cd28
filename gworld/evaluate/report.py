"""The report of a reconstruction: one page that says how good it is, from plain data.

`write_reconstruction_report` takes `ReconstructionFacts` and writes `report.html`; `closing_lines` says the same in
three lines for a terminal. The pieces are those of `html.py`, `charts.py` and `plans.py`, for other pages to use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Shaped

from gworld.evaluate import html
from gworld.evaluate.charts import INFERNO, VIRIDIS, Line, bar_chart, color_bar, line_chart, number, scaled_colors
from gworld.evaluate.html import Fragment, Tile
from gworld.evaluate.plans import CameraPlan, draw_plan

ERROR_TOP = 0.25
"""Absolute error (of 1) at the bright end of the error maps' scale."""
STRIP = 8
"""Pictures of the mask strip that stand in one row."""


@dataclass(frozen=True)
class Limit:
    """One measured figure of a gate: what it is, its value, what was asked for, and whether it is kept."""

    name: str
    value: str
    limit: str
    ok: bool | None = None


@dataclass(frozen=True)
class HeldOutView:
    """One view that the fit never saw: pictures [H,W,3] (uint8, or float in 0..1), and the mask [H,W] that counted.

    PSNR in dB; without pictures it stands in the table alone.
    """

    name: str
    psnr: float
    ssim: float
    truth: Shaped[np.ndarray, "H V 3"] | None = None
    render: Shaped[np.ndarray, "H V 3"] | None = None
    mask: Bool[np.ndarray, "H V"] | None = None


@dataclass(frozen=True)
class Baseline:
    """What the result is measured against: its name and its scores on the same held-out views."""

    name: str
    psnr: float
    ssim: float = math.nan


@dataclass(frozen=True)
class ReconstructionFacts:
    """All that the report of a reconstruction says, as plain data; what is empty is left out of the page.

    `history` are rows of `metrics.csv` (columns step, seconds, psnr, ssim, gaussians, loss; more are ignored);
    `stages` seconds by stage in order; `coverage` shares of seen, extrapolated and invented pixels; `masks` pictures
    with what was masked laid over them; `seconds` and `peak_mb` of the whole run; `files` what was written and what
    it is.
    """

    title: str
    source: str
    shots: int
    registered: int
    command: str = ""
    config: str = ""
    version: str = ""
    how_posed: str = ""
    metric: bool = False
    gaussians: int = 0
    steps: int = 0
    seconds: float = math.nan
    peak_mb: float = math.nan
    floater_score: float = math.nan
    held_out: Sequence[HeldOutView] = ()
    baseline: Baseline | None = None
    plan: CameraPlan | None = None
    gate: Sequence[Limit] = ()
    history: Sequence[Mapping[str, float]] = ()
    stages: Mapping[str, float] = field(default_factory=dict)
    coverage: Mapping[str, float] = field(default_factory=dict)
    masks: Sequence[Shaped[np.ndarray, "H V 3"]] = ()
    warnings: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""


def write_reconstruction_report(path: str | Path, facts: ReconstructionFacts) -> None:
    """Write the page, whole or not at all; it opens without a network and holds its pictures itself."""
    html.write_page(path, reconstruction_page(facts))


def reconstruction_page(facts: ReconstructionFacts) -> str:
    """The page as text."""
    footer = " · ".join(part for part in (f"gworld {facts.version}".strip(), facts.machine) if part)
    return html.page(
        f"{facts.title} – reconstruction",  # noqa: RUF001
        Fragment(f"<h1>{html.text(facts.title)}</h1>"),
        html.paragraph(facts.source, "soft"),
        html.paragraph(headline(facts), "lead"),
        html.warnings_list(facts.warnings),
        _key_figures(facts),
        _poses(facts),
        _held_out(facts),
        _course(facts),
        _masks(facts),
        _costs(facts),
        _provenance(facts),
        footer=footer,
    )


def headline(facts: ReconstructionFacts) -> str:
    """One sentence: how good the world is beside its baseline, and what it stands on."""
    score = mean_scores(facts.held_out)
    posed = f"{facts.registered} of {facts.shots} pictures have a pose"
    if score is None:
        return f"{posed}; no view was held out, so nothing is known of new views."
    text = f"Views that the fit never saw are rendered at {score[0]:.2f} dB PSNR"
    if facts.baseline is not None:
        gain = score[0] - facts.baseline.psnr
        relation = "above" if gain >= 0 else "below"
        text += f", {abs(gain):.2f} dB {relation} {facts.baseline.name} ({facts.baseline.psnr:.2f} dB)"
    return f"{text}. {posed}."


def closing_lines(facts: ReconstructionFacts, run: str | Path) -> tuple[str, str, str]:
    """The three lines that end a run: where it is, how good it is against its baseline, what to do next."""
    score = mean_scores(facts.held_out)
    quality = f"{facts.registered} of {facts.shots} pictures posed"
    if score is not None:
        quality = f"held out: {score[0]:.2f} dB, SSIM {score[1]:.3f} over {len(facts.held_out)} views; " + quality
        if facts.baseline is not None:
            quality = quality.replace(";", f" ({facts.baseline.name}: {facts.baseline.psnr:.2f} dB);", 1)
    if math.isfinite(facts.floater_score):
        quality += f"; {100 * facts.floater_score:.1f} % of the light hangs in the air"
    size = f"{number(facts.gaussians)} Gaussians, {'metric' if facts.metric else 'not metric'}"
    return (
        f"World: {run} ({size}; report.html says more)",
        f"Quality: {quality}",
        f"Next: gworld render {run} --path cameras --outputs rgb depth",
    )


def mean_scores(views: Sequence[HeldOutView]) -> tuple[float, float] | None:
    """Mean PSNR and SSIM of the held-out views that have them; None without any."""
    finite = [view.psnr for view in views if math.isfinite(view.psnr)]
    similar = [view.ssim for view in views if math.isfinite(view.ssim)]
    if not finite:
        return None
    return float(np.mean(finite)), float(np.mean(similar)) if similar else math.nan


def chosen_views(views: Sequence[HeldOutView]) -> list[tuple[str, HeldOutView]]:
    """The worst, the median and the best view among those with pictures, fewer where there are fewer."""
    shown = sorted(
        (view for view in views if view.truth is not None and view.render is not None and math.isfinite(view.psnr)),
        key=lambda view: view.psnr,
    )
    names = {1: ("only",), 2: ("worst", "best")}.get(len(shown), ("worst", "median", "best"))
    places = np.linspace(0, max(len(shown) - 1, 0), len(names)).round().astype(int)[: len(shown)]
    return [(name, shown[place]) for name, place in zip(names, places, strict=False)]


def error_map(view: HeldOutView) -> np.ndarray:
    """Mean absolute error over the channels as colours, 0 .. `ERROR_TOP`; grey where the mask says nothing counts."""
    assert view.truth is not None and view.render is not None
    truth, render = (html.to_uint8(picture).astype(np.float32) / 255 for picture in (view.truth, view.render))
    colors = scaled_colors(np.abs(truth - render).mean(-1) / ERROR_TOP, INFERNO)
    if view.mask is not None:
        colors[~view.mask] = 128
    return colors


def _key_figures(facts: ReconstructionFacts) -> Fragment:
    score = mean_scores(facts.held_out)
    tiles = []
    if score is not None:
        better = None if facts.baseline is None else score[0] >= facts.baseline.psnr
        note = f"mean of {len(facts.held_out)} held-out views"
        if facts.baseline is not None:
            note += f"; {facts.baseline.name} {facts.baseline.psnr:.2f} dB"
        kind: html.Verdict = "none" if better is None else "good" if better else "poor"
        tiles += [Tile("PSNR of new views", f"{score[0]:.2f} dB", note, kind)]
        tiles += [Tile("SSIM of new views", f"{score[1]:.3f}", "1 is equal")]
    share = 100 * facts.registered / max(facts.shots, 1)
    tiles += [
        Tile("Pictures posed", f"{share:.0f} %", f"{facts.registered} of {facts.shots}; {facts.how_posed}".strip("; "))
    ]
    if facts.gaussians:
        tiles += [Tile("Gaussians", number(facts.gaussians), f"after {facts.steps} steps" if facts.steps else "")]
    if math.isfinite(facts.floater_score):
        tiles += [Tile("Floaters", f"{100 * facts.floater_score:.1f} %", "share of light that hangs in free space")]
    if "seen" in facts.coverage:
        note = ", ".join(f"{100 * facts.coverage.get(name, 0):.0f} % {name}" for name in ("extrapolated", "invented"))
        tiles += [Tile("Seen by two views", f"{100 * facts.coverage['seen']:.0f} %", f"of new views' pixels; {note}")]
    tiles += [
        Tile("Scale", "metric" if facts.metric else "relative", "metres" if facts.metric else "no length was known")
    ]
    if math.isfinite(facts.seconds):
        tiles += [Tile("Time", duration(facts.seconds), _memory(facts))]
    return html.tiles(tiles)


def _poses(facts: ReconstructionFacts) -> Fragment:
    parts = []
    if facts.plan is not None and len(facts.plan.world_from_camera):
        height = "+Z is up" if facts.plan.upright else "no gravity is known: up is where the cameras spread least"
        parts.append(
            html.pair(
                html.figure(draw_plan(facts.plan), f"From above. Held-out views are hollow; {height}."),
                html.figure(draw_plan(facts.plan, side=True), "From the side."),
            )
        )
        parts.append(html.figure(color_bar("first", "last view", VIRIDIS)))
    rows = [(limit.name, limit.value, limit.limit, html.verdict(limit.ok)) for limit in facts.gate]
    parts.append(html.table(("Figure", "Measured", "Limit", "Verdict"), rows, numeric=(1, 2)))
    return html.section("Camera poses", *parts)


def _held_out(facts: ReconstructionFacts) -> Fragment:
    parts = []
    for name, view in chosen_views(facts.held_out):
        assert view.truth is not None and view.render is not None
        heading = f"{name}: {view.name}, {view.psnr:.2f} dB, SSIM {view.ssim:.3f}"
        pictures = [
            html.figure(html.image(view.truth, f"{view.name}, photographed"), "photographed"),
            html.figure(html.image(view.render, f"{view.name}, rendered"), "rendered"),
            html.figure(html.image(error_map(view), f"{view.name}, error", lossless=True), "error"),
        ]
        parts += [Fragment(f"<h3>{html.text(heading)}</h3>"), html.row(pictures)]
    if parts:
        grey = "; grey: masked" if any(view.mask is not None for _, view in chosen_views(facts.held_out)) else ""
        caption = f"Error: mean absolute difference of the three channels, each from 0 to 1{grey}."
        parts.append(html.figure(color_bar("0", f"{ERROR_TOP:g}", INFERNO), caption))
    ordered = sorted(facts.held_out, key=lambda view: view.name)
    rows = [(view.name, f"{view.psnr:.2f}", f"{view.ssim:.3f}") for view in ordered]
    parts.append(html.folded("all held-out views", html.table(("View", "PSNR, dB", "SSIM"), rows, numeric=(1, 2))))
    return html.section("New views", *parts)


def _course(facts: ReconstructionFacts) -> Fragment:
    def line(name: str, x: str, y: str) -> Line:
        rows = facts.history
        return Line(name, [row.get(x, math.nan) for row in rows], [row.get(y, math.nan) for row in rows])

    reference: list[Line] = []
    seconds = [row["seconds"] for row in facts.history if math.isfinite(row.get("seconds", math.nan))]
    if facts.baseline is not None and seconds:
        ends = [min(seconds), max(seconds)]
        reference = [Line(facts.baseline.name, ends, [facts.baseline.psnr] * 2, dashed=True)]
    scored = line("held out", "seconds", "psnr")
    over_time = (
        line_chart([scored, *reference], "seconds", "PSNR, dB", points=True)
        if any(map(math.isfinite, scored.y))
        else Fragment("")
    )
    charts = [
        over_time,
        line_chart([line("", "step", "psnr")], "step", "held-out PSNR, dB", points=True),
        line_chart([line("", "seconds", "gaussians")], "seconds", "Gaussians"),
        line_chart([line("", "step", "loss")], "step", "loss"),
    ]
    drawn = [html.figure(chart) for chart in charts if chart]
    return html.section("Course of the fit", html.pair(*drawn)) if drawn else Fragment("")


def _masks(facts: ReconstructionFacts) -> Fragment:
    chosen = np.unique(np.linspace(0, len(facts.masks) - 1, min(STRIP, len(facts.masks))).round().astype(int))
    pictures = (
        [html.image(facts.masks[index], "what was masked", longest=320) for index in chosen] if len(facts.masks) else []
    )
    rows = [html.row(pictures[start : start + 4]) for start in range(0, len(pictures), 4)]
    note = html.paragraph(
        "What moves, or was named, is marked; it is not fitted and does not count in the scores.", "soft"
    )
    return html.section("Masks", note, *rows) if pictures else Fragment("")


def _costs(facts: ReconstructionFacts) -> Fragment:
    names, values = list(facts.stages), list(facts.stages.values())
    memory = html.paragraph(f"Peak memory: {_memory(facts)}.") if _memory(facts) else Fragment("")
    return html.section("Time and memory", bar_chart(names, values, "s"), memory) if names else Fragment("")


def _provenance(facts: ReconstructionFacts) -> Fragment:
    parts = [html.table(("File", "What it is"), list(facts.files.items()))]
    if facts.command:
        parts += [html.paragraph("This command made it:", "soft"), html.code(facts.command)]
    if facts.config:
        parts.append(html.folded("the whole configuration", html.code(facts.config)))
    return html.section("How to make it again", *parts)


def _memory(facts: ReconstructionFacts) -> str:
    return f"{facts.peak_mb:.0f} MB at most" if math.isfinite(facts.peak_mb) else ""


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 12 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
