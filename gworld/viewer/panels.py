"""The panels beside the picture: what is shown, recorded motion, one folder per agent to drive it, pictures to keep."""

from __future__ import annotations

import html
import io
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import viser
from PIL import Image

from gworld.viewer.driver import HAND
from gworld.viewer.player import SPEEDS
from gworld.viewer.splats import COLOURS

if TYPE_CHECKING:
    from gworld.viewer.app import Viewer

MAX_BODIES = 60
TICKS = 400
"""Places of a slider."""


def plain(text: str) -> str:
    """Text as markdown that shows it as it is: names come from files, and viser's markdown would run their HTML."""
    return html.escape(re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", " ".join(text.split())), quote=False)


class ScenePanel:
    """Colours, what is visible, cameras to look through."""

    def __init__(self, viewer: Viewer) -> None:
        gui, stage, world = viewer.server.gui, viewer.stage, viewer.world
        modes = COLOURS if stage.views is not None else COLOURS[:-1]
        colour = gui.add_dropdown("Colour by", modes, hint="its own colour, whose it is, or how many views saw it")
        colour.on_update(lambda event: viewer.do(lambda: stage.paint(colour.value)))
        if world.cameras is not None:
            self._cameras(viewer)
        with gui.add_folder("Visible"):
            for entity in world.entities[:MAX_BODIES]:
                box = gui.add_checkbox(f"{entity.name} ({entity.kind})", True)
                self._bind(viewer, box, entity.name)
            if len(world.entities) > MAX_BODIES:
                gui.add_markdown(f"and {len(world.entities) - MAX_BODIES} more; the scene tree of viser has them all.")

    def _bind(self, viewer: Viewer, box: Any, name: str) -> None:
        box.on_update(lambda event: viewer.do(lambda: viewer.stage.draw_entity(name, box.value)))

    def _cameras(self, viewer: Viewer) -> None:
        gui, cameras = viewer.server.gui, viewer.world.cameras
        assert cameras is not None
        names = [f"{index} {cameras.names[index] if cameras.names else ''}".strip() for index in range(len(cameras))]
        with gui.add_folder("Cameras"):
            shown = gui.add_checkbox("Frustums", True, hint="click on one to look through it")
            choice = gui.add_dropdown("Camera", names)
            enter = gui.add_button("Look through")
        shown.on_update(lambda event: viewer.do(lambda: viewer.stage.draw_cameras(shown.value)))

        @enter.on_click
        def _(event: Any) -> None:
            if event.client is not None and choice.value in names:
                viewer.stage.enter(event.client, names.index(choice.value))


class MotionPanel:
    """The timeline of a recording."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer, gui = viewer, viewer.server.gui
        self.names = list(viewer.recordings)
        self.choice = gui.add_dropdown("Recording", self.names or ("none yet",))
        self.frame = gui.add_slider("Frame", 0, 1, 1, 0)
        self.play = gui.add_button("Play")
        self.step = gui.add_button_group("Frame by frame", ("back", "on"))
        self.speed = gui.add_dropdown("Speed", [f"{speed:g}" for speed in SPEEDS], initial_value="1")
        self.loop = gui.add_checkbox("Loop", True)
        self.clock = gui.add_markdown("")
        self.choice.on_update(lambda event: self._act(event, lambda: viewer.open_recording(self.choice.value)))
        self.frame.on_update(lambda event: self._act(event, lambda: viewer.seek(int(self.frame.value))))
        self.play.on_click(lambda event: viewer.do(lambda: viewer.play()))
        self.step.on_click(lambda event: viewer.do(lambda: viewer.step_frame(1 if self.step.value == "on" else -1)))
        self.speed.on_update(lambda event: viewer.do(self._settings))
        self.loop.on_update(lambda event: viewer.do(self._settings))
        self.refresh()

    def _act(self, event: Any, act: Any) -> None:
        if event.client is not None:  # not when the server moves the slider itself
            self.viewer.do(act)

    def _settings(self) -> None:
        player = self.viewer.player
        if player is not None and self.speed.value in self.speed.options:
            player.speed, player.loop = float(self.speed.value), bool(self.loop.value)

    def add(self, name: str) -> None:
        """Offer one more recording, and choose it."""
        self.names.append(name)
        self.choice.options = self.names
        self.choice.value = name

    def refresh(self) -> None:
        """Show where the player is."""
        player = self.viewer.player
        if player is None:
            self.clock.content = "Nothing is recorded yet. Record a drive, or open a rollout with its world."
            return
        self.play.label = "Pause" if player.playing else "Play"
        last = len(player.rollout) - 1
        if self.frame.max != max(last, 1):
            self.frame.max = max(last, 1)
        self.frame.value = player.frame
        self.clock.content = f"frame {player.frame} of {last}, {player.time:.2f} of {player.seconds:.2f} s"


class DrivePanel:
    """Live stepping, and a folder per agent with a slider for every component of its action."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer, gui, driver = viewer, viewer.server.gui, viewer.driver
        assert driver is not None
        self.state = gui.add_markdown("")
        self.live = gui.add_checkbox("Run", True, hint="step the world; off, it stands still")
        self.reset = gui.add_button("Reset")
        self.record = gui.add_button("Record from rest", hint="resets, and keeps every step until stopped")
        self.save = gui.add_button_group("State", ("remember", "return"), hint="branch: try again from the same state")
        self.sliders: dict[str, list[Any]] = {}
        self.modes: dict[str, Any] = {}
        self._gizmos: dict[str, Any] = {}
        for agent in driver.engine.specs:
            with gui.add_folder(agent):
                self._agent(agent)
        self.live.on_update(lambda event: viewer.do(lambda: viewer.run_live(bool(self.live.value))))
        self.reset.on_click(lambda event: viewer.do(viewer.reset))
        self.record.on_click(lambda event: viewer.do(viewer.record))
        self.save.on_click(lambda event: viewer.do(lambda: viewer.branch(self.save.value == "return")))

    def _agent(self, agent: str) -> None:
        gui, driver, viewer = self.viewer.server.gui, self.viewer.driver, self.viewer
        assert driver is not None
        mode = gui.add_dropdown("Driven by", driver.choices(agent), initial_value=HAND)
        mode.on_update(lambda event: viewer.do(lambda: viewer.choose(agent, mode.value)))
        self.modes[agent], self.sliders[agent] = mode, []
        spec, link = driver.engine.specs[agent], driver.hand_link(agent)
        if link is not None:
            hand = gui.add_checkbox("Drag the hand", False, hint="a gizmo at the hand; sliders follow it")
            hand.on_update(lambda event: viewer.do(lambda: self._gizmo(agent, link, bool(hand.value))))
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

    def _tell(self, event: Any, agent: str, index: int) -> None:
        driver = self.viewer.driver
        if event.client is None or driver is None:
            return
        value = event.target.value
        if isinstance(value, int | float) and not isinstance(value, bool):
            driver.tell(agent, index, float(value))
            self.viewer.wake()

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
            viewer.reach(agent, np.concatenate([grip.position, grip.wxyz]))

    def show_told(self, agents: Any = None) -> None:
        """Put the sliders where the driver has them."""
        driver = self.viewer.driver
        assert driver is not None
        for agent in agents or self.sliders:
            for slider, value in zip(self.sliders[agent], driver.told[agent], strict=True):
                slider.value = float(value)

    def refresh(self, rate: float) -> None:
        """Say what the engine does."""
        driver = self.viewer.driver
        assert driver is not None
        self.record.label = "Stop recording" if driver.recording else "Record from rest"
        pace = f"{rate:.0f} steps per second" if rate else "standing"
        state = f"{driver.time:.2f} s, {pace}{', **recording**' if driver.recording else ''}"
        self.state.content = f"{state}  \n{plain(self.viewer.message)}"


class PicturePanel:
    """Our own renderer in place of the browser's splats, and pictures to keep."""

    def __init__(self, viewer: Viewer) -> None:
        gui, self.viewer = viewer.server.gui, viewer
        self.true = gui.add_checkbox("True pixels", False, hint="draw with gworld's renderer: view-dependent colour")
        self.note = gui.add_markdown("The browser draws the splats.")
        shot = gui.add_button("Save this picture", hint="a PNG of this view by gworld's renderer")
        self.true.on_update(lambda event: viewer.do(lambda: viewer.pixels.switch(bool(self.true.value))))

        @shot.on_click
        def _(event: Any) -> None:
            if event.client is not None:
                event.client.send_file_download("gworld.png", picture_bytes(viewer, event.client))

    def refresh(self) -> None:
        """Say what drawing costs."""
        drawn = f"gworld draws: {plain(self.viewer.pixels.note or 'a moment')}"
        self.note.content = drawn if self.viewer.pixels.on else "The browser draws the splats."


def picture_bytes(viewer: Viewer, client: viser.ClientHandle) -> bytes:
    """A PNG of what a visitor looks at."""
    stream = io.BytesIO()
    Image.fromarray(viewer.pixels.picture(client, 1920)).save(stream, "png")
    return stream.getvalue()
