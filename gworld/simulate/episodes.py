"""What all environments share: a world, a task, observations by name, and when an episode ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from gworld.dynamics.state import Motion
from gworld.errors import UsageError
from gworld.formats.registry import world_folder
from gworld.formats.world import load_world
from gworld.render.video import as_uint8
from gworld.scene.cameras import Cameras, resize_cameras
from gworld.scene.world import World
from gworld.simulate.engine import Engine, EngineOptions
from gworld.simulate.learned import open_stepper
from gworld.simulate.observe import Frame, Observer
from gworld.simulate.stepper import Stepper
from gworld.simulate.tasks import Judge, Judged, Task, parse_task

ObservationName = Literal["state", "images", "depth"]
FAR = 1000.0
"""Metres, metres per second and radians per second to which states and depths are cut."""


@dataclass(frozen=True)
class Setting:
    """What an environment is."""

    task: str | Path | Task | Judge = "reach"
    """What is to be done: a task, its name or file, or a function of yours."""
    observations: Sequence[str] = ("state",)
    """`state` alone is one vector; several make a dictionary, with `images/CAMERA` and `depth/CAMERA`."""
    size: tuple[int, int] = (96, 64)
    """Width and height of pictures in pixels."""
    step: float = 1 / 30
    """Seconds per step."""
    limit: int = 200
    """Steps after which an episode is cut off."""
    jitter: float = 0.1
    """How far joints start from where they are, as a part of their range."""
    scaled: bool = True
    """Actions from -1 to 1 instead of in the agents' own units."""
    dynamics: str | Path | None = None
    """A dynamics run; else the one bound to the world, else kinematics only."""
    stepper: Stepper | None = None
    """What moves the world, made already."""

    def __post_init__(self) -> None:
        """Refuse what cannot be observed."""
        if not self.observations or not set(self.observations) <= set(get_args(ObservationName)):
            raise UsageError(f"the observations {self.observations} are not known; state, images and depth are.")
        if self.limit < 1 or min(self.size) < 1:
            raise UsageError(f"limit {self.limit} and size {self.size} were asked for; counts from 1 fit.")


class Episodes:
    """W worlds, each in its own episode: arrays in, arrays out; the environments only differ in how they wrap it."""

    def __init__(self, world: World | str | Path, setting: Setting, worlds: int = 1) -> None:
        self.world = world if isinstance(world, World) else load_world(world_folder(world))
        self.setting = setting
        stepper = setting.stepper or open_stepper(self.world, setting.step, setting.dynamics)
        self.engine = Engine(self.world, stepper, EngineOptions(setting.step, worlds, setting.jitter))
        self.judged = Judged(parse_task(setting.task, self.world), self.world)
        self.agents = self.judged.agents
        self.steps = np.zeros(worlds, np.int64)
        self._observer: Observer | None = None
        self._drawn: Motion | None = None
        self._frame: Frame | None = None
        if set(setting.observations) & {"images", "depth"}:
            names = [name for name in ("images", "depth") if name in setting.observations]
            drawn = [{"images": "rgb"}.get(name, name) for name in names]
            self._observer = Observer(self.world, self.cameras(), drawn)
        self._moving = [link for entity in self.world.entities if entity.kind != "static" for link in entity.links]
        self._own = {entity.name: entity.links for entity in self.world.agents}

    def cameras(self, size: tuple[int, int] | None = None) -> Cameras:
        """The world's cameras at the size of the pictures, named."""
        if self.world.cameras is None:
            raise UsageError("the world holds no cameras, so it cannot be observed in pictures; observe `state`.")
        cameras = resize_cameras(self.world.cameras, *(size or self.setting.size))
        return replace(cameras, names=cameras.names or tuple(f"camera{i}" for i in range(len(cameras))))

    def reset(self, seed: int) -> None:
        """Begin an episode in every world."""
        self.engine.reset(seed)
        self.judged.draw(self.engine.generators)
        self.steps[:] = 0
        if self._observer is not None:
            self._observer.forget()

    def restart(self, rows: Sequence[int]) -> None:
        """Begin a new episode in some worlds."""
        self.engine.restart(rows)
        targets = self.judged.targets.clone()
        self.judged.draw([self.engine.generators[row] for row in rows])
        targets[list(rows)] = self.judged.targets
        self.judged.targets = targets
        self.steps[list(rows)] = 0

    def step(
        self, actions: Mapping[str, np.ndarray], held: Sequence[int] = ()
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Rewards {agent: [W]}, done [W], cut off [W]; agents without an action hold still.

        The worlds `held` do not count the step: they begin anew in it.
        """
        told: dict[str, Tensor] = self.engine.hold()
        for name, action in actions.items():
            told[name] = self.unscaled(name, np.asarray(action, np.float32))
        before = self.engine.motion
        after = self.engine.step(told)
        reward, done = self.judged.judge(before, after)
        self.steps += 1
        if len(held):
            self.restart(held)
        over = self.steps >= self.setting.limit
        rewards = {name: torch.nan_to_num(value).double().numpy() for name, value in reward.items()}
        return rewards, done.numpy().astype(bool), over

    def unscaled(self, agent: str, action: np.ndarray) -> Tensor:
        """An action in the agent's own units."""
        spec, value = self.engine.specs[agent], torch.from_numpy(np.atleast_2d(action))
        if not self.setting.scaled:
            return value
        low, high = torch.tensor(spec.low), torch.tensor(spec.high)
        return low + (value.clamp(-1, 1) + 1) / 2 * (high - low)

    def bounds(self, agents: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper limits of these agents' actions, one after the other."""
        specs = [self.engine.specs[name] for name in agents]
        low = np.array([value for spec in specs for value in spec.low], np.float32)
        high = np.array([value for spec in specs for value in spec.high], np.float32)
        return (-np.ones_like(low), np.ones_like(high)) if self.setting.scaled else (low, high)

    def state_size(self) -> int:
        """Numbers of a state: 13 per moving link, and the target."""
        return 13 * len(self._moving) + 3

    def observe(self, agent: str) -> dict[str, np.ndarray]:
        """What an agent observes, by name, for all worlds.

        `state` [W, 13 L + 3]: of each moving link, the agent's own first, pose and velocity, then the target;
        `images/CAMERA` [W,H,V,3] uint8; `depth/CAMERA` [W,H,V,1] metres.
        """
        found: dict[str, np.ndarray] = {}
        if "state" in self.setting.observations:
            found["state"] = self._state(agent)
        if self._observer is not None:
            if self._frame is None or self._drawn is not self.engine.motion:  # all agents look at one picture
                self._drawn, self._frame = self.engine.motion, self._observer(self.engine.motion)
            frame = self._frame
            for index, name in enumerate(frame.cameras.names):
                if frame.rgb is not None:
                    found[f"images/{name}"] = np.stack([as_uint8(picture) for picture in frame.rgb[:, index]])
                if frame.depth is not None:
                    depth = frame.depth[:, index, ..., None].clamp(0, FAR)
                    found[f"depth/{name}"] = depth.numpy().astype(np.float32)
        return found

    def picture(self, row: int = 0) -> np.ndarray:
        """What the first camera sees of one world, for people."""
        observer = Observer(self.world, self.cameras((320, 240))[0], ("rgb",))
        motion = replace(self.engine.motion, world_from_link=self.engine.motion.world_from_link[row : row + 1])
        rgb = observer(motion).rgb
        assert rgb is not None
        return as_uint8(rgb[0, 0])

    def _state(self, agent: str) -> np.ndarray:
        """[W, 13 L + 3]: of each moving link, the agent's own first, its pose `x y z qw qx qy qz` (qw >= 0) and its
        velocity (m/s, rad/s); then the target."""
        from gworld.geometry import pose_from_transform

        own = list(self._own[agent])
        links = own + [link for link in self._moving if link not in own]
        motion = self.engine.motion
        pose = pose_from_transform(motion.world_from_link[:, links])
        rows = torch.cat([pose, motion.twists[:, links]], dim=-1).flatten(1)
        targets = self.judged.targets.expand(len(rows), 3)
        return torch.cat([rows, targets], dim=1).clamp(-FAR, FAR).numpy().astype(np.float32)
