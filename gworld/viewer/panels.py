"""The panels beside the picture: what is shown, recorded motion, one folder per agent to drive it, pictures to keep."""

from __future__ import annotations

import html
import io
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import viser
from jaxtyping import UInt8
from PIL import Image

from gworld.scene.cameras import Cameras
from gworld.viewer.camera_path import CameraPath, fly, write_camera_path
from gworld.viewer.driver import free_name
from gworld.viewer.film import FilmPanel
from gworld.viewer.ghost import MODES
from gworld.viewer.keep import KINDS, keep_as
from gworld.viewer.pixels import view_of
from gworld.viewer.player import SPEEDS
from gworld.viewer.splats import COLOURS, LEVELS, scale_colours

if TYPE_CHECKING:
    from gworld.viewer.app import Viewer

MAX_BODIES = 60
NOTHING = "nothing"


LEGENDS = {
    "rgb": "Their own colours.",
    "agent": "A colour for each agent and object; what stands still is grey.",
    "link": "A colour for each link; what stands still is grey.",
    "uncertainty": "What is shown tells no uncertainty. `gworld simulate --deviations` writes it into a rollout.",
    "coverage": "Red: seen by no view; yellow: by one; green: by eight or more.",
}


def plain(text: str) -> str:
    """Text as markdown that shows it as it is: names come from files, and viser's markdown would run their HTML."""
    return html.escape(re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", " ".join(text.split())), quote=False)


class ScenePanel:
    """Colours, what is visible, cameras to look through."""

    def __init__(self, viewer: Viewer) -> None:
        gui, stage, world = viewer.server.gui, viewer.stage, viewer.world
        modes = COLOURS if stage.views is not None else COLOURS[:-1]
        self.viewer = viewer
        self.colour = gui.add_dropdown(
            "Colour by", modes, hint="its own colour, whose it is, how sure its place is, or how many views saw it"
        )
        self.scale = gui.add_image(_scale(), format="png", visible=False)
        self.legend = gui.add_markdown("")
        self.colour.on_update(lambda event: viewer.do(self._paint))
        if world.cameras is not None:
            self._cameras(viewer)
        with gui.add_folder("Visible"):
            for entity in world.entities[:MAX_BODIES]:
                box = gui.add_checkbox(f"{entity.name} ({entity.kind})", True)
                self._bind(viewer, box, entity.name)
            if len(world.entities) > MAX_BODIES:
                gui.add_markdown(f"and {len(world.entities) - MAX_BODIES} more; the scene tree of viser has them all.")

    def _paint(self) -> None:
        if self.colour.value in COLOURS:
            self.viewer.stage.paint(self.colour.value)
            self.refresh()

    def refresh(self) -> None:
        """Say what the colours mean."""
        mode, viewer = self.viewer.stage.mode, self.viewer
        player = None if viewer.live or viewer.stage.levels is None else viewer.player
        std = None if player is None else player.std
        told = mode == "uncertainty" and player is not None and std is not None
        if self.scale.visible != told:
            self.scale.visible = told
        self.legend.content = LEGENDS[mode]
        if told and player is not None and std is not None:
            worst = viewer.world.links[int(std.argmax())].name
            self.legend.content = (
                f"0 to {self._length(player.top)}: one standard deviation of each link's place, along an axis. "
                f"Now at most {self._length(float(std.max()))} ({plain(worst)})."
            )

    def _length(self, value: float) -> str:
        return f"{1000 * value:.3g} mm" if self.viewer.world.metric else f"{value:.3g} units"

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


def _scale() -> UInt8[np.ndarray, "H W 3"]:
    """The scale of uncertainty from left to right, in its steps."""
    steps = np.repeat(np.arange(LEVELS + 1) / LEVELS, 24)
    return np.tile((255 * scale_colours(steps)).astype(np.uint8)[None], (14, 1, 1))


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
        with gui.add_folder("Compare"):
            self.other = gui.add_dropdown("With", (NOTHING, *self.names), hint="another motion at the same time")
            self.how = gui.add_dropdown("Shown as", MODES)
            self.gap = gui.add_markdown("Nothing is compared.")
        self.film = None
        if viewer.episodes:
            with gui.add_folder("True film") as place:
                self.film = FilmPanel(viewer, place)
        self.kept = gui.add_button_group(
            "Keep as", KINDS, hint="a film from where you look, a GLB, a page for any disk"
        )
        self.said = gui.add_markdown("")
        self.other.on_update(lambda event: self._act(event, self._compare))
        self.how.on_update(lambda event: self._act(event, self._compare))
        self.kept.on_click(self._keep)
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

    def _compare(self) -> None:
        self.viewer.compare(self.other.value, self.how.value)

    def _keep(self, event: Any) -> None:
        viewer, player, camera, kind = self.viewer, self.viewer.player, view_of(event.client), self.kept.value
        if player is not None and camera is not None and kind in KINDS:
            viewer.do(lambda: keep_as(viewer, player.rollout, kind, camera))

    def add(self, name: str) -> None:
        """Offer one more recording, and choose it."""
        self.names.append(name)
        self.choice.options = self.names
        self.other.options = (NOTHING, *self.names)
        self.choice.value = name

    def compared(self, name: str) -> None:
        """Show what is compared with now."""
        self.other.value = name or NOTHING

    def refresh(self) -> None:
        """Show where the player is."""
        player, gap = self.viewer.player, self.viewer.gap
        unit = "m" if self.viewer.world.metric else "units"
        apart = "" if gap is None else f"{gap.distance:.3f} {unit} apart at most now ({plain(gap.body)})."
        self.gap.content = apart or "Nothing is compared."
        self.said.content = plain(self.viewer.message)
        if self.film is not None:
            self.film.refresh()
        if player is None:
            self.clock.content = "Nothing is recorded yet. Record a drive, or open a rollout with its world."
            return
        self.play.label = "Pause" if player.playing else "Play"
        last = len(player.rollout) - 1
        if self.frame.max != max(last, 1):
            self.frame.max = max(last, 1)
        self.frame.value = player.frame
        self.clock.content = f"frame {player.frame} of {last}, {player.time:.2f} of {player.seconds:.2f} s"


class PicturePanel:
    """Our own renderer in place of the browser's splats, pictures to keep, and camera paths."""

    def __init__(self, viewer: Viewer) -> None:
        gui, self.viewer = viewer.server.gui, viewer
        self.true = gui.add_checkbox("True pixels", False, hint="draw with gworld's renderer: view-dependent colour")
        self.refined = gui.add_checkbox(
            "Refined", False, hint="once nothing moves, the refiner mends what the world is unsure of"
        )
        self.note = gui.add_markdown("The browser draws the splats.")
        shot = gui.add_button("Save this picture", hint="a PNG of this view by gworld's renderer")
        self.true.on_update(lambda event: viewer.do(lambda: viewer.pixels.switch(bool(self.true.value))))
        self.refined.on_update(lambda event: viewer.do(lambda: self._refine(bool(self.refined.value))))

        @shot.on_click
        def _(event: Any) -> None:
            if event.client is not None:
                event.client.send_file_download("gworld.png", picture_bytes(viewer, event.client))

        with gui.add_folder("Camera path"):
            self._path(viewer)

    def _refine(self, on: bool) -> None:
        self.viewer.pixels.refine(on)
        if on and not self.viewer.pixels.on:  # there is nothing else that could be refined
            self.true.value = True
            self.viewer.pixels.switch(True)

    def _path(self, viewer: Viewer) -> None:
        gui, self.path = viewer.server.gui, CameraPath()
        self.flight = gui.add_markdown("")
        add = gui.add_button("Add this view")
        seconds = gui.add_number("Seconds", self.path.seconds, min=0.5, max=600.0, step=0.5)
        closed = gui.add_checkbox("Back to the first view", False)
        acts = gui.add_button_group("Path", ("fly", "keep", "clear"), hint="kept for `gworld render --path`")
        add.on_click(lambda event: self._add(view_of(event.client)))
        acts.on_click(lambda event: self._act(event.client, acts.value, float(seconds.value), bool(closed.value)))

    def _add(self, view: Cameras | None) -> None:
        if view is not None:
            self.viewer.do(lambda: self.path.add(view))

    def _act(self, client: viser.ClientHandle | None, act: str, seconds: float, closed: bool) -> None:
        viewer, path = self.viewer, self.path
        path.seconds, path.closed = seconds, closed
        if act == "clear":
            viewer.do(path.keys.clear)
        elif act == "keep":
            viewer.do(lambda: self._keep())
        elif client is not None:
            viewer.do(lambda: fly(client, path.cameras(), path.fps, viewer))

    def _keep(self) -> None:
        cameras = self.path.cameras()
        target = free_name(self.viewer.options.keep, "path", ".json")
        write_camera_path(cameras, self.path.fps, target)
        self.viewer.message = f"kept {len(cameras)} frames in {target}"

    def refresh(self) -> None:
        """Say what drawing costs, and what the path has."""
        count = len(self.path.keys)
        views = (
            f"{count} view{'s' * (count != 1)} so far." if count else "No view yet: add some, then fly or keep them."
        )
        self.flight.content = f"{views}  \n{plain(self.viewer.message)}"
        drawn = f"gworld draws: {plain(self.viewer.pixels.note or 'a moment')}"
        self.note.content = drawn if self.viewer.pixels.on else "The browser draws the splats."


def picture_bytes(viewer: Viewer, client: viser.ClientHandle) -> bytes:
    """A PNG of what a visitor looks at."""
    stream = io.BytesIO()
    Image.fromarray(viewer.pixels.picture(client, 1920)).save(stream, "png")
    return stream.getvalue()
