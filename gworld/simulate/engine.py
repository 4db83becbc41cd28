"""The engine: W worlds stepped at once by what all agents do, the same bits for the same seed and actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.agents.kinematics import clamp_values, value_limits
from gworld.dynamics.state import Motion, motion_from_states, state_from_motion, still_motion
from gworld.errors import InputError, UsageError
from gworld.scene.world import ActionSpec, World, WorldState
from gworld.simulate.stepper import Kinematics, Stepper, links_of, read_state

FARTHEST = 1e6
"""Metres from the origin beyond which a world counts as gone astray."""

Actions = Mapping[str, "Tensor | np.ndarray | Sequence[float]"]
"""What each agent is told: [A] for all worlds alike, or [W,A]; NaN, or an agent left out, where unknown."""


@dataclass(frozen=True)
class EngineOptions:
    """How a world is stepped."""

    step: float = 1 / 30
    """Seconds per step."""
    worlds: int = 1
    """Worlds that are stepped at once."""
    jitter: float = 0.0
    """How far, at a reset, joints start from where the world has them, as a part of their range."""
    history: int = 0
    """Earlier poses kept in a saved state."""

    def __post_init__(self) -> None:
        """Refuse what cannot be stepped."""
        if not 1e-5 <= self.step <= 10:
            raise UsageError(f"a step of {self.step} s was asked for; 0.00001 to 10 s is possible.")
        if not 1 <= self.worlds <= 65536:
            raise UsageError(f"{self.worlds} worlds were asked for; 1 to 65536 are possible.")
        if not 0 <= self.jitter <= 1 or self.history < 0:
            raise UsageError(f"jitter {self.jitter} and history {self.history} were asked for; 0 to 1, and >= 0, fit.")


class Engine:
    """A world and what moves it. `motion` is the state now; what it holds is what is rendered, nothing in between.

    `clipped` {agent: [A]} counts, per component, the actions cut to their limits since the reset, `stuck` [W] the steps
    that would have led to poses that are no numbers: such a world stays as it was before the step.
    """

    def __init__(self, world: World, stepper: Stepper | None = None, options: EngineOptions = EngineOptions()) -> None:
        self.world, self.options = world, options
        self.stepper = stepper or Kinematics(world)
        self.specs = {agent.name: agent.action for agent in world.agents if agent.action is not None}
        self._home = self.stepper.start(_batched(world, options.worlds))
        self.reset()

    def reset(self, seed: int = 0, state: WorldState | Sequence[WorldState] | None = None) -> Motion:
        """Begin anew at `state` (one for all worlds, or one each; the world at rest when None).

        The same seed gives the same start; worlds draw from seeds seed, seed + 1 and so on.
        """
        worlds = self.options.worlds
        self.generators = [torch.Generator().manual_seed((seed + index) % (1 << 63)) for index in range(worlds)]
        self.clipped = {name: torch.zeros(len(spec), dtype=torch.int64) for name, spec in self.specs.items()}
        self.stuck = torch.zeros(worlds, dtype=torch.int64)
        self._before: list[WorldState | None] = [None] * worlds
        self._rng: list[Tensor | None] = [None] * worlds
        if state is None:
            self.motion = self._fresh(range(worlds))
            return self.motion
        return self.restore([state] * worlds if isinstance(state, WorldState) else state)

    def restart(self, rows: Sequence[int]) -> Motion:
        """Put some worlds back to the start, each drawing on from its own generator; the clock of all runs on."""
        fresh, now = self._fresh(rows), self.motion
        place = torch.tensor(list(rows), dtype=torch.int64)

        def put(old: Tensor, new: Tensor) -> Tensor:
            return old.index_copy(0, place, new)

        self.motion = replace(
            now,
            world_from_link=put(now.world_from_link, fresh.world_from_link),
            twists=put(now.twists, fresh.twists),
            belief=put(now.belief, fresh.belief),
            memory={name: put(value, fresh.memory[name]) for name, value in now.memory.items()},
        )
        for row in rows:
            self._before[row] = None
        return self.motion

    def step(self, actions: Actions | None = None) -> Motion:
        """Act for `options.step` seconds and return the state after it.

        Raises `InputError` for an unknown agent or an action of the wrong length.
        """
        told = {name: self.fit_action(name, value) for name, value in (actions or {}).items()}
        before = self.motion
        if self.options.history:
            self._before = [self.save(row) for row in range(len(before))]
        with torch.no_grad():
            after = self.stepper.step(before, told, self.options.step)
        self.motion = self._sound(before, after)
        return self.motion

    def fit_action(self, agent: str, value: Tensor | np.ndarray | Sequence[float]) -> Float[Tensor, "W A"]:
        """An action [W,A] within its limits; what had to be cut is counted."""
        if agent not in self.specs:
            raise InputError(f"the world has no agent `{agent}`; it has {', '.join(self.specs) or 'none'}.")
        spec = self.specs[agent]
        action = torch.as_tensor(np.asarray(value) if not isinstance(value, Tensor) else value).to(torch.float32)
        wanted = [self.options.worlds, len(spec)]
        rows = action.shape[:-1]
        if action.shape[-1:] != (len(spec),) or rows not in ((), (1,), (self.options.worlds,)):
            raise InputError(f"agent `{agent}` was given an action of shape {list(action.shape)}; {wanted} is needed.")
        fitted, cut = clip_action(spec, action.expand(self.options.worlds, -1))
        self.clipped[agent] = self.clipped[agent] + cut.sum(0)
        return fitted

    def hold(self) -> dict[str, Float[Tensor, "W A"]]:
        """The action of each agent under which it keeps what it has."""
        return {name: self.stepper.hold(self.motion, name) for name in self.specs}

    def save(self, row: int = 0) -> WorldState:
        """The whole state of one world; an engine restored from it goes on with the same bits."""
        state = state_from_motion(self.motion, row, self._before[row], self.options.history)
        return replace(state, rng=self.generators[row].get_state())

    def restore(self, states: Sequence[WorldState]) -> Motion:
        """Go on from saved states, one per world. Raises `InputError` for states of another world or another time."""
        links = len(self.world.links)
        if len(states) != self.options.worlds or any(len(state.world_from_link) != links for state in states):
            raise InputError(
                f"{len(states)} states of {[len(state.world_from_link) for state in states[:4]]} links were given; "
                f"{self.options.worlds} of {links} are needed."
            )
        if len({(state.time, *sorted(state.actuators)) for state in states}) > 1:
            raise InputError("the states differ in time or in agents; worlds that are stepped at once share both.")
        if not all(bool(torch.isfinite(state.world_from_link).all()) for state in states):
            raise InputError("a state holds poses that are not finite; it cannot be gone on from.")
        beliefs = self._home.belief.shape[-1]
        self.motion = self.stepper.start(motion_from_states(list(states), beliefs))
        for generator, state in zip(self.generators, states, strict=True):
            if state.rng is not None:
                generator.set_state(state.rng)
        if self.options.history:
            self._before = list(states)
        return self.motion

    def _sound(self, before: Motion, after: Motion) -> Motion:
        """The state after a step; worlds that went astray stay where they were, at rest."""
        poses, twists = after.world_from_link.flatten(1), after.twists.flatten(1)
        good = torch.isfinite(poses).all(1) & (poses.abs() < FARTHEST).all(1) & torch.isfinite(twists).all(1)
        good &= torch.isfinite(after.belief.flatten(1)).all(1)
        for value in after.memory.values():
            good &= torch.isfinite(value).all(1)
        if bool(good.all()):
            return after
        self.stuck = self.stuck + ~good

        def keep(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(good.view(-1, *[1] * (new.ndim - 1)), new, old)

        memory = {name: keep(value, before.memory[name]) for name, value in after.memory.items()}
        return replace(
            after,
            world_from_link=keep(after.world_from_link, before.world_from_link),
            twists=keep(after.twists, torch.zeros_like(before.twists)),
            belief=keep(after.belief, before.belief),
            memory=memory,
        )

    def _fresh(self, rows: Sequence[int]) -> Motion:
        """Worlds at rest, or with joints a little off their places, drawn for each world by itself."""
        home, chosen = self._home, list(rows)
        motion = replace(
            home,
            world_from_link=home.world_from_link[chosen],
            twists=home.twists[chosen],
            belief=home.belief[chosen],
            memory={name: value[chosen] for name, value in home.memory.items()},
        )
        if not self.options.jitter:
            return motion
        poses = motion.world_from_link.clone()
        for body in self.stepper.bodies.values():
            low, high = value_limits(body.skeleton)
            room = torch.where((high - low).isfinite(), high - low, torch.zeros_like(low))
            drawn = torch.stack([torch.rand(len(room), generator=self.generators[row]) for row in chosen]) * 2 - 1
            links = list(body.entity.links)
            state = read_state(body, poses[:, links])
            values = clamp_values(body.skeleton, state.values + self.options.jitter * room * drawn)
            poses[:, links] = links_of(body, replace(state, values=values))
        return self.stepper.start(still_motion(poses, motion.belief.shape[-1]))


def clip_action(spec: ActionSpec, action: Float[Tensor, "*B A"]) -> tuple[Float[Tensor, "*B A"], Tensor]:
    """An action within a spec's limits (NaN stays), and which components had to be cut by more than rounding."""
    low, high = action.new_tensor(spec.low), action.new_tensor(spec.high)
    fitted = torch.minimum(torch.maximum(action, low), high)
    slack = 1e-6 * (high - low).clamp_min(1e-6)
    return fitted, (action < low - slack) | (action > high + slack)


def _batched(world: World, worlds: int) -> Motion:
    return still_motion(world.rest_poses().expand(worlds, -1, 4, 4).contiguous())
