"""What visitors do with the driver: who has which agent, keys and hands, branches, recordings. Called by the loop."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import viser
from jaxtyping import Float

from gworld.scene.cameras import Cameras
from gworld.scene.rollout import Rollout
from gworld.viewer.driver import HAND, Driver
from gworld.viewer.keep import keep_drive
from gworld.viewer.keys import listen, steer, wheel_of

if TYPE_CHECKING:
    from gworld.viewer.app import Viewer


class Drives:
    """The driver of a viewer and its visitors' hands on it.

    `owners` says which visitor has taken an agent; nobody else can move it. An agent that nobody took obeys everybody.
    """

    def __init__(self, viewer: Viewer, driver: Driver) -> None:
        self.viewer, self.driver, self.rate = viewer, driver, 0.0
        self.owners: dict[str, int] = {}
        self.branches = 0
        self._reach: dict[str, Float[np.ndarray, " 7"]] = {}
        self._held: dict[int, tuple[str, str]] = {}
        self.wheels = {name: wheel for name, spec in driver.engine.specs.items() if (wheel := wheel_of(spec))}
        viewer.server.on_client_disconnect(lambda client: viewer.do(lambda: self.leave(client.client_id)))
        if self.wheels:
            viewer.server.on_client_connect(self._listen)

    def _listen(self, client: viser.ClientHandle) -> None:
        def heard(event: object) -> None:
            value = getattr(getattr(event, "target", None), "value", "")
            self.viewer.do(lambda: self.keys(client.client_id, str(value)))

        listen(client, heard)

    def may(self, agent: str, visitor: int | None) -> bool:
        """Whether a visitor may move an agent; if not, the panels say whose it is."""
        owner = self.owners.get(agent)
        if owner is None or owner == visitor:
            return True
        self.viewer.message = f"visitor {owner} has taken {agent}"
        self._tell_panel([agent])
        return False

    def take(self, agent: str, visitor: int | None) -> None:
        """Take an agent for oneself, or set it free again."""
        if visitor is None or not self.may(agent, visitor):
            return
        if self.owners.pop(agent, None) is None:
            self.owners[agent] = visitor
            self.viewer.message = f"visitor {visitor} has taken {agent}"

    def leave(self, visitor: int) -> None:
        """A visitor went: what was taken is free, what was held is let go."""
        self.keys(visitor, "")
        for agent in [name for name, owner in self.owners.items() if owner == visitor]:
            del self.owners[agent]

    def tell(self, agent: str, component: int, value: float, visitor: int | None) -> None:
        """Move one slider."""
        if self.may(agent, visitor):
            self.driver.tell(agent, component, value)
            self.viewer.wake()

    def choose(self, agent: str, mode: str, visitor: int | None = None) -> None:
        """Change what drives an agent."""
        if self.may(agent, visitor):
            self.driver.choose(agent, mode)
            self._tell_panel([agent])
        elif self.viewer.drive is not None:
            self.viewer.drive.modes[agent].value = self.driver.modes[agent]

    def reach(self, agent: str, pose: Float[np.ndarray, " 7"], visitor: int | None = None) -> None:
        """Have an agent's hand go to a pose; of several wishes within a tick the last one counts."""
        if self.may(agent, visitor):
            self._reach[agent] = pose
            self.viewer.wake()

    def keys(self, visitor: int, held: str) -> None:
        """Drive by the keys that a visitor holds down: the vehicle that he took, else the first that is free."""
        before = self._held.pop(visitor, None)
        own = [name for name in self.wheels if self.owners.get(name) == visitor]
        free = [name for name in self.wheels if name not in self.owners]
        agent = before[0] if before else next(iter([*own, *free]), None)
        if agent is None or (not held and before is None) or not self.may(agent, visitor):
            return
        if held:
            self._held[visitor] = agent, held
            if self.driver.modes[agent] != HAND:
                self.driver.choose(agent, HAND)
            self.viewer.run_live(True)
        for component, value in steer(self.driver.engine.specs[agent], self.wheels[agent], held).items():
            self.driver.tell(agent, component, value)
        self._tell_panel([agent])
        self.viewer.wake()

    def step(self, passed: float) -> None:
        """As many steps as time has passed, one at least and three at most."""
        driver = self.driver
        for agent in list(self._reach):
            driver.reach(agent, self._reach.pop(agent))
            self._tell_panel([agent])
        begin = time.monotonic()
        count = min(max(round(passed / driver.engine.options.step), 1), 3)
        for _ in range(count):
            driver.step()
        self.viewer.show(driver.poses, driver.time)
        took = max(time.monotonic() - begin, passed)
        self.rate += 0.1 * (count / took - self.rate)

    def reset(self) -> None:
        """Begin the drive anew."""
        self.driver.reset()
        self.drove()

    def branch(self, back: bool) -> None:
        """Remember this state, or return to it; what was driven meanwhile is kept as a branch and compared with."""
        driver, viewer = self.driver, self.viewer
        if not back:
            driver.save()
            viewer.message = f"remembered the state at {driver.time:.2f} s"
            return
        driven = driver.driven() if driver.left else None
        if not driver.back():
            viewer.message = "no state is remembered yet"
            return
        if driven is not None:
            self.branches += 1
            name = f"branch {self.branches}"
            viewer.add_recording(name, driven)
            viewer.compare(name)
            viewer.message = f"{name} is kept and shown beside what you drive now"
        self.drove()

    def record(self, camera: Cameras | None = None) -> None:
        """Begin a recording from rest, or end it and keep it."""
        driver, viewer = self.driver, self.viewer
        if not driver.recording:
            driver.start_recording()
            self.drove()
            viewer.run_live(True)
            return
        rollout = driver.stop_recording()
        self.keep(rollout, camera)

    def keep(self, rollout: Rollout | None, camera: Cameras | None = None) -> None:
        """Write what was driven: actions, rollout, episode and, where a camera is given, a film."""
        viewer = self.viewer
        if rollout is None:
            viewer.message = "nothing was recorded"
            return
        motion = keep_drive(viewer, self.driver, rollout, camera)
        viewer.add_recording(motion.stem, rollout)

    def drove(self) -> None:
        """Show where the driver is now."""
        self._tell_panel(None)
        if self.viewer.edited:
            self.viewer.run_live(True)  # says why not
            return
        self.viewer.show(self.driver.poses, self.driver.time)

    def _tell_panel(self, agents: list[str] | None) -> None:
        if self.viewer.drive is not None:
            self.viewer.drive.show_told(agents)
