"""Whether a rollout could have happened: how deep bodies are in each other, how fast they go, where, and how surely."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gworld.dynamics.contact import field_distance
from gworld.dynamics.shapes import OPAQUE
from gworld.dynamics.tokens import Scene, compile_scene, shape_values
from gworld.scene.world import World
from gworld.simulate.options import Limits

FAR = 1e6
POINTS = 256
"""Points on a body whose distances from others are looked up."""
CHUNK = 1 << 21
"""Points whose distances are looked up at once."""


@dataclass(frozen=True)
class Verdict:
    """What a rollout did at its worst, in the limits' units, and which limits it broke (none: it is plausible)."""

    figures: dict[str, float]
    broken: tuple[str, ...]


class Clearance:
    """How far apart bodies are, from their solids: negative where they overlap, by how much.

    `pairs` [P,2] are links of different entities that have a shape; `names` [P] say which, as `a|b`.
    """

    def __init__(self, world: World, scene: Scene | None = None) -> None:
        self.scene = scene if scene is not None and len(scene) == 1 else compile_scene([world], 1 / 30)
        self.bodies = _bodies(world, self.scene)
        self._local = {link: _surface_points(world, self.scene, link) for link in self.bodies}
        owner = {link: index for index, entity in enumerate(world.entities) for link in entity.links}
        couples = [(a, b) for a in self.bodies for b in self.bodies if a < b and owner[a] != owner[b]]
        self.pairs: Int[Tensor, "P 2"] = torch.tensor(couples, dtype=torch.int64).reshape(-1, 2)
        self.names = tuple(f"{world.links[a].name}|{world.links[b].name}" for a, b in couples)
        self.objects = [link for e in world.entities if e.kind == "object" for link in e.links if link in self.bodies]
        self.box = scene_box(world, self.scene)

    def gaps(self, poses: Float[Tensor, "F L 4 4"], pairs: Int[Tensor, "Q 2"] | None = None) -> Float[Tensor, "F Q"]:
        """Signed distance (m) of each pair of links; `pairs` are some of them, all when None."""
        chosen = self.pairs if pairs is None else pairs
        if not len(chosen) or not len(poses):
            return poses.new_full((len(poses), len(chosen)), FAR)
        frames = max(1, CHUNK // (len(chosen) * POINTS))
        parts = []
        for start in range(0, len(poses), frames):
            some = poses[start : start + frames]
            one = self._reach(some, chosen[:, 0], chosen[:, 1])
            parts.append(torch.minimum(one, self._reach(some, chosen[:, 1], chosen[:, 0])))
        return torch.cat(parts)

    def heights(self, poses: Float[Tensor, "F L 4 4"]) -> Float[Tensor, "F O"]:
        """How far (m) objects are inside the half-spaces that hold them; negative below a table, behind a wall."""
        planes = self.scene.planes[0].to(poses)
        if not self.objects or not len(planes):
            return poses.new_full((len(poses), len(self.objects)), FAR)
        rows = torch.tensor(self.objects)
        points, radius = self._points(poses, rows)
        far = torch.einsum("fomk,qk->fomq", points, planes[:, :3]) - planes[:, 3]
        return far.amin(dim=(2, 3)) - radius

    def _reach(self, poses: Tensor, first: Tensor, second: Tensor) -> Float[Tensor, "F Q"]:
        """The least distance of the points of `first` from the solids of `second`."""
        points, radius = self._points(poses, first)
        solids, row = self.scene.solids, self.scene.solid[0]
        place, turn = self._centers(poses, second)
        arm = points - place[:, :, None]
        gap = arm.norm(dim=-1) - solids.radius[row[second]].to(poses)[None, :, None]
        rough = (solids.row[row[second]] >= 0).nonzero()[:, 0]
        if len(rough):
            local = (arm[:, rough] @ turn[:, rough]).flatten(0, 1)
            numbers = solids.row[row[second[rough]]].repeat(len(poses))
            inner, _ = field_distance(self.scene, numbers, local)
            gap = gap.index_copy(1, rough, inner.view(len(poses), len(rough), -1))
        return gap.amin(dim=-1) - radius

    def _points(self, poses: Tensor, links: Tensor) -> tuple[Float[Tensor, "F Q M 3"], Float[Tensor, " Q"]]:
        """Points on links in the world, and the radius around them: a ball is its middle and a radius."""
        radius = shape_values(self.scene, "radius")[0, links].to(poses)
        local = torch.stack([self._local[link] for link in links.tolist()]).to(poses)
        place, turn = self._centers(poses, links)
        return local @ turn.mT + place[:, :, None], radius

    def _centers(self, poses: Tensor, links: Tensor) -> tuple[Float[Tensor, "F Q 3"], Float[Tensor, "F Q 3 3"]]:
        turn = poses[:, links, :3, :3]
        center = shape_values(self.scene, "center")[0, links].to(poses)
        return (turn @ center[..., None])[..., 0] + poses[:, links, :3, 3], turn


def judge(
    clearance: Clearance,
    poses: Float[Tensor, "T L 4 4"],
    step: float,
    limits: Limits,
    doubt: float = 0.0,
    stuck: int = 0,
    every: int = 2,
) -> Verdict:
    """What a rollout of poses `step` seconds apart did at its worst, and which limits that breaks.

    Overlaps are looked at in every `every`-th instant and the last. `stuck` counts steps that led nowhere finite.
    """
    if stuck or not bool(torch.isfinite(poses).all()):
        return Verdict({"not_finite": float(max(stuck, 1))}, ("not_finite",))
    rows = sorted({*range(0, len(poses), every), len(poses) - 1})
    seen = poses[rows]
    gaps, heights = clearance.gaps(seen), clearance.heights(seen)
    rest = torch.cat([gaps[:1], heights[:1]], dim=1).clamp_max(0.0)
    depth = (rest - torch.cat([gaps, heights], dim=1)).amax() if gaps.numel() + heights.numel() else torch.zeros(())
    bodies = clearance.bodies
    places = poses[:, bodies, :3, 3]
    pace = places.diff(dim=0).norm(dim=-1).amax() / step if len(poses) > 1 else torch.zeros(())
    low, high = clearance.box
    figures = {
        "penetration": max(float(depth), 0.0),
        "speed": float(pace),
        "outside": float(torch.maximum(low - places, places - high).clamp_min(0).amax()),
        "untouched": float(unprompted(clearance, seen, gaps)),
        "doubt": doubt,
    }
    return Verdict(figures, tuple(name for name, value in figures.items() if not value <= getattr(limits, name)))


def unprompted(clearance: Clearance, poses: Float[Tensor, "F L 4 4"], gaps: Float[Tensor, "F P"]) -> float:
    """How far (m) an object that lay at rest moved without anything coming within 2 cm of it; the worst one's way."""
    worst = 0.0
    held = clearance.heights(poses)
    for index, link in enumerate(clearance.objects):
        own = (clearance.pairs == link).any(1)
        if not float(held[0, index]) < 0.02 or bool((gaps[:, own] < 0.02).any()):
            continue
        ways = (poses[:, link, :3, 3] - poses[0, link, :3, 3]).norm(dim=-1)
        worst = max(worst, float(ways.amax()))
    return worst


def scene_box(world: World, scene: Scene) -> tuple[Float[Tensor, " 3"], Float[Tensor, " 3"]]:
    """The box in which bodies may be: that of the whole scene at rest, cut by upright half-spaces along the axes."""
    gaussians, poses = world.gaussians, world.rest_poses()
    owner = poses[gaussians.links.long()]
    points = (owner[:, :3, :3] @ gaussians.means.detach().float()[..., None])[..., 0] + owner[:, :3, 3]
    if not len(points):
        return torch.full((3,), -FAR), torch.full((3,), FAR)
    low, high = points.amin(0), points.amax(0)
    high[2] = high[2] + (high[:2] - low[:2]).max()  # things may fly, or arms reach, above all there is
    for plane in scene.planes[0].float():
        axis = int(plane[:3].abs().argmax())
        if float(plane[axis].abs()) > 0.99 and float(plane[3].abs()) < FAR:
            edge = plane[3] / plane[axis]
            low[axis], high[axis] = (
                (torch.maximum(low[axis], edge), high[axis])
                if float(plane[axis]) > 0
                else (low[axis], torch.minimum(high[axis], edge))
            )
    return low, high


def _surface_points(world: World, scene: Scene, link: int) -> Float[Tensor, "M 3"]:
    """Points all over a link, about its centre of mass; a ball is its middle alone.

    Those that the network touches with are few and sit on edges: of things that lie side by side they tell little.
    """
    if float(shape_values(scene, "radius")[0, link]) > 0:
        return torch.zeros(POINTS, 3)
    gaussians = world.gaussians
    rows = ((gaussians.links == link) & (torch.sigmoid(gaussians.opacity_logits) > OPAQUE)).nonzero()[:, 0]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))  # no stripes
    rows = rows[order[torch.arange(POINTS) % len(rows)]]
    return gaussians.means[rows].detach().float() - shape_values(scene, "center")[0, link].float()


def _bodies(world: World, scene: Scene) -> list[int]:
    """Links of agents and objects that have a shape."""
    present: Bool[Tensor, " L"] = scene.present[0]
    return [link for e in world.entities if e.kind != "static" for link in e.links if bool(present[link])]
