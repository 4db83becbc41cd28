"""Pairs of rollouts: recorded episodes simulated under their own actions, and drawn beside their footage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from gworld.cli.evaluate_films import footage
from gworld.cli.refine_film import world_counts
from gworld.cli.simulate_compare import true_motion
from gworld.cli.simulate_draw import even
from gworld.data.pairset import Pair
from gworld.data.store import open_episodes, read_episode
from gworld.errors import InputError
from gworld.formats.registry import world_folder
from gworld.formats.world import load_world
from gworld.geometry import transform_from_pose
from gworld.render.api import RenderOptions
from gworld.render.conditions import render_clip
from gworld.scene.cameras import resize_cameras
from gworld.scene.clip import Clip
from gworld.scene.episode import Episode
from gworld.scene.rollout import poses_at
from gworld.scene.world import World
from gworld.simulate.actions import table_from_episode
from gworld.simulate.engine import Engine, EngineOptions
from gworld.simulate.learned import open_stepper
from gworld.simulate.run import run_engine, steps_for, tell_table

FRAMES = 48
"""Frames of a pair at most; longer predictions are thinned."""
EACH = 8
"""Every this many-th episode is held out; the last one where there are fewer."""


def rollout_pairs(
    place: Path, episodes: Path, photos: Clip | None, longest: int, seconds: float
) -> Iterator[Pair]:  # fmt: skip
    """A pair for each episode and fixed camera: what the world predicts from the episode's first instants on under its
    recorded actions, beside the footage; `photos` are what may be referred to.

    Raises `InputError` where no episode has both tracked poses and footage by calibrated cameras that stand still.
    """
    world = load_world(world_folder(place))
    store = open_episodes(episodes)
    found = 0
    for number in range(len(store)):
        episode = read_episode(store, number)
        last = number == len(store) - 1 and 1 < len(store) < EACH
        for clip in _clips(world, episode, photos, longest, seconds, f"episode {number}"):
            found += 1
            held = last or number % EACH == EACH - 1
            yield Pair(clip, photos, "rollout", f"{episodes.name}-{number}", "held_out" if held else "train")
    if not found:
        raise InputError(
            f"`{episodes}` holds no episode with tracked poses and footage by calibrated, fixed cameras; record or "
            "track such ones, or leave `--refiner.episodes` out."
        )


def _clips(
    world: World, episode: Episode, photos: Clip | None, longest: int, seconds: float, name: str
) -> Iterator[Clip]:
    cameras = episode.cameras
    if cameras is None or cameras.model != "pinhole" or episode.link_poses is None:
        return
    times, poses, start = _predicted(world, episode, seconds, name)
    scale = longest / max(cameras.width, cameras.height)
    small = resize_cameras(replace(cameras, names=()), even(cameras.width * scale), even(cameras.height * scale))
    filmed = footage(episode, small, times + start)
    drawing = RenderOptions() if world.background is None else RenderOptions(background=world.background)
    for row in range(len(small)):
        if any(small[row].links):
            continue
        still = replace(small, K=small.K[[row] * len(times)], links=(),
                        world_from_camera=small.world_from_camera[[row] * len(times)])  # fmt: skip
        yield render_clip(
            world.gaussians, still, poses, truth=filmed[:, row], counts=world_counts(world), references=photos,
            options=drawing,
        )  # fmt: skip


def _predicted(world: World, episode: Episode, seconds: float, name: str) -> tuple[Tensor, Tensor, float]:
    """Instants [T] since the start, the predicted `world_from_link` [T,L,4,4], and when the start is in the episode."""
    truth, state, start = true_motion(world, episode)
    if truth is None or state is None:
        raise InputError(f"{name} has no tracked poses to begin from; run `gworld track` on it first.")
    step = float((episode.times[-1] - episode.times[0]) / (len(episode) - 1))
    engine = Engine(world, open_stepper(world, step, None), EngineOptions(step))
    engine.reset(0, state)
    count = steps_for(min(seconds, float(truth.times[-1])), step)
    told = tell_table(engine, table_from_episode(episode, world, name), count, start)
    rollout = run_engine(engine, told, count, (0,)).rollouts[0]
    rollout = replace(rollout, times=rollout.times - rollout.times[0])
    times = rollout.times[torch.linspace(0, len(rollout) - 1, min(FRAMES, len(rollout))).round().long()]
    poses = torch.stack([poses_at(rollout, float(time)) for time in times])
    return times, transform_from_pose(poses), start
