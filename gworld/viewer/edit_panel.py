"""The edit panel: a box, points, scale, up, links; edits can be undone, and nothing is written until it is saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from gworld.errors import InputError
from gworld.formats.world import save_world
from gworld.scene.world import World
from gworld.viewer.driver import free_name
from gworld.viewer.edit import (
    assigned,
    in_box,
    keep_rows,
    normal_of,
    pick,
    places_of,
    scaled,
    turned_up,
    without_floaters,
)
from gworld.viewer.panels import plain

if TYPE_CHECKING:
    from gworld.viewer.app import Viewer

MAX_UNDO = 8
NEW = "a new object"
BOX, POINTS = "/edit box", "/edit points"
EDGES = [(a, b) for a in range(8) for b in range(8) if a < b and bin(a ^ b).count("1") == 1]
RED, BLUE = (220, 60, 40), (40, 90, 220)


class EditPanel:
    """Edits of the world on the stage, one after the other, by whoever comes first; the source stays as it is."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer, gui = viewer, viewer.server.gui
        self.points: list[Float[np.ndarray, " 3"]] = []
        self._before: list[World] = []
        self._chosen = 0
        self.said = gui.add_markdown("")
        with gui.add_folder("Box"):
            self._box()
        with gui.add_folder("Points: scale and up", expand_by_default=False):
            self._pointing()
        with gui.add_folder("Give to a link", expand_by_default=False):
            self._links()
        clean = gui.add_button("Delete floaters", hint="Gaussians that nothing else is near, or that cannot be seen")
        self.undo = gui.add_button("Undo", disabled=True)
        self.save = gui.add_button("Save the world", hint="into a new folder, or in place where begun with --overwrite")
        clean.on_click(lambda event: self._edit("deleted floaters", without_floaters))
        self.undo.on_click(lambda event: viewer.do(self.take_back))
        self.save.on_click(lambda event: viewer.do(self.keep))
        self.refresh()

    def _box(self) -> None:
        gui, viewer = self.viewer.server.gui, self.viewer
        low, high = self._bounds()
        self.shown = gui.add_checkbox("Show the box", False)
        step = max(float(np.max(np.subtract(high, low))) / 200, 1e-4)
        self.low = gui.add_vector3("Low corner", low, step=step)
        self.high = gui.add_vector3("High corner", high, step=step)
        inside = gui.add_button("Keep what is inside", hint="and what belongs to moving links")
        outside = gui.add_button("Delete what is inside")
        for control in (self.shown, self.low, self.high):
            control.on_update(lambda event: viewer.do(self.draw_box))
        inside.on_click(lambda event: self._edit("kept the box", lambda w: keep_rows(w, self.rows(w) | ~_static(w))))
        outside.on_click(
            lambda event: self._edit("deleted the box", lambda w: keep_rows(w, ~(self.rows(w) & _static(w))))
        )

    def _pointing(self) -> None:
        gui, viewer = self.viewer.server.gui, self.viewer
        self.picking = gui.add_checkbox("Click to pick", False, hint="click on surfaces in the picture")
        self.told = gui.add_markdown("No point is picked.")
        forget = gui.add_button("Forget the points")
        self.length = gui.add_number(
            "Length [m]", 1.0, min=1e-6, max=1e6, step=0.001, hint="between the last two points"
        )
        scale = gui.add_button("Set the scale", hint="so that the last two points are that far apart")
        floor = gui.add_button("The floor is through the points", hint="three or more; +Z becomes its normal")
        mine = gui.add_button("Up is up in my view")
        self.picking.on_update(lambda event: viewer.do(self.listen))
        forget.on_click(lambda event: viewer.do(self.forget))
        scale.on_click(lambda event: self._edit("set the scale", self.rescale))
        floor.on_click(lambda event: self._from_eye(event, self.level))
        mine.on_click(lambda event: self._from_eye(event, self.raise_up))

    def _links(self) -> None:
        gui, world = self.viewer.server.gui, self.viewer.world
        self.link = gui.add_dropdown("Link", (NEW, *(link.name for link in world.links)))
        self.name = gui.add_text("Name", "object", hint="of the new object")
        give = gui.add_button(
            "Give what is in the box", hint="it stays where it is, and moves with the link from now on"
        )
        give.on_click(lambda event: self._edit("gave the box to a link", self.give))

    def rows(self, world: World) -> Bool[np.ndarray, " N"]:
        """Which Gaussians are in the box."""
        return in_box(world, tuple(self.low.value), tuple(self.high.value))

    def rescale(self, world: World) -> World:
        """The world in which the last two points are as far apart as was said."""
        if len(self.points) < 2:
            raise InputError("pick two points first, whose distance you know.")
        apart = float(np.linalg.norm(self.points[-1] - self.points[-2]))
        if not apart > 0:
            raise InputError("the two points are one; pick them apart.")
        factor = float(self.length.value) / apart
        made = scaled(world, factor)
        self.points = [point * factor for point in self.points]
        return made

    def level(self, world: World, eye: Float[np.ndarray, " 3"], up: Float[np.ndarray, " 3"]) -> World:
        """The world whose +Z is the normal of the plane through the points, on the visitor's side."""
        if len(self.points) < 3:
            raise InputError("pick three points of the floor first.")
        return turned_up(world, normal_of(np.stack(self.points), eye))

    def raise_up(self, world: World, eye: Float[np.ndarray, " 3"], up: Float[np.ndarray, " 3"]) -> World:
        """The world whose +Z is up in the visitor's picture."""
        return turned_up(world, up)

    def give(self, world: World) -> World:
        """The world in which what is in the box belongs to the chosen link."""
        name = self.name.value.strip() if self.link.value == NEW else self.link.value
        return assigned(world, self.rows(world), str(name)[:100])

    def _edit(self, what: str, change: Any) -> None:
        self.viewer.do(lambda: self.apply(what, change))

    def _from_eye(self, event: Any, change: Any) -> None:
        if event.client is None:
            return
        camera = event.client.camera
        place, turn = np.array(camera.position), _matrix(np.array(camera.wxyz))
        self._edit("set up", lambda world: change(world, place, -turn[:, 1]))

    def apply(self, what: str, change: Any) -> None:
        """Do an edit; one that cannot be done leaves a sentence and the world as it is."""
        before = self.viewer.world
        after = change(before)
        self._before = [*self._before[-MAX_UNDO + 1 :], before]
        lost = len(before.gaussians) - len(after.gaussians)
        self._put(after, what + (f": {lost:,} Gaussians went" if lost else ""))

    def take_back(self) -> None:
        """Undo the last edit."""
        if self._before:
            self._put(self._before.pop(), "took the last edit back")

    def keep(self) -> None:
        """Write the world: in place of its folder where that is allowed, else into a new one."""
        viewer, options = self.viewer, self.viewer.options
        in_place = options.overwrite and viewer.world.folder is not None
        target = viewer.world.folder if in_place else free_name(options.keep, "world", "")
        assert target is not None
        save_world(viewer.world, target, overwrite=in_place)
        viewer.message = f"saved {len(viewer.world.gaussians):,} Gaussians to {Path(target)}"

    def _put(self, world: World, said: str) -> None:
        turned = world.links != self.viewer.world.links or world.cameras is not self.viewer.world.cameras
        self.viewer.replace_world(world)
        self.undo.disabled = not self._before
        self.link.options = (NEW, *(link.name for link in world.links))
        if turned:
            self.low.value, self.high.value = self._bounds()
            if not said.startswith("set the scale"):
                self.points = []
        self._mark()
        self.draw_box()
        self.viewer.message = said

    def listen(self) -> None:
        """Hear clicks into the picture, or no longer."""
        scene = self.viewer.server.scene
        scene.remove_click_callback()
        if self.picking.value:
            scene.on_click()(lambda event: self.viewer.do(lambda: self.picked(event.ray_origin, event.ray_direction)))

    def picked(self, origin: Any, direction: Any) -> None:
        """Take the point of the world that a click met."""
        point = pick(self.viewer.world, np.array(origin, np.float64), np.array(direction, np.float64))
        if point is None:
            self.viewer.message = "the click met nothing solid; try again"
            return
        self.points = [*self.points[-19:], point]
        self._mark()

    def forget(self) -> None:
        """Let go of all points."""
        self.points = []
        self._mark()

    def _mark(self) -> None:
        scene, count = self.viewer.server.scene, len(self.points)
        scene.remove_by_name(POINTS)
        unit = "m" if self.viewer.world.metric else "units"
        self.told.content = f"{count} points are picked." if count else "No point is picked."
        if not count:
            return
        size = 0.006 * self.viewer.stage.width()
        scene.add_frame(POINTS, show_axes=False)
        for index, point in enumerate(self.points):
            scene.add_icosphere(f"{POINTS}/{index}", size, color=RED, subdivisions=2, position=point)
        if count > 1:
            apart = float(np.linalg.norm(self.points[-1] - self.points[-2]))
            self.told.content = f"{count} points; the last two are {apart:.4g} {unit} apart."
            line = np.stack(self.points[-2:])[None]
            scene.add_line_segments(f"{POINTS}/line", line, RED, thickness=2.0, thickness_units="screen")

    def draw_box(self) -> None:
        """Draw the box, and count what is in it."""
        scene = self.viewer.server.scene
        scene.remove_by_name(BOX)
        if not self.shown.value:
            self._chosen = 0
            return
        self._chosen = int(self.rows(self.viewer.world).sum())
        ends = np.array([self.low.value, self.high.value])
        corners = np.array([[ends[(k >> axis) & 1, axis] for axis in range(3)] for k in range(8)])
        edges = np.array([[corners[a], corners[b]] for a, b in EDGES])
        scene.add_line_segments(BOX, edges, BLUE, thickness=2.0, thickness_units="screen")

    def refresh(self) -> None:
        """Say what there is and what was done last."""
        count = f"{len(self.viewer.world.gaussians):,} Gaussians"
        chosen = f", {self._chosen:,} in the box" if self.shown.value else ""
        edits = f", {len(self._before)} edits not saved" if self._before else ""
        self.said.content = f"{count}{chosen}{edits}.  \n{plain(self.viewer.message)}"

    def _bounds(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """The box around all but a hundredth of the Gaussians at each end."""
        places = places_of(self.viewer.world)
        if not len(places):
            return (-1.0, -1.0, -1.0), (1.0, 1.0, 1.0)
        low, high = np.percentile(places, [1, 99], axis=0)
        margin = 0.02 * (high - low) + 1e-3
        return _three(low - margin), _three(high + margin)


def _three(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (round(float(value), 4) for value in values)
    return x, y, z


def _static(world: World) -> Bool[np.ndarray, " N"]:
    return (world.gaussians.links.cpu() == 0).numpy()


def _matrix(wxyz: np.ndarray) -> np.ndarray:
    w, x, y, z = wxyz / np.linalg.norm(wxyz)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
