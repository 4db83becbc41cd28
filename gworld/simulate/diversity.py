"""How varied episodes are: cells of state, action and contact that they visit, and how many are really different."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float

from gworld.errors import InputError
from gworld.geometry import transform_from_pose
from gworld.scene.episode import Episode
from gworld.scene.world import World
from gworld.simulate.plausible import Clearance

GRID, PLACES, TOWARD, LEVELS, CHANGES = 12, 6, 8, 8, 4
"""Cells along each side of the room for places, for contacts; directions; levels of actions, and of their changes."""
TOUCH = 0.01
"""Metres between surfaces below which bodies touch: Gaussians end a little inside a surface."""
MOST = 512
"""Episodes that are compared with each other."""
PAIRS = ("agent-agent", "agent-object", "object-object")

Cells = dict[str, np.ndarray]
"""How often an episode was in each cell, by what it is a cell of: `objects`, `agents`, `actions`, `contacts`."""


@dataclass(frozen=True)
class Gauge:
    """What episodes of a world are measured with: the room's corners on the level, the limits of actions by agent, the
    links that are there, and how far apart they are."""

    clearance: Clearance
    low: np.ndarray
    high: np.ndarray
    limits: Mapping[str, tuple[np.ndarray, np.ndarray]]
    links: tuple[str, ...]


@dataclass
class Tally:
    """What a set of episodes visited: cells by kind, and each episode's own share of them."""

    seen: dict[str, np.ndarray] = field(default_factory=dict)
    rows: list[np.ndarray] = field(default_factory=list)

    def add(self, cells: Cells) -> None:
        """Count one more episode."""
        for name, counts in cells.items():
            before = self.seen.get(name, np.zeros_like(counts))
            self.seen[name] = before + counts
        self.rows.append(descriptor(cells))

    def coverage(self) -> dict[str, float]:
        """The part of all cells of each kind that was visited."""
        return {name: float((counts > 0).mean()) for name, counts in self.seen.items()}

    def distinct(self) -> float:
        """How many episodes there are that have nothing in common, as many as these are worth.

        The Vendi score: the exponential of the entropy of the eigenvalues of their similarities (1 when all are alike,
        their number when none shares a cell with another), of `MOST` evenly chosen ones. Source: Friedman, Dieng, 2023.
        """
        if not self.rows:
            return 0.0
        chosen = np.linspace(0, len(self.rows) - 1, min(MOST, len(self.rows))).round().astype(int)
        rows = np.stack([self.rows[index] for index in chosen])
        values = np.linalg.eigvalsh(rows @ rows.T / len(rows)).clip(0)
        values = values[values > 1e-12] / values.sum()
        return float(np.exp(-(values * np.log(values)).sum()))


def make_gauge(world: World, clearance: Clearance) -> Gauge:
    """The gauge of a world."""
    low, high = (part[:2].double().numpy() for part in clearance.box)
    limits = {
        agent.name: (np.array(agent.action.low), np.array(agent.action.high))
        for agent in world.agents
        if agent.action is not None
    }
    return Gauge(clearance, low, high, limits, tuple(link.name for link in world.links))


def measure_episodes(gauge: Gauge, episodes: Sequence[Episode]) -> Tally:
    """What episodes visit."""
    tally = Tally()
    for episode in episodes:
        tally.add(cells_of(episode, gauge))
    return tally


def cells_of(episode: Episode, gauge: Gauge) -> Cells:
    """How often an episode was in each cell.

    Objects and agents are where their links are (an agent where its last one is), on a grid over the room; actions are
    levels within their limits and how fast they change; contacts are which kinds of bodies touch, where, and from which
    side. Bodies that the gauge's world lacks count as objects. Raises `InputError` for episodes without link poses.
    """
    if episode.link_poses is None:
        raise InputError("an episode has no link poses, so what it visits cannot be told; track it first.")
    places = episode.link_poses[..., :2].double().numpy()
    agents = {name: _last(episode, name) for name in episode.actions}
    owned = {i for i, link in enumerate(episode.link_names) if link.partition("/")[0] in agents}
    objects = [index for index in range(1, len(episode.link_names)) if index not in owned]
    return {
        "objects": _grid(gauge, places[:, objects].reshape(-1, 2), GRID),
        "agents": _grid(gauge, places[:, list(agents.values())].reshape(-1, 2), GRID),
        "actions": _action_cells(episode, gauge),
        "contacts": _contact_cells(episode, gauge, places, owned),
    }


def descriptor(cells: Cells) -> Float[np.ndarray, " D"]:
    """A unit vector of an episode: roots of the shares of its cells, each kind counting alike, so that the product of
    two is how much they have in common (Bhattacharyya, 1943)."""
    parts = []
    for name in sorted(cells):
        total = cells[name].sum()
        parts.append(np.sqrt(cells[name] / total) if total else np.zeros(len(cells[name])))
    whole = np.concatenate(parts)
    return (whole / max(float(np.linalg.norm(whole)), 1e-12)).astype(np.float64)


def empty_spots(tally: Tally, gauge: Gauge) -> list[tuple[float, float]]:
    """Middles (x, y) of the cells in which no object was yet; none before there is anything to compare with."""
    counts = tally.seen.get("objects")
    if counts is None:
        return []
    size = (gauge.high - gauge.low) / GRID
    empty = np.argwhere(counts.reshape(GRID, GRID) == 0)
    return [(float(x), float(y)) for x, y in gauge.low + (empty + 0.5) * size]


def _grid(gauge: Gauge, places: np.ndarray, count: int) -> np.ndarray:
    """Visits [count^2] of cells of the room; what is outside, or not known, counts nowhere."""
    at = (places - gauge.low) / np.maximum(gauge.high - gauge.low, 1e-9) * count
    good = np.isfinite(at).all(axis=1)
    at = np.floor(at[good]).astype(int)
    at = at[((at >= 0) & (at < count)).all(axis=1)]
    return np.bincount(at[:, 0] * count + at[:, 1], minlength=count * count).astype(np.float64)


def _action_cells(episode: Episode, gauge: Gauge) -> np.ndarray:
    """Visits of (component, level, change), components of all agents being counted together."""
    width = max((len(low) for low, _ in gauge.limits.values()), default=1)
    counts = np.zeros((max(width, 1), LEVELS, CHANGES))
    for name, table in episode.actions.items():
        if name not in gauge.limits or table.shape[1] != len(gauge.limits[name][0]) or len(table) < 2:
            continue
        low, high = gauge.limits[name]
        part = (table.double().numpy() - low) / np.maximum(high - low, 1e-9)
        change = np.abs(np.diff(part, axis=0))
        level = np.clip(np.nan_to_num(part[1:]) * LEVELS, 0, LEVELS - 1).astype(int)
        jump = np.digitize(np.nan_to_num(change), (0.01, 0.05, 0.25))
        known = np.isfinite(part[1:]) & np.isfinite(change)
        for component in range(part.shape[1]):
            rows = known[:, component]
            np.add.at(counts[component], (level[rows, component], jump[rows, component]), 1)
    return counts.reshape(-1)


def _contact_cells(episode: Episode, gauge: Gauge, places: np.ndarray, owned: set[int]) -> np.ndarray:
    """Visits of (kinds of bodies, place, direction from the first to the second)."""
    counts = np.zeros((len(PAIRS), PLACES * PLACES, TOWARD))
    gaps, names = _gaps(episode, gauge)
    for column, name in enumerate(names):
        links = [episode.link_names.index(part) if part in episode.link_names else -1 for part in name.split("|")]
        touch = gaps[:, column] < TOUCH
        if min(links, default=-1) < 0 or len(links) != 2 or not touch.any():
            continue
        first, second = sorted(links, key=lambda link: link not in owned)
        kind = 2 - sum(link in owned for link in links)
        a, b = places[touch, first], places[touch, second]
        at = np.clip(((a + b) / 2 - gauge.low) / np.maximum(gauge.high - gauge.low, 1e-9) * PLACES, 0, PLACES - 1)
        at = at.astype(int)
        angle = np.arctan2(*(b - a).T[::-1]) / (2 * np.pi) + 0.5
        side = np.minimum((angle * TOWARD).astype(int), TOWARD - 1)
        np.add.at(counts[kind], (at[:, 0] * PLACES + at[:, 1], side), 1)
    return counts.reshape(-1)


def _gaps(episode: Episode, gauge: Gauge) -> tuple[np.ndarray, tuple[str, ...]]:
    """Gaps [T,P] between bodies and their names: those kept with the episode, else from the shapes of the world."""
    if "gaps" in episode.signals:
        return episode.signals["gaps"].double().numpy(), episode.names.get("signals/gaps", ())
    if episode.link_poses is None or episode.link_names != gauge.links or episode.origin:
        return np.zeros((len(episode), 0)), ()
    known = torch.isfinite(episode.link_poses).flatten(1).all(1)
    gaps = torch.full((len(episode), len(gauge.clearance.names)), torch.inf)
    gaps[known] = gauge.clearance.gaps(transform_from_pose(episode.link_poses[known]).float()).float()
    return gaps.double().numpy(), gauge.clearance.names


def _last(episode: Episode, agent: str) -> int:
    """The last link of an agent, by its name."""
    own = [i for i, link in enumerate(episode.link_names) if link == agent or link.startswith(f"{agent}/")]
    return own[-1] if own else 0
