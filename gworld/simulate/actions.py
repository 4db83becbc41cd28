"""Actions from files: who is told what and when, checked against what the agents of a world can be told.

A table has a clock and columns `agent/component` (`left/elbow/position`), or arrays `[T, A]` per agent, or one array
`[T, agents, A]` in the order of the world's agents. A unit may follow a column's name in brackets (`[deg]`, `[mm]`).
An empty cell, NaN, and an agent without columns mean: not known.
"""

from __future__ import annotations

import math
import re
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.data.split import split_agents
from gworld.errors import InputError, UsageError
from gworld.files import check_memory, existing_file, read_json
from gworld.scene.episode import Episode
from gworld.scene.world import ActionSpec, World
from gworld.simulate.engine import clip_action

CLOCKS = ("time", "t", "timestamp", "times", "seconds")
BESIDE = ("link/", "joints/", "signals/", "link_poses", "seed")
"""Columns of rollouts and episodes that are no actions."""
SCALES = {
    "rad": {"deg": math.pi / 180, "rad": 1.0, "mrad": 1e-3},
    "m": {"mm": 1e-3, "cm": 1e-2, "m": 1.0},
    "rad/s": {"deg/s": math.pi / 180, "rad/s": 1.0},
    "m/s": {"mm/s": 1e-3, "cm/s": 1e-2, "m/s": 1.0},
}
_UNIT = re.compile(r"^(.*?)\s*\[([^\[\]]+)\]$")


@dataclass(frozen=True)
class ActionTable:
    """What agents are told: times [T] float64 seconds, from 0 on; values {agent: [T,A]}, NaN where not known.

    `clipped` {agent/component: times} counts the values that were cut to their limits; `notes` say what was assumed.
    """

    times: Float[Tensor, " T"]
    values: dict[str, Float[Tensor, "T A"]]
    clipped: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.times)

    @property
    def seconds(self) -> float:
        """How long the actions last: the last one as long as is usual."""
        if len(self.times) < 2:
            return float(self.times[-1])
        return float(self.times[-1] + self.times.diff().median())


def read_actions(
    path: str | Path,
    world: World,
    step: float = 1 / 30,
    number: int = 0,
    split: Mapping[str, tuple[str, ...]] | None = None,
) -> ActionTable:
    """Actions from Parquet, CSV, npz, npy, JSON, an episode folder or store, or a LeRobot data set.

    `number` picks an episode where there are several, `split` shares one recording's columns out to agents (see
    `gworld.data.split`); `step` seconds per row where the file holds no clock. Raises `InputError`, in one sentence,
    for anything that does not fit the world's agents.
    """
    place = Path(path)
    if place.is_dir():
        return table_from_episode(split_agents(load_episode(place, number), split or {}), world, str(place))
    file, suffix = existing_file(place), place.suffix.lower()
    if suffix in (".parquet", ".pq"):
        from gworld.data.parquet import read_columns

        columns = {name: values for name, values in read_columns(file).items() if isinstance(values, np.ndarray)}
    elif suffix in (".csv", ".txt"):
        from gworld.data.source import table_from_csv

        columns = dict(table_from_csv(file))
    elif suffix in (".npz", ".npy"):
        columns = _read_numpy(file)
    elif suffix == ".json":
        columns = _read_json(file)
    else:
        raise InputError(f"`{file}` is none of .parquet, .csv, .npz, .npy, .json, an episode or a data set of them.")
    return table_from_columns(columns, world, step, str(file))


def table_from_columns(
    columns: Mapping[str, np.ndarray], world: World, step: float = 1 / 30, source: str = "actions"
) -> ActionTable:
    """Actions from named arrays: a clock, `agent/component` [T], `agent` [T,A], or `actions` [T,agents,A]."""
    left, notes = dict(columns), []
    clock = next((left.pop(name) for name in CLOCKS if name in left), None)
    names = left.pop("agents", None)
    agents = {entity.name: entity.action for entity in world.agents if entity.action is not None}
    tables: dict[str, np.ndarray] = {}
    if "actions" in left and np.ndim(left["actions"]) == 3:
        tables |= _by_agent(np.asarray(left.pop("actions"), np.float64), names, agents, source)
    for name, values in left.items():
        array = _numeric(values, name, source)
        owner = _owner(name, agents, array.ndim)
        if owner is None:
            if name.startswith(BESIDE):
                continue
            raise InputError(f"`{source}`: column {name!r} belongs to no agent's action; there are {_known(agents)}.")
        agent, component = owner
        if array.ndim == 2:
            tables[agent] = array
            continue
        table = tables.setdefault(agent, np.full((len(array), len(agents[agent])), np.nan))
        place, factor = _component(component, agent, agents[agent], source)
        if len(table) == len(array):
            table[:, place] = array * factor
        else:
            raise InputError(f"`{source}`: column {name!r} has {len(array)} rows; others have {len(table)}.")
    lengths = {len(table) for table in tables.values()} | ({len(clock)} if clock is not None else set())
    if not tables or len(lengths) != 1 or 0 in lengths:
        raise InputError(f"`{source}` holds tables of {sorted(lengths)} rows of actions; one length above 0 is needed.")
    if clock is None:
        clock = np.arange(lengths.pop()) * step
        notes.append(f"no clock in `{source}`: one row per step of {step:g} s")
    return fit_table(clock, tables, agents, source, tuple(notes))


def table_from_episode(episode: Episode, world: World, source: str = "the episode") -> ActionTable:
    """An episode's actions; a recording of one agent fits a world of one agent, whatever either is called.

    Columns that bear the components' own names may stand in any order.
    """
    agents = {entity.name: entity.action for entity in world.agents if entity.action is not None}
    actions = dict(episode.actions)
    if len(actions) == len(agents) == 1 and set(actions) != set(agents):
        actions = {next(iter(agents)): next(iter(actions.values()))}
    strange = sorted(set(actions) - set(agents))
    if strange:
        raise InputError(f"`{source}` has actions of agent `{strange[0]}`; the world has {_known(agents)}.")
    tables = {}
    for name, values in actions.items():
        columns, wanted = episode.names.get(f"actions/{name}", ()), agents[name].names
        order = [columns.index(part) for part in wanted] if set(columns) == set(wanted) else slice(None)
        tables[name] = values.double().numpy()[:, order]
    return fit_table(episode.times.double().numpy(), tables, agents, source)


def fit_table(
    clock: Any,
    tables: Mapping[str, np.ndarray],
    agents: Mapping[str, ActionSpec],
    source: str,
    notes: tuple[str, ...] = (),
) -> ActionTable:
    """Check clock, widths and limits; values beyond the limits are cut and counted."""
    times = _numeric(clock, "time", source)
    if times.ndim != 1 or not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise InputError(f"`{source}` has times that do not increase or are not finite; sort or repair its clock.")
    values: dict[str, Tensor] = {}
    clipped: dict[str, int] = {}
    for name, table in tables.items():
        spec = agents[name]
        if table.shape != (len(times), len(spec)):
            raise InputError(
                f"`{source}`: the actions of `{name}` have shape {list(table.shape)}; {[len(times), len(spec)]} "
                f"({', '.join(spec.names)}) is needed."
            )
        if np.isinf(table).any():
            raise InputError(f"`{source}`: the actions of `{name}` hold infinity; numbers, or NaN, are needed.")
        fitted, cut = clip_action(spec, torch.tensor(table, dtype=torch.float32))
        values[name] = fitted
        clipped |= {f"{name}/{part}": int(count) for part, count in zip(spec.names, cut.sum(0), strict=True) if count}
    return ActionTable(torch.from_numpy(times - times[0]), values, clipped, notes)


def resample(table: ActionTable, step: float, steps: int, start: float = 0.0) -> dict[str, Float[Tensor, "steps A"]]:
    """The actions in force at start, start + step ..: each holds until the next (zero-order), unknown past the end."""
    at = start + torch.arange(steps, dtype=torch.float64) * step
    rows = torch.searchsorted(table.times, at + 1e-6 * step, right=True) - 1
    over = at > table.seconds - 1e-6 * step
    held = {}
    for name, values in table.values.items():
        now = values[rows.clamp_min(0)].clone()
        now[over] = math.nan
        held[name] = now
    return held


def swap_agent(table: ActionTable, other: ActionTable, agent: str) -> ActionTable:
    """The table with one agent's actions taken from another, on the first one's clock."""
    if agent not in other.values:
        raise InputError(f"the other actions hold none of agent `{agent}`; they hold {', '.join(other.values)}.")
    rows = (torch.searchsorted(other.times, table.times + 1e-9, right=True) - 1).clamp_min(0)
    taken = other.values[agent][rows].clone()
    taken[table.times > other.seconds] = math.nan
    return replace(table, values={**table.values, agent: taken})


def _owner(name: str, agents: Mapping[str, ActionSpec], dims: int) -> tuple[str, str] | None:
    """The agent, and what is left of a column's name: `left/elbow`, `actions/left`, or `elbow` where one agent is."""
    plain = name.removeprefix("actions/").removeprefix("action.")
    for agent in sorted(agents, key=len, reverse=True):
        if plain == agent and dims == 2:
            return agent, ""
        if plain.startswith(f"{agent}/") and dims == 1:
            return agent, plain[len(agent) + 1 :]
    if len(agents) == 1:
        agent, spec = next(iter(agents.items()))
        if (dims == 2 and plain in ("action", "actions")) or (dims == 1 and _bare(plain) in spec.names):
            return agent, plain
    return None


def _bare(name: str) -> str:
    return found[1] if (found := _UNIT.match(name)) else name


def _component(name: str, agent: str, spec: ActionSpec, source: str) -> tuple[int, float]:
    """Which component a column is, and what turns its unit into the agent's."""
    bare, found = _bare(name), _UNIT.match(name)
    if bare not in spec.names:
        raise InputError(f"`{source}`: agent `{agent}` has no component {bare!r}; it has {', '.join(spec.names)}.")
    place = spec.names.index(bare)
    if not found:
        return place, 1.0
    wanted = spec.units[place]
    scales = SCALES.get(wanted, {wanted: 1.0})
    if found[2] not in scales:
        raise InputError(f"`{source}`: {agent}/{bare} is given in {found[2]!r}; {' or '.join(scales)} is needed.")
    return place, scales[found[2]]


def _by_agent(actions: np.ndarray, names: Any, agents: Mapping[str, ActionSpec], source: str) -> dict[str, np.ndarray]:
    """[T,agents,A] by agent; columns past an agent's own must be NaN (or 0)."""
    order = [str(name) for name in np.ravel(names)] if names is not None else list(agents)
    if actions.shape[1] != len(order) or not set(order) <= set(agents):
        raise InputError(
            f"`{source}` has actions of {actions.shape[1]} agents {order}; the world has {_known(agents)}."
        )
    for index, name in enumerate(order):
        if actions.shape[2] < len(agents[name]) or np.nan_to_num(actions[:, index, len(agents[name]) :]).any():
            raise InputError(
                f"`{source}` has {actions.shape[2]} components for agent `{name}`; it has {len(agents[name])}."
            )
    return {name: actions[:, index, : len(agents[name])] for index, name in enumerate(order)}


def _known(agents: Mapping[str, ActionSpec]) -> str:
    return "; ".join(f"{name} ({', '.join(spec.names)})" for name, spec in agents.items()) or "no agent"


def _numeric(values: Any, name: str, source: str) -> np.ndarray:
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"`{source}`: column {name!r} is not numbers; numbers, or NaN, are needed.") from None
    if array.ndim not in (1, 2):
        raise InputError(f"`{source}`: {name!r} has {array.ndim} dimensions; [T] or [T, A] is needed.")
    return array


def _read_json(file: Path) -> dict[str, np.ndarray]:
    """{"times": [..] or "fps": 30, "actions": {agent: [[..]]} or [[[..]]], "agents": [..]}; null is not known."""
    data = read_json(file)
    if not isinstance(data, dict) or "actions" not in data:
        raise InputError(f'`{file}` is no object with "actions"; {{"fps": 30, "actions": {{agent: [[..], ..]}}}} is.')
    actions = data["actions"]
    tables: dict[str, Any] = dict(actions) if isinstance(actions, dict) else {"actions": actions}
    try:
        columns = {str(name): np.array(table, np.float64) for name, table in tables.items()}
        if "times" in data:
            columns["times"] = np.array(data["times"], np.float64)
        elif "fps" in data:
            rows = len(next(iter(columns.values())))
            columns["times"] = np.arange(rows) / float(data["fps"])
    except (TypeError, ValueError, StopIteration, ZeroDivisionError) as error:
        raise InputError(f"`{file}` holds rows that are no numbers of one length ({str(error)[:80]}).") from None
    if "agents" in data:
        columns["agents"] = np.array([str(name) for name in data["agents"]])
    return columns


def _read_numpy(file: Path) -> dict[str, np.ndarray]:
    """Arrays of an .npz or .npy, the promised sizes checked before anything is unpacked; nothing is unpickled."""
    try:
        if file.suffix.lower() == ".npy":
            return {"actions": np.array(np.load(file, mmap_mode="r", allow_pickle=False))}
        with zipfile.ZipFile(file) as archive:
            promised = sum(entry.file_size for entry in archive.infolist())
        if promised > 1100 * file.stat().st_size + (1 << 16):  # deflate packs no better than 1032 to 1
            raise InputError(f"`{file}` promises {promised} bytes in {file.stat().st_size}; it is damaged or a trap.")
        check_memory(2 * promised, f"reading `{file}`")
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError, NotImplementedError, MemoryError) as error:
        raise InputError(f"`{file}` cannot be read as numpy arrays ({str(error)[:100]}). Save it again.") from None


def load_episode(place: Path, number: int = 0) -> Episode:
    """One episode of a folder, a store, or a data set that `gworld ingest` reads (without its videos then)."""
    from gworld.data.ingest import open_source
    from gworld.data.record import load_record
    from gworld.data.store import is_episode_store, open_episodes, read_episode

    if (place / "episode.json").is_file():
        return load_record(place)
    if is_episode_store(place):
        return read_episode(open_episodes(place), number)
    source = open_source(place)
    if not 0 <= number < len(source):
        raise UsageError(f"`{place}` has {len(source)} episodes; number {number} was asked for.")
    with tempfile.TemporaryDirectory(prefix="gworld-") as scratch:
        episode = source.read(number, Path(scratch))
        return replace(episode, videos=(), cameras=None)
