"""Windows of a fixed length over episodes: drawn evenly, from an explicit generator, never across an episode's end."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from gworld.data.store import Entry, EpisodeSet, read_episode
from gworld.errors import InputError, UsageError
from gworld.scene.episode import TABLES, Episode


def all_windows(steps: Sequence[int], horizon: int, stride: int = 1) -> Int[Tensor, "N 2"]:
    """Every (episode, first step) at which `horizon` steps fit, `stride` apart."""
    _check(horizon, stride)
    rows = [
        torch.stack([torch.full_like(starts, index), starts], dim=1)
        for index, length in enumerate(steps)
        if len(starts := torch.arange(0, length - horizon + 1, stride) if length >= horizon else torch.arange(0))
    ]
    return torch.cat(rows) if rows else torch.zeros(0, 2, dtype=torch.int64)


def draw_windows(steps: Sequence[int], horizon: int, count: int, generator: torch.Generator) -> Int[Tensor, "N 2"]:
    """`count` windows (episode, first step), each of all that fit equally likely, with replacement.

    Where an episode is longer it is drawn more often; contact and motion play no part. Memory does not grow with the
    number of steps. Raises `InputError` when no episode is as long as `horizon`.
    """
    _check(horizon, 1)
    room = torch.tensor([max(0, length - horizon + 1) for length in steps], dtype=torch.int64)
    total = int(room.sum())
    if total == 0:
        raise InputError(f"none of {len(steps)} episodes has {horizon} steps; shorten the window or record longer.")
    ends = room.cumsum(0)
    drawn = torch.randint(total, (count,), generator=generator)
    episode = torch.searchsorted(ends, drawn, right=True)
    return torch.stack([episode, drawn - (ends[episode] - room[episode])], dim=1)


def cut_window(episode: Episode, start: int, horizon: int) -> Episode:
    """Steps `start` .. `start + horizon - 1` of an episode, with the video frames shown from its first step on until
    the step after its last."""
    if start < 0 or start + horizon > len(episode):
        raise InputError(f"the episode has {len(episode)} steps; {start} to {start + horizon - 1} were asked for.")
    end = start + horizon
    low = float(episode.times[start])
    high = float(episode.times[end]) if end < len(episode) else float("inf")
    tables: dict[str, Any] = {
        kind: {name: table[start:end] for name, table in getattr(episode, kind).items()} for kind in TABLES
    }
    videos = []
    for video in episode.videos:
        first = int(torch.searchsorted(video.times, torch.tensor(low - 1e-6, dtype=video.times.dtype)))
        last = int(torch.searchsorted(video.times, torch.tensor(high - 1e-6, dtype=video.times.dtype)))
        videos.append(replace(video, times=video.times[first:last], first=video.first + first))
    poses = None if episode.link_poses is None else episode.link_poses[start:end]
    return replace(episode, times=episode.times[start:end], **tables, link_poses=poses, videos=tuple(videos))


def sample_windows(
    episodes: EpisodeSet,
    horizon: int,
    generator: torch.Generator,
    keep: Callable[[Entry], bool] = lambda entry: True,
    cached: int = 64,
) -> Iterator[Episode]:
    """Windows without end, drawn as `draw_windows` does from the episodes that `keep` accepts (e.g. by behaviour).

    The last `cached` episodes stay in memory. Two runs with equal generators give equal windows.
    """
    chosen = [position for position, entry in enumerate(episodes.entries) if keep(entry)]
    steps = [episodes.entries[position].steps for position in chosen]
    memory: OrderedDict[int, Episode] = OrderedDict()
    while True:
        for index, start in draw_windows(steps, horizon, 256, generator).tolist():
            position = chosen[index]
            episode = memory.pop(position, None) or read_episode(episodes, position)
            memory[position] = episode
            if len(memory) > cached:
                memory.popitem(last=False)
            yield cut_window(episode, start, horizon)


def _check(horizon: int, stride: int) -> None:
    if horizon < 1 or stride < 1:
        raise UsageError(f"windows of {horizon} steps, {stride} apart, were asked for; at least 1 is needed.")
