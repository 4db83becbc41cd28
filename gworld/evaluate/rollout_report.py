"""The report of predictions: films side by side, errors over the horizon, physics, memory and speed, in one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gworld.evaluate import html
from gworld.evaluate.charts import Line, line_chart
from gworld.evaluate.html import Fragment, Tile
from gworld.evaluate.trials import BodyRow


@dataclass(frozen=True)
class Film:
    """An MP4 in the page: a heading, its bytes, what is seen in it, and the command that makes it."""

    title: str
    data: bytes
    caption: str = ""
    command: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart of lines, what it shows, and the command that makes it."""

    title: str
    lines: Sequence[Line]
    x_label: str
    y_label: str
    caption: str = ""
    command: str = ""


@dataclass(frozen=True)
class Check:
    """One figure of physics: the prediction's, the recording's by the same meter, the limit, and whether it is kept."""

    name: str
    value: str
    truth: str = ""
    limit: str = ""
    ok: bool | None = None


@dataclass(frozen=True)
class RolloutFacts:
    """All that the report of predictions says, as plain data; what is empty is left out of the page.

    `tiles` are the headline figures, `costs` rows of name and value (memory, speed), `command` what made the page.
    """

    title: str
    source: str
    headline: str
    tiles: Sequence[Tile] = ()
    charts: Sequence[Chart] = ()
    films: Sequence[Film] = ()
    bodies: Sequence[BodyRow] = ()
    checks: Sequence[Check] = ()
    costs: Mapping[str, str] = field(default_factory=dict)
    cost_command: str = ""
    warnings: Sequence[str] = ()
    command: str = ""
    version: str = ""
    machine: str = ""


def write_rollout_report(path: str | Path, facts: RolloutFacts) -> None:
    """Write the page, whole or not at all; it opens without a network and holds its films itself."""
    html.write_page(path, rollout_page(facts))


def rollout_page(facts: RolloutFacts) -> str:
    """The page as text."""
    footer = " · ".join(part for part in (f"gworld {facts.version}".strip(), facts.machine) if part)
    return html.page(
        f"{facts.title} – evaluation",  # noqa: RUF001
        Fragment(f"<h1>{html.text(facts.title)}</h1>"),
        html.paragraph(facts.source, "soft"),
        html.paragraph(facts.headline, "lead"),
        html.warnings_list(facts.warnings),
        html.tiles(facts.tiles),
        _films(facts.films),
        _charts(facts),
        _physics(facts),
        _costs(facts),
        html.section("How to make it again", html.code(facts.command)) if facts.command else Fragment(""),
        footer=footer,
    )


def _films(films: Sequence[Film]) -> Fragment:
    parts = []
    for film in films:
        parts += [
            Fragment(f"<h3>{html.text(film.title)}</h3>"),
            html.figure(html.film(film.data, film.title), film.caption),
        ]
        parts += [html.code(film.command)] if film.command else []
    return html.section("Side by side", *parts)


def _charts(facts: RolloutFacts) -> Fragment:
    drawn = []
    for chart in facts.charts:
        picture = line_chart(chart.lines, chart.x_label, chart.y_label)
        if picture:
            below = [html.code(chart.command)] if chart.command else []
            head = Fragment(f"<h3>{html.text(chart.title)}</h3>")
            drawn.append(html.join([head, html.figure(picture, chart.caption), *below]))
    rows = [
        (row.body, *(f"{1e3 * value:.1f}" for value in (row.moved, row.error, row.coast, row.copy)))
        for row in facts.bodies
    ]
    columns = ("Body", "truly went, mm", "prediction, mm", "constant velocity, mm", "copy, mm")
    bodies = html.table(columns, rows, numeric=(1, 2, 3, 4))
    title = Fragment("<h3>Errors at the end, medians over all trials</h3>") if rows else Fragment("")
    parts = [html.pair(*drawn)] if drawn else []
    return html.section("Over the horizon", *parts, title, bodies)


def _physics(facts: RolloutFacts) -> Fragment:
    rows = [(c.name, c.value, c.truth, c.limit, html.verdict(c.ok)) for c in facts.checks]
    columns = ("Check", "prediction", "recording, same meter", "limit", "verdict")
    return html.section("Physics", html.table(columns, rows, numeric=(1, 2, 3)))


def _costs(facts: RolloutFacts) -> Fragment:
    table = html.table(("Figure", "value"), list(facts.costs.items()), numeric=(1,))
    return html.section(
        "Memory and speed", table, html.code(facts.cost_command) if facts.cost_command else Fragment("")
    )
