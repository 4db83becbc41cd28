"""Where actions come from, by name: scripted experts, smooth noise, limits, collisions sought, nothing, and replay."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import cast, get_args

import numpy as np

from gworld.data.experts import Mover, expert_source, mover_for
from gworld.data.simulators import Simulation
from gworld.errors import InputError, UsageError
from gworld.scene.episode import Behaviour, Episode

Source = Callable[[], np.ndarray]
"""One agent's next action [A], for the state that its simulation is in now."""

NAMES: tuple[Behaviour, ...] = ("expert", "random", "extreme", "adversarial", "null", "replay")
MIXED = {"expert": 0.4, "random": 0.2, "extreme": 0.15, "adversarial": 0.2, "null": 0.05}
"""How often each behaviour is drawn for an agent when the policy is `mixed`."""


def parse_policy(text: str, agents: Sequence[str]) -> dict[str, str]:
    """A behaviour, or `mixed`, per agent: one word for all, or `left=expert,right=random` (others: null).

    Raises `UsageError` for unknown behaviours and agents.
    """
    if "=" not in text:
        chosen = dict.fromkeys(agents, text)
    else:
        pairs = [part.partition("=")[::2] for part in text.split(",")]
        chosen = {**dict.fromkeys(agents, "null"), **{name.strip(): word.strip() for name, word in pairs}}
    for name, word in chosen.items():
        if name not in agents:
            raise UsageError(f"there is no agent `{name}`; there are {', '.join(agents)}.")
        if word not in (*NAMES, "mixed"):
            raise UsageError(f"there is no behaviour `{word}`; there are {', '.join(NAMES)} and mixed.")
    return chosen


def draw_behaviours(policy: Mapping[str, str], seed: int, can_expert: bool = True) -> dict[str, Behaviour]:
    """The behaviour of each agent in the episode of that seed: `mixed` is drawn by the shares of `MIXED`."""
    drawn = {}
    for name, word in policy.items():
        if word == "mixed":
            rng = np.random.default_rng([seed, _number(name), 11])
            shares = {k: v for k, v in MIXED.items() if can_expert or k not in ("expert", "adversarial")}
            weights = np.array(list(shares.values()))
            word = str(rng.choice(list(shares), p=weights / weights.sum()))
        drawn[name] = cast(Behaviour, word)
    return drawn


def make_source(
    behaviour: Behaviour, simulation: Simulation, agent: str, seed: int, episode: Episode | None = None
) -> Source:
    """An agent's source of actions; the same seed in the same simulation acts the same.

    `expert` scripts exist for our own scenes; `adversarial` for agents that can be sent to a place; `replay` needs the
    `episode` whose actions it repeats (and holds still after them). Raises `UsageError` where there is none.
    """
    rng = np.random.default_rng([seed, _number(agent), 13])
    if behaviour == "null":
        return lambda: simulation.null_action(agent)
    if behaviour == "random":
        return _noise(simulation, agent, rng)
    if behaviour == "extreme":
        return _limits(simulation, agent, rng)
    if behaviour == "adversarial":
        return _seeker(simulation, agent, mover_for(simulation, agent), rng)
    if behaviour == "expert":
        return expert_source(simulation, agent, rng)
    if behaviour == "replay" and episode is not None:
        return _replay(simulation, agent, episode)
    raise UsageError(f"behaviour `{behaviour}` cannot act; {', '.join(NAMES)} can (replay needs recorded episodes).")


def _number(name: str) -> int:
    return zlib.crc32(name.encode())


def _noise(simulation: Simulation, agent: str, rng: np.random.Generator) -> Source:
    """Smooth noise: servos wander about where they started, other components about zero.

    An Ornstein-Uhlenbeck process (correlated over 0.4 to 1.6 s), smoothed once more so that its speed is continuous.
    """
    spec, fps = simulation.agents[agent].spec, simulation.options.fps
    low, high = np.array(spec.low), np.array(spec.high)
    servo = np.array([name.rpartition("/")[2] == "position" for name in spec.names])
    center = np.where(servo, simulation.null_action(agent), (low + high) / 2)
    width = np.where(servo, np.minimum(0.25 * (high - low), 0.7), 0.5 * (high - low)) * rng.uniform(0.5, 1.0)
    keep = np.exp(-1.0 / fps / np.exp(rng.uniform(np.log(0.4), np.log(1.6), len(spec))))
    smooth = np.exp(-1.0 / fps / 0.15)
    raw = np.where(servo, 0.0, rng.standard_normal(len(spec)))
    value = raw.copy()

    def act() -> np.ndarray:
        nonlocal raw, value
        raw = keep * raw + np.sqrt(1 - keep**2) * rng.standard_normal(len(spec))
        value = smooth * value + (1 - smooth) * raw
        return np.clip(center + width * value, low, high)

    return act


def _limits(simulation: Simulation, agent: str, rng: np.random.Generator) -> Source:
    """Every component at one of its limits, each for 0.3 to 1.5 s."""
    spec, fps = simulation.agents[agent].spec, simulation.options.fps
    left, high = np.zeros(len(spec), int), np.zeros(len(spec), bool)

    def act() -> np.ndarray:
        ended = left <= 0
        left[ended] = np.ceil(rng.uniform(0.3, 1.5, int(ended.sum())) * fps)
        high[ended] = rng.random(int(ended.sum())) < 0.5
        left[:] -= 1
        return np.where(high, spec.high, spec.low)

    return act


def _seeker(simulation: Simulation, agent: str, move: Mover, rng: np.random.Generator) -> Source:
    """Makes for one of the three nearest bodies that are not its own, another one every 2 to 4 s."""
    actor = simulation.agents[agent]
    others = [simulation.link_names.index(name) for name in simulation.objects]
    others += [link for other in simulation.agents.values() if other.name != agent for link in other.links]
    if not others:
        raise UsageError(f"agent `{agent}` is alone in `{simulation.name}`; there is nothing to run into.")
    target, left = -1, 0

    def act() -> np.ndarray:
        nonlocal target, left
        if left <= 0:
            far = np.linalg.norm(simulation.data.xpos[others] - simulation.hand(actor.name), axis=1)
            near = np.argsort(far, kind="stable")[:3]
            target, left = others[int(rng.choice(near))], int(rng.uniform(2.0, 4.0) * simulation.options.fps)
        left -= 1
        return move(np.array(simulation.data.xpos[target]), 1.0)

    return act


def _replay(simulation: Simulation, agent: str, episode: Episode) -> Source:
    """The actions that were in force at the same time in an episode; NaN, and what follows its end, holds still."""
    if agent not in episode.actions or episode.actions[agent].shape[1] != len(simulation.agents[agent].spec):
        raise InputError(
            f"the episode to be replayed has no actions of agent `{agent}` that fit; record it here first."
        )
    table = episode.actions[agent].double().numpy()
    times = (episode.times - episode.times[0]).double().numpy()
    step = 1.0 / simulation.options.fps

    def act() -> np.ndarray:
        now = float(simulation.data.time)
        row = int(np.searchsorted(times, now + 0.25 * step, side="right")) - 1
        if now > times[-1] + step:
            return simulation.null_action(agent)
        return np.where(np.isnan(table[row]), simulation.null_action(agent), table[row])

    return act


assert set(NAMES) <= set(get_args(Behaviour))
