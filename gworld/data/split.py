"""One recording split into several agents by the names of its columns, or by their numbers."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from gworld.data.source import ROBOT
from gworld.errors import InputError, UsageError
from gworld.scene.episode import Episode

Patterns = Mapping[str, tuple[str, ...]]


def parse_agents(text: str) -> dict[str, tuple[str, ...]]:
    """`left=*left*,right=*right*|r_*` as {"left": ("*left*",), "right": ("*right*", "r_*")}.

    A pattern is matched against the whole name, `*` for anything, capitals or not; `0:7` takes columns by number.
    Raises `UsageError` for anything else.
    """
    agents: dict[str, tuple[str, ...]] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, patterns = part.partition("=")
        if not equals or not name.strip() or name.strip() in agents or not all(patterns.split("|")):
            raise UsageError(f"`--agents {text}` cannot be read; `left=*left*,right=*right*` is the form.")
        agents[name.strip()] = tuple(pattern.strip() for pattern in patterns.split("|"))
    return agents


def split_agents(episode: Episode, agents: Patterns) -> Episode:
    """The episode with its one agent's actions and joints shared out; each column goes to the first agent it matches.

    Raises `InputError` when a column matches no agent or an agent gets none: nothing is dropped unseen.
    """
    if not agents:
        return episode
    if set(episode.actions) | set(episode.joints) - {ROBOT} > {ROBOT}:
        raise InputError(f"the recording has the agents {sorted(episode.actions)} already; leave `--agents` out.")
    names = dict(episode.names)
    tables: dict[str, dict[str, Tensor]] = {}
    for kind in ("actions", "joints"):
        table = getattr(episode, kind).get(ROBOT)
        if table is None:
            tables[kind] = {}
            continue
        labels = names.pop(f"{kind}/{ROBOT}", ())
        owners = [_owner(index, labels, agents) for index in range(table.shape[1])]
        if None in owners:
            lost = [labels[i] if labels else str(i) for i, owner in enumerate(owners) if owner is None]
            raise InputError(f"no pattern of `--agents` takes {', '.join(lost[:8])}; add one, such as `rest=*`.")
        tables[kind] = {}
        for agent in agents:
            columns = [index for index, owner in enumerate(owners) if owner == agent]
            if columns:
                tables[kind][agent] = table[:, columns]
                if labels:
                    names[f"{kind}/{agent}"] = tuple(labels[index] for index in columns)
    idle = [agent for agent in agents if not any(agent in table for table in tables.values())]
    if idle:
        known = next((labels for key, labels in episode.names.items() if key.endswith(ROBOT)), ())
        raise InputError(f"`--agents`: {idle[0]!r} matches none of the columns {', '.join(known[:8]) or '(unnamed)'}.")
    return replace(episode, actions=tables["actions"], joints=tables["joints"], names=names)


def _owner(index: int, labels: tuple[str, ...], agents: Patterns) -> str | None:
    for agent, patterns in agents.items():
        for pattern in patterns:
            span = re.fullmatch(r"(\d{0,6}):(\d{0,6})", pattern)
            if span and int(span[1] or 0) <= index < int(span[2] or 10**6):
                return agent
            if not span and labels and fnmatch.fnmatchcase(labels[index].lower(), pattern.lower()):
                return agent
    return None
