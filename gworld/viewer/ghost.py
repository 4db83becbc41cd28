"""A second motion of the same world on the stage: a pale ghost over the first, or the world once more beside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import viser
from jaxtyping import Float

from gworld.scene.rollout import Rollout, poses_at
from gworld.scene.world import World
from gworld.viewer.splats import Cloud, colours_of
from gworld.viewer.stage import MOVED, Stage

MODES = ("ghost", "side by side")
ROOT = "/compared"
PALE = np.array([0.75, 0.2, 0.85])
"""The colour that a ghost takes on by half."""
OPACITY = 0.45


class Ghost:
    """`rollout` beside what the stage shows, at the same time from its start; `show` moves it, `close` removes it."""

    def __init__(self, stage: Stage, rollout: Rollout, mode: str = MODES[0]) -> None:
        self.stage, self.rollout, self.mode = stage, rollout, mode
        scene, world = stage.server.scene, stage.world
        aside = stage.width() if mode == MODES[1] else 0.0
        clouds = [cloud for cloud in stage.clouds if cloud.link or mode == MODES[1]]
        colours = colours_of(world, "rgb")
        self.poses = stage.rest()
        self._root = scene.add_frame(ROOT, show_axes=False, position=(aside, 0.0, 0.0))
        self._links = {cloud.link: self._frame(cloud) for cloud in clouds}
        for cloud in clouds:
            self._send(cloud, colours[cloud.rows])
        self.show(0.0)

    def show(self, time: float) -> None:
        """Move it to where it was `time` seconds after its start; past its end it stays."""
        poses = poses_at(self.rollout, float(self.rollout.times[0]) + time).numpy()
        with self.stage.server.atomic():
            for link, node in self._links.items():
                if np.abs(poses[link] - self.poses[link]).max() > MOVED:
                    node.position, node.wxyz = poses[link, :3], poses[link, 3:]
        self.poses = poses

    def close(self) -> None:
        """Take it off the stage."""
        self._root.remove()

    def _frame(self, cloud: Cloud) -> viser.FrameHandle:
        pose = self.poses[cloud.link]
        name = f"{ROOT}/{cloud.link}"
        return self.stage.server.scene.add_frame(name, show_axes=False, position=pose[:3], wxyz=pose[3:])

    def _send(self, cloud: Cloud, colours: Float[np.ndarray, "M 3"]) -> None:
        pale = self.mode == MODES[0]
        self.stage.server.scene.add_gaussian_splats(
            f"{ROOT}/{cloud.link}/splats", cloud.centers, cloud.covariances,
            0.5 * (colours + PALE) if pale else colours, cloud.opacities * (OPACITY if pale else 1.0),
        )  # fmt: skip


@dataclass(frozen=True)
class Gap:
    """How far two motions of a world are apart: the body that is farthest, and by how many metres."""

    body: str
    distance: float


def gap_between(world: World, one: Float[np.ndarray, "L 7"], other: Float[np.ndarray, "L 7"]) -> Gap:
    """The body whose links' origins are farthest from where they are in the other motion."""
    apart = np.linalg.norm(one[:, :3] - other[:, :3], axis=1)
    bodies = {e.name: max(apart[list(e.links)], default=0.0) for e in world.entities if e.kind != "static"}
    name = max(bodies, key=lambda body: bodies[body], default="")
    return Gap(name, float(bodies.get(name, 0.0)))
