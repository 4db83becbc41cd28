"""What stands in the browser: entities, their links with splats, cameras; moved by link poses alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import viser
from jaxtyping import Float, Int
from torch import Tensor

from gworld.geometry import pose_from_transform, transform_from_pose
from gworld.render.paths import bulk, fit_view
from gworld.scene.cameras import Cameras
from gworld.scene.world import World
from gworld.viewer.splats import Cloud, colours_of, level_of, make_clouds

MOVED = 1e-6
"""A change of a pose (metres, quaternion parts) below which nothing is sent."""
MAX_FRUSTUMS = 200


class Stage:
    """A world in a viser scene: `/ENTITY/LINK` frames that carry one cloud of splats each, frustums for cameras.

    `show` sends what moved: about 60 bytes a link. Splats are sent once, and again only for other colours.
    """

    def __init__(
        self, server: viser.ViserServer, world: World, limit: int = 1_000_000, views: np.ndarray | None = None
    ) -> None:
        self.server, self.world, self.views, self.limit = server, world, views, limit
        self.mode, self.sent, self.drawn = "rgb", 0, True
        self._act: Callable[[viser.ClientHandle, int], None] | None = None
        self._build()
        self._look()

    def _build(self) -> None:
        """Put everything up, where the links rest."""
        world = self.world
        self.clouds = make_clouds(world, self.limit)
        self.poses = self.rest()
        self.visible = dict.fromkeys((entity.name for entity in world.entities), True)
        self.levels: Int[np.ndarray, " L"] | None = None
        self._names = node_names(world)
        self._splats: dict[int, viser.GaussianSplatHandle] = {}
        self._links = self._frames()
        self._frusta = self._cameras(world.cameras) if world.cameras is not None else {}
        self.paint(self.mode)

    @property
    def shown(self) -> int:
        """Splats that were sent."""
        return sum(len(cloud.rows) for cloud in self.clouds)

    def update(self, world: World, views: np.ndarray | None = None) -> None:
        """Show another world in place of this one; where only Gaussians changed, only they travel."""
        before, self.world, self.views = self.world, world, views
        same = (before.links, before.entities) == (world.links, world.entities) and before.cameras is world.cameras
        with self.server.atomic():
            if not same:
                for root in {f"/{path.split('/')[1]}" for path in self._names.values()}:
                    self.server.scene.remove_by_name(root)
                self._build()
                self._listen()
                return
            self.clouds = make_clouds(world, self.limit)
            for link in set(self._splats) - {cloud.link for cloud in self.clouds}:
                self._splats.pop(link).remove()
            self.paint(self.mode)

    def rest(self) -> Float[np.ndarray, "L 7"]:
        """Where every link rests."""
        return pose_from_transform(self.world.rest_poses()).numpy()

    def width(self) -> float:
        """How far aside a second world stands clear of this one, in metres along x."""
        return 2.2 * self._extent()[1]

    def show(self, poses: Float[np.ndarray, "L 7"]) -> None:
        """Move the links that are elsewhere now (world_from_link, metres, wxyz)."""
        moved = np.flatnonzero((np.abs(poses - self.poses) > MOVED).any(axis=1))
        if not len(moved):
            return
        with self.server.atomic():
            for link in moved.tolist():
                node = self._links.get(link)
                if node is not None:
                    node.position, node.wxyz = poses[link, :3], poses[link, 3:]
                    self.sent += 1
        self.poses[moved] = poses[moved]

    def paint(self, mode: str) -> None:
        """Send the splats in other colours: the one time that they travel again."""
        self.mode = mode
        self._paint(self.clouds)

    def _paint(self, clouds: list[Cloud]) -> None:
        colours = colours_of(self.world, self.mode, self.views, self.levels)
        for cloud in clouds:
            self._splats[cloud.link] = self._send(cloud, colours[cloud.rows], self.drawn)

    def doubt(self, std: Float[np.ndarray, " L"] | None, top: float = 1.0) -> None:
        """Say how sure the links' places are, on a scale from 0 to `top` metres; None where nobody knows.

        Where that is shown, the splats of links travel again whose step on the scale changed.
        """
        before, self.levels = self.levels, None if std is None else level_of(std, top)
        if self.mode != "uncertainty" or (before is None and self.levels is None):
            return
        known = before is not None and self.levels is not None
        with self.server.atomic():
            self._paint([c for c in self.clouds if not known or before[c.link] != self.levels[c.link]])  # type: ignore[index]  # both are known

    def draw_splats(self, wanted: bool) -> None:
        """Let the browser draw splats, or not, where true pixels take their place."""
        self.drawn = wanted
        for node in self._splats.values():
            node.visible = wanted

    def draw_cameras(self, wanted: bool) -> None:
        """Show the frustums of the world's cameras, or not."""
        for node in self._frusta.values():
            node.visible = wanted

    def draw_entity(self, name: str, wanted: bool) -> None:
        """Show an entity with all of its links, or not."""
        self.visible[name] = wanted
        self._entities[name].visible = wanted

    def camera_pose(self, index: int) -> Float[np.ndarray, " 7"]:
        """Where one of the world's cameras stands now."""
        cameras = self.world.cameras
        assert cameras is not None
        pose = cameras.world_from_camera[index].float()
        if cameras.links and cameras.links[index]:
            pose = transform_from_pose(torch.from_numpy(self.poses[cameras.links[index]]).float()) @ pose
        return pose_from_transform(pose).numpy()

    def enter(self, client: viser.ClientHandle, index: int) -> None:
        """Put a visitor's eye where one of the world's cameras is."""
        pose = self.camera_pose(index)
        with client.atomic():
            client.camera.wxyz = pose[3:]
            client.camera.position = pose[:3]
            client.camera.fov = field_of_view(self.world.cameras, index)

    def begin_at(self, index: int) -> None:
        """Have visitors start where one of the world's cameras is, about what it looks at."""
        pose, (center, radius) = self.camera_pose(index), self._extent()
        forward = transform_from_pose(torch.from_numpy(pose))[:3, 2].numpy()
        ahead = float(forward @ (center.numpy() - pose[:3]))
        self._begin(pose[:3], pose[:3] + max(ahead, 0.1 * radius) * forward)

    def greet(self, client: viser.ClientHandle) -> None:
        """Put a visitor who came before the stage was there, or before it was turned, where the others start."""
        with client.atomic():
            client.camera.up_direction = (0.0, 0.0, 1.0)
            client.camera.position, client.camera.look_at = self._start

    def on_enter(self, act: Callable[[viser.ClientHandle, int], None]) -> None:
        """Call when a visitor clicks on a frustum."""
        self._act = act
        self._listen()

    def _listen(self) -> None:
        act = self._act
        if act is None:
            return
        for index, node in self._frusta.items():

            @node.on_click
            def _(event: Any, index: int = index) -> None:
                if event.client is not None:
                    act(event.client, index)

    def _frames(self) -> dict[int, viser.FrameHandle]:
        scene = self.server.scene
        self._entities = {
            entity.name: scene.add_frame(self._names[entity.name], show_axes=False) for entity in self.world.entities
        }
        wanted = {cloud.link for cloud in self.clouds} | set(self.world.cameras.links if self.world.cameras else ())
        return {
            link: scene.add_frame(
                self._names[link], show_axes=False, position=self.poses[link, :3], wxyz=self.poses[link, 3:]
            )
            for link in sorted(wanted | {0})
        }

    def _send(self, cloud: Cloud, colours: np.ndarray, visible: bool) -> viser.GaussianSplatHandle:
        return self.server.scene.add_gaussian_splats(
            f"{self._names[cloud.link]}/splats", cloud.centers, cloud.covariances, colours, cloud.opacities,
            visible=visible,
        )  # fmt: skip

    def _cameras(self, cameras: Cameras) -> dict[int, viser.CameraFrustumHandle]:
        every = math.ceil(len(cameras) / MAX_FRUSTUMS)
        places = cameras.world_from_camera[:: max(1, len(cameras) // 400), :3, 3].float()
        apart = torch.cdist(places, places).fill_diagonal_(math.inf).amin(1)
        apart = apart[torch.isfinite(apart) & (apart > 0)]
        near = float(apart.median()) if len(apart) else math.inf
        size = min(0.08 * self._extent()[1], 0.5 * near)  # neighbours are not to hide each other
        nodes = {}
        for index in range(0, len(cameras), every):
            link = cameras.links[index] if cameras.links else 0
            pose = pose_from_transform(cameras.world_from_camera[index].float()).numpy()
            nodes[index] = self.server.scene.add_camera_frustum(
                f"{self._names[link]}/camera {index}", field_of_view(cameras, index),
                cameras.width / cameras.height, scale=size, thickness=1.5, thickness_units="screen",
                color=(90, 90, 100), position=pose[:3], wxyz=pose[3:],
            )  # fmt: skip
        return nodes

    def _extent(self) -> tuple[Tensor, float]:
        """Middle and radius of the bulk of the world at rest."""
        return bulk(_means(self.world))

    def _look(self) -> None:
        """Where visitors start: a view that frames what can move with room around it, else the bulk."""
        means, bodies = _means(self.world), self.world.gaussians.links.cpu() > 0
        points, room = (means[bodies], 2.0) if bool(bodies.any()) else (means, 1.25)
        center, radius = bulk(points)
        view = fit_view(points, 4, 3, fov_y=0.9).world_from_camera[0]
        eye = center + room * (view[:3, 3] - center)
        self.server.scene.set_up_direction("+z")
        self.server.initial_camera.fov = 0.9
        self.server.initial_camera.near = max(1e-3, 0.01 * radius)
        self._begin(eye.numpy(), center.numpy())

    def _begin(self, eye: Float[np.ndarray, " 3"], target: Float[np.ndarray, " 3"]) -> None:
        self._start = eye.astype(float), target.astype(float)
        self.server.initial_camera.position, self.server.initial_camera.look_at = self._start


def node_names(world: World) -> dict[str | int, str]:
    """The scene path of every entity (by name) and link (by index); a slash in a name would make it a branch."""
    names: dict[str | int, str] = {}
    owners = {link: entity.name for entity in world.entities for link in entity.links}
    for index, entity in enumerate(world.entities):
        names[entity.name] = f"/{_plain(entity.name) or f'entity {index}'}"
    for index, link in enumerate(world.links):
        base = names.get(owners.get(index, ""), "")
        short = link.name.removeprefix(f"{owners.get(index, '')}/")
        path = f"{base}/{_plain(short) or 'link'}"
        names[index] = path if path not in names.values() else f"{path} {index}"
    return names


def field_of_view(cameras: Cameras | None, index: int) -> float:
    """The vertical field of view of a camera in radians."""
    assert cameras is not None
    return 2 * math.atan(0.5 * cameras.height / float(cameras.K[index, 1, 1]))


def _plain(name: str) -> str:
    return "".join(letter if letter.isprintable() and letter != "/" else " " for letter in name).strip()


def _means(world: World) -> Tensor:
    poses = world.rest_poses()[world.gaussians.links.long().cpu()]
    means = world.gaussians.means.detach().float().cpu()
    return (poses[:, :3, :3] @ means[:, :, None])[..., 0] + poses[:, :3, 3]
