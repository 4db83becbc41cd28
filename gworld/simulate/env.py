"""Worlds as environments: PettingZoo for several agents, gymnasium for one, a gymnasium vector for many worlds.

Importing this file registers `gworld/Reach-v0`, `gworld/PushToGoal-v0` and `gworld/KeepApart-v0`:
`gymnasium.make("gworld.simulate.env:gworld/Reach-v0", world="runs/kitchen/world")`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pettingzoo

from gworld.errors import UsageError
from gworld.scene.world import World
from gworld.simulate.episodes import FAR, Episodes, Setting

IDS = {"gworld/Reach-v0": "reach", "gworld/PushToGoal-v0": "push_to_goal", "gworld/KeepApart-v0": "keep_apart"}
SEEDS = 2**31


class WorldParallelEnv(pettingzoo.ParallelEnv):
    """Every agent of the task acts at once; the episode ends for all of them together."""

    metadata: ClassVar[dict[str, Any]] = {"name": "gworld_v0", "render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(self, world: World | str | Path, render_mode: str | None = None, **settings: Any) -> None:
        self.episodes = Episodes(world, Setting(**settings))
        self.possible_agents = list(self.episodes.agents)
        self.agents: list[str] = []
        self.render_mode = render_mode
        self._random = np.random.default_rng()

    @cache  # noqa: B019 - the same space object each time, as the API wants; lives as long as the env
    def observation_space(self, agent: str) -> gymnasium.Space:
        """What an agent observes."""
        return _observation_space(self.episodes, agent)

    @cache  # noqa: B019 - as above
    def action_space(self, agent: str) -> gymnasium.Space:
        """What an agent can be told."""
        return _action_space(self.episodes, [agent])

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict[str, Any], dict[str, dict]]:
        """Begin an episode; without a seed, one is drawn."""
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self.episodes.reset(int(self._random.integers(SEEDS)))
        self.agents = list(self.possible_agents)
        return self._observations(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        """One step of all; an agent without an action holds still."""
        agents = self.agents
        rewards, done, over = self.episodes.step({name: actions[name] for name in agents if name in actions})
        ended = bool(done[0]), bool(over[0]) and not bool(done[0])
        observed = self._observations()
        self.agents = [] if any(ended) else agents
        each = {agent: float(rewards[agent][0]) if agent in rewards else 0.0 for agent in agents}
        first, second = (dict.fromkeys(agents, value) for value in ended)
        return observed, each, first, second, {agent: {} for agent in agents}

    def render(self) -> np.ndarray | None:
        """The first camera's picture."""
        return self.episodes.picture() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Nothing is held open."""

    def _observations(self) -> dict[str, Any]:
        return {agent: _one(self.episodes.observe(agent), 0) for agent in self.agents}


class WorldEnv(gymnasium.Env):
    """One agent acts while the others hold still, or one mind acts for all agents of the task (`agent=None`)."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(
        self,
        world: World | str | Path,
        agent: str | None = None,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        self.episodes = Episodes(world, Setting(**settings))
        self.acting = _acting(self.episodes, agent)
        self.observation_space = _observation_space(self.episodes, self.acting[0])
        self.action_space = _action_space(self.episodes, self.acting)
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        """Begin an episode; without a seed, one is drawn."""
        super().reset(seed=seed)
        self.episodes.reset(int(self.np_random.integers(SEEDS)))
        return _one(self.episodes.observe(self.acting[0]), 0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        """One step; the reward is the sum of those of the agents that act."""
        parts = _shared_out(self.episodes, self.acting, np.asarray(action, np.float32)[None])
        rewards, done, over = self.episodes.step(parts)
        reward = float(sum(rewards[name][0] for name in self.acting if name in rewards))
        return _one(self.episodes.observe(self.acting[0]), 0), reward, bool(done[0]), bool(over[0]), {}

    def render(self) -> np.ndarray | None:
        """The first camera's picture."""
        return self.episodes.picture() if self.render_mode == "rgb_array" else None


class WorldVectorEnv(gymnasium.vector.VectorEnv):
    """Many worlds stepped as one batch; a world whose episode ended begins anew with the next step."""

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": ["rgb_array"],
        "render_fps": 30,
        "autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        world: World | str | Path,
        worlds: int = 16,
        agent: str | None = None,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        self.episodes = Episodes(world, Setting(**settings), worlds)
        self.acting = _acting(self.episodes, agent)
        self.num_envs, self.render_mode = worlds, render_mode
        self.single_observation_space = _observation_space(self.episodes, self.acting[0])
        self.single_action_space = _action_space(self.episodes, self.acting)
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, worlds)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, worlds)
        self._ended = np.zeros(worlds, bool)

    def reset(self, *, seed: int | list[int | None] | None = None, options: dict | None = None) -> tuple[Any, dict]:
        """Begin an episode in every world; world i draws from the seed + i."""
        super().reset(seed=seed if isinstance(seed, int) else None)
        given = seed if isinstance(seed, int) else next((each for each in seed or () if each is not None), None)
        self.episodes.reset(int(self.np_random.integers(SEEDS)) if given is None else given)
        self._ended[:] = False
        return _all(self.episodes.observe(self.acting[0])), {}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict]:
        """One step of all worlds; those that ended before are put back instead, with reward 0."""
        parts = _shared_out(self.episodes, self.acting, np.asarray(actions, np.float32))
        again = np.flatnonzero(self._ended)
        rewards, done, over = self.episodes.step(parts, again.tolist())
        reward = np.sum([rewards[name] for name in self.acting if name in rewards], axis=0)
        reward[again], done[again], over[again] = 0.0, False, False
        self._ended = done | over
        return _all(self.episodes.observe(self.acting[0])), reward, done, over & ~done, {}

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The first camera's picture of each world."""
        if self.render_mode != "rgb_array":
            return None
        return tuple(self.episodes.picture(row) for row in range(self.num_envs))


def make_gym(world: World | str | Path, **settings: Any) -> WorldEnv:
    """What the registered ids make."""
    return WorldEnv(world, **settings)


def make_vector(world: World | str | Path, num_envs: int = 16, **settings: Any) -> WorldVectorEnv:
    """What `gymnasium.make_vec` makes of the registered ids."""
    return WorldVectorEnv(world, num_envs, **settings)


def register_envs() -> None:
    """Make the ids known to gymnasium; done when this file is imported."""
    for name, task in IDS.items():
        if name not in gymnasium.registry:
            gymnasium.register(
                name,
                "gworld.simulate.env:make_gym",
                kwargs={"task": task},
                vector_entry_point="gworld.simulate.env:make_vector",
            )


def _acting(episodes: Episodes, agent: str | None) -> list[str]:
    if agent is not None and agent not in episodes.agents:
        raise UsageError(f"agent `{agent}` has no part in the task; {', '.join(episodes.agents)} have.")
    return [agent] if agent is not None else list(episodes.agents)


def _action_space(episodes: Episodes, agents: list[str]) -> gymnasium.Space:
    low, high = episodes.bounds(agents)
    return gymnasium.spaces.Box(low, high, dtype=np.float32)


def _observation_space(episodes: Episodes, agent: str) -> gymnasium.Space:
    setting = episodes.setting
    spaces: dict[str, gymnasium.Space] = {}
    if "state" in setting.observations:
        spaces["state"] = gymnasium.spaces.Box(-FAR, FAR, (episodes.state_size(),), np.float32)
    if set(setting.observations) & {"images", "depth"}:
        width, height = setting.size
        for name in episodes.cameras().names:
            if "images" in setting.observations:
                spaces[f"images/{name}"] = gymnasium.spaces.Box(0, 255, (height, width, 3), np.uint8)
            if "depth" in setting.observations:
                spaces[f"depth/{name}"] = gymnasium.spaces.Box(0.0, FAR, (height, width, 1), np.float32)
    return spaces["state"] if set(spaces) == {"state"} else gymnasium.spaces.Dict(spaces)


def _shared_out(episodes: Episodes, agents: list[str], action: np.ndarray) -> dict[str, np.ndarray]:
    """One long action [W, A] as each agent's own."""
    ends = np.cumsum([len(episodes.engine.specs[name]) for name in agents])[:-1]
    return dict(zip(agents, np.split(action, ends, axis=-1), strict=True))


def _one(observed: dict[str, np.ndarray], row: int) -> Any:
    return observed["state"][row] if set(observed) == {"state"} else {k: v[row] for k, v in observed.items()}


def _all(observed: dict[str, np.ndarray]) -> Any:
    return observed["state"] if set(observed) == {"state"} else observed


register_envs()
