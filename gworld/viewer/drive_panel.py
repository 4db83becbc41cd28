"""The drive panel: live stepping, branches, recordings, and a folder per agent made from what it can be told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gworld.viewer.driver import HAND
from gworld.viewer.panels import plain
from gworld.viewer.pixels import view_of

if TYPE_CHECKING:
    from gworld.viewer.app import Viewer
    from gworld.viewer.drives import Drives

TICKS = 400
"""Places of a slider."""


class DrivePanel:
    """Live stepping, and a folder per agent with a slider for every component of its action."""

    def __init__(self, viewer: Viewer, drives: Drives) -> None:
        self.viewer, self.drives, gui, driver = viewer, drives, viewer.server.gui, drives.driver
        self.state = gui.add_markdown("")
        self.live = gui.add_checkbox("Run", True, hint="step the world; off, it stands still")
        self.reset = gui.add_button("Reset")
        with gui.add_folder("Record and branch", expand_by_default=False):
            self._memory()
        self.sliders: dict[str, list[Any]] = {}
        self.modes: dict[str, Any] = {}
        self._takes: dict[str, Any] = {}
        self._gizmos: dict[str, Any] = {}
        for agent in driver.engine.specs:
            with gui.add_folder(agent):
                self._agent(agent)
        self.live.on_update(lambda event: viewer.do(lambda: viewer.run_live(bool(self.live.value))))
        self.reset.on_click(lambda event: viewer.do(drives.reset))

    def _memory(self) -> None:
        """What is kept of a drive, and other tries from one state."""
        gui, viewer, drives = self.viewer.server.gui, self.viewer, self.drives
        self.record = gui.add_button("Record from rest", hint="resets, and keeps every step until stopped")
        self.keep = gui.add_button("Keep the drive so far", hint="actions, rollout, episode, and a film from your view")
        self.save = gui.add_button_group(
            "State",
            ("remember", "return"),
            hint="try something else from the same state; the first try stays as a ghost",
        )
        self.apart = gui.add_markdown("")
        self.record.on_click(lambda event: viewer.do(lambda: drives.record(view_of(event.client))))
        self.keep.on_click(lambda event: viewer.do(lambda: drives.keep(drives.driver.driven(), view_of(event.client))))
        self.save.on_click(lambda event: viewer.do(lambda: drives.branch(self.save.value == "return")))

    def _agent(self, agent: str) -> None:
        gui, viewer, drives = self.viewer.server.gui, self.viewer, self.drives
        driver = drives.driver
        take = gui.add_button("Take", hint="nobody else can move it until you set it free, or leave")
        take.on_click(lambda event: viewer.do(lambda: drives.take(agent, event.client_id)))
        self._takes[agent] = take
        mode = gui.add_dropdown("Driven by", driver.choices(agent), initial_value=HAND)
        mode.on_update(lambda event: self._choose(event, agent, mode.value))
        self.modes[agent], self.sliders[agent] = mode, []
        spec, link = driver.engine.specs[agent], driver.hand_link(agent)
        if link is not None:
            hand = gui.add_checkbox("Drag the hand", False, hint="a gizmo at the hand; sliders follow it")
            hand.on_update(lambda event: viewer.do(lambda: self._gizmo(agent, link, bool(hand.value))))
        if agent in drives.wheels:
            gui.add_markdown("Keys: **I** **K** ahead and back, **J** **L** left and right, **U** **O** sideways.")
        if agent not in driver.engine.stepper.bodies:
            gui.add_markdown("It has no robot model, so nothing moves it.")
        for index, (name, unit, low, high) in enumerate(zip(spec.names, spec.units, spec.low, spec.high, strict=True)):
            top = high if high > low else low + 1e-6
            slider = gui.add_slider(
                f"{name} [{unit}]", low, top, (top - low) / TICKS, min(max(driver.told[agent][index], low), top),
                hint=f"{low:.3g} to {high:.3g} {unit}",
            )  # fmt: skip
            slider.on_update(lambda event, index=index: self._tell(event, agent, index))
            self.sliders[agent].append(slider)

    def _choose(self, event: Any, agent: str, mode: str) -> None:
        if event.client is not None:
            self.viewer.do(lambda: self.drives.choose(agent, mode, event.client_id))

    def _tell(self, event: Any, agent: str, index: int) -> None:
        value = event.target.value
        if event.client is not None and isinstance(value, int | float) and not isinstance(value, bool):
            self.drives.tell(agent, index, float(value), event.client_id)

    def _gizmo(self, agent: str, link: int, wanted: bool) -> None:
        old = self._gizmos.pop(agent, None)
        if old is not None:
            old.remove()
        if not wanted:
            return
        viewer, pose = self.viewer, self.viewer.stage.poses[link]
        grip = viewer.server.scene.add_transform_controls(
            f"/hand of {agent.replace('/', ' ')}", scale=0.12, position=pose[:3], wxyz=pose[3:], depth_test=False
        )
        self._gizmos[agent] = grip

        @grip.on_update
        def _(event: Any) -> None:
            self.drives.reach(agent, np.concatenate([grip.position, grip.wxyz]), event.client_id)

    def show_told(self, agents: Any = None) -> None:
        """Put the sliders where the driver has them."""
        for agent in agents or self.sliders:
            for slider, value in zip(self.sliders[agent], self.drives.driver.told[agent], strict=True):
                slider.value = float(value)

    def refresh(self, live: bool) -> None:
        """Say what the engine does, whose the agents are, how far the branches are apart."""
        viewer, driver, owners = self.viewer, self.drives.driver, self.drives.owners
        self.record.label = "Stop recording" if driver.recording else "Record from rest"
        pace = f"{self.drives.rate:.0f} steps per second" if live else "standing"
        state = f"{driver.time:.2f} s, {pace}{', **recording**' if driver.recording else ''}"
        self.state.content = f"{state}  \n{plain(viewer.message)}"
        gap, unit = viewer.gap, "m" if viewer.world.metric else "units"
        self.apart.content = "" if gap is None else f"{gap.distance:.3f} {unit} from the ghost ({plain(gap.body)})"
        for agent, button in self._takes.items():
            label = f"Set free (taken by visitor {owners[agent]})" if agent in owners else "Take"
            if button.label != label:
                button.label = label
