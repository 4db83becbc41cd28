"""What the network reads of a world: solids, owners, who may touch whom, half-spaces, gravity's direction.

Everything comes from geometry (`shapes.py`); names, colours and textures are not looked at. W worlds of one make-up
form a batch; a world with fewer objects is filled up with absent ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gworld.dynamics.shapes import GRID, POINTS, Solid, planes_from_gaussians, solid_from_gaussians
from gworld.errors import InputError
from gworld.scene.gaussians import select_gaussians
from gworld.scene.world import ActionSpec, Entity, World

FAR = 1e9


@dataclass(frozen=True)
class Solids:
    """S different solids: centre [S,3], ball radius [S] (0: not a ball), bound [S], volume [S], inertia [S,3,3] per
    mass and its inverse `ease`, and `traits` [S,5]: what a solid is like whatever its size, namely principal inertias
    and volume against its bound, and whether it is a ball; `skin` [S] m, the width of its Gaussians.

    `row` [S] says where a solid that is no ball has its points [R,M,3], distance field [R,G,G,G], its grid's corner
    `low` [R,3] and `cell` [R,3].
    """

    center: Float[Tensor, "S 3"]
    radius: Float[Tensor, " S"]
    bound: Float[Tensor, " S"]
    volume: Float[Tensor, " S"]
    inertia: Float[Tensor, "S 3 3"]
    ease: Float[Tensor, "S 3 3"]
    traits: Float[Tensor, "S 5"]
    skin: Float[Tensor, " S"]
    row: Int[Tensor, " S"]
    points: Float[Tensor, "R M 3"]
    fields: Float[Tensor, "R G G G"]
    low: Float[Tensor, "R 3"]
    cell: Float[Tensor, "R 3"]


@dataclass(frozen=True)
class Agent:
    """Who acts: its name, its links and what it can be told."""

    name: str
    links: tuple[int, ...]
    action: ActionSpec


@dataclass(frozen=True)
class Scene:
    """W worlds of L links.

    solid [W,L] index into `solids`, -1 for link 0 and absent links; free [L] links that move by laws (objects);
    pairs [P,2] links that may touch; planes [W,Q,4] half-spaces n . x >= d; down [W,3] gravity's direction or zero;
    scale [W] a typical object's radius (m), the unit of length; dt seconds per step.
    """

    solids: Solids
    solid: Int[Tensor, "W L"]
    free: Bool[Tensor, " L"]
    pairs: Int[Tensor, "P 2"]
    planes: Float[Tensor, "W Q 4"]
    down: Float[Tensor, "W 3"]
    scale: Float[Tensor, " W"]
    agents: tuple[Agent, ...]
    dt: float
    link_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.solid)

    @property
    def present(self) -> Bool[Tensor, "W L"]:
        """Links that have a shape."""
        return self.solid >= 0


def compile_scene(worlds: Sequence[World], dt: float, dtype: torch.dtype = torch.float32) -> Scene:
    """Read worlds of one make-up (same agents; objects may be fewer in some) for steps of `dt` seconds.

    Raises `InputError` when there is no world, or agents differ.
    """
    if not worlds:
        raise InputError("no world was given to dynamics; at least one is needed.")
    model = max(worlds, key=lambda world: len(world.links))
    for world in worlds:
        if world.entities != model.entities[: len(world.entities)]:
            raise InputError("worlds of one batch have different entities; give each make-up its own batch.")
    library: list[Solid] = []
    solid = torch.full((len(worlds), len(model.links)), -1)
    planes = []
    for index, world in enumerate(worlds):
        for link, found in enumerate(_solids_of(world)):
            if found is not None:
                solid[index, link] = len(library)
                library.append(found)
        still = select_gaussians(world.gaussians, world.gaussians.links == 0)
        places = _places(world)
        planes.append(planes_from_gaussians(still, places) if len(still) and len(places) else torch.zeros(0, 4))
    free = torch.zeros(len(model.links), dtype=torch.bool)
    for entity in model.entities:
        free[list(entity.links)] = entity.kind == "object"
    agents = tuple(Agent(e.name, e.links, e.action) for e in model.agents if e.action is not None)
    stacked = stack_solids(library, dtype)
    scene = Scene(
        stacked, solid, free, _pairs(model.entities), _pad_planes(planes, dtype),
        torch.nn.functional.normalize(torch.tensor([world.gravity for world in worlds], dtype=dtype), dim=-1),
        torch.ones(len(worlds), dtype=dtype), agents, dt, tuple(link.name for link in model.links),
    )  # fmt: skip
    return replace(scene, scale=_scales(scene))


def select_worlds(scene: Scene, rows: Int[Tensor, " B"]) -> Scene:
    """The scene of some of the worlds, any number of times each."""
    return replace(
        scene, solid=scene.solid[rows], planes=scene.planes[rows], down=scene.down[rows], scale=scene.scale[rows]
    )


def scene_to(scene: Scene, device: torch.device | str, dtype: torch.dtype | None = None) -> Scene:
    """Move to a device and a floating type."""

    def move(value: Tensor) -> Tensor:
        return value.to(device, dtype if value.is_floating_point() else None)

    solids = Solids(**{f.name: move(getattr(scene.solids, f.name)) for f in fields(Solids)})
    return replace(
        scene,
        solids=solids,
        solid=move(scene.solid),
        free=move(scene.free),
        pairs=move(scene.pairs),
        planes=move(scene.planes),
        down=move(scene.down),
        scale=move(scene.scale),
    )


def stack_solids(library: Sequence[Solid], dtype: torch.dtype) -> Solids:
    """Solids as tensors; those that are no balls have rows of points and fields."""
    rough = [item for item in library if item.field is not None]
    row, count = [], 0
    for item in library:
        row.append(count if item.field is not None else -1)
        count += item.field is not None
    points = [item.points[torch.arange(POINTS) % len(item.points)] for item in rough]
    fields_ = [item.field for item in rough if item.field is not None]
    lows = [item.low for item in rough if item.low is not None]
    cells = [item.cell for item in rough if item.cell is not None]
    return Solids(
        center=torch.stack([item.center for item in library]).to(dtype),
        radius=torch.tensor([item.radius for item in library], dtype=dtype),
        bound=torch.tensor([item.bound for item in library], dtype=dtype),
        volume=torch.tensor([item.volume for item in library], dtype=dtype),
        inertia=torch.stack([item.inertia for item in library]).to(dtype),
        ease=torch.linalg.inv(torch.stack([item.inertia for item in library])).to(dtype),
        skin=torch.tensor([item.skin for item in library], dtype=dtype),
        traits=torch.stack([_traits(item) for item in library]).to(dtype),
        row=torch.tensor(row),
        points=_stack(points, (POINTS, 3), dtype),
        fields=_stack(fields_, (GRID,) * 3, dtype),
        low=_stack(lows, (3,), dtype),
        cell=_stack(cells, (3,), dtype),
    )


def _traits(solid: Solid) -> Float[Tensor, " 5"]:
    inertia = torch.linalg.eigvalsh(solid.inertia) / solid.bound**2
    return torch.cat([inertia, inertia.new_tensor([solid.volume / solid.bound**3, float(solid.radius > 0)])])


def _stack(parts: Sequence[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.stack(list(parts)).to(dtype) if parts else torch.zeros(0, *shape, dtype=dtype)


def shape_values(scene: Scene, name: str) -> Tensor:
    """One property of the solids for each link [W,L,...]; absent links get the first solid's (mask by `present`)."""
    return getattr(scene.solids, name)[scene.solid.clamp_min(0)]


def _solids_of(world: World) -> list[Solid | None]:
    owners = world.gaussians.links
    found: list[Solid | None] = [None]
    for link in range(1, len(world.links)):
        rows = owners == link
        found.append(solid_from_gaussians(select_gaussians(world.gaussians, rows)) if int(rows.sum()) >= 4 else None)
    return found


def _places(world: World) -> Tensor:
    """Where the objects stand (of an agent, the base may stand anywhere)."""
    links = [link for entity in world.entities if entity.kind == "object" for link in entity.links]
    return world.rest_poses()[links, :3, 3]


def _pairs(entities: Sequence[Entity]) -> Int[Tensor, "P 2"]:
    """Links of different entities that may touch: objects', agents' and one of each."""
    owners = [(link, index) for index, e in enumerate(entities) if e.kind != "static" for link in e.links]
    pairs = [sorted((a, b)) for a, owner in owners for b, other in owners if a < b and owner != other]
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


def _pad_planes(planes: Sequence[Tensor], dtype: torch.dtype) -> Float[Tensor, "W Q 4"]:
    most = max(len(rows) for rows in planes)
    padded = torch.tensor([0.0, 0.0, 0.0, -FAR], dtype=dtype).repeat(len(planes), most, 1)
    for index, rows in enumerate(planes):
        padded[index, : len(rows)] = rows.to(dtype)
    return padded


def _scales(scene: Scene) -> Float[Tensor, " W"]:
    counted = scene.present & scene.free
    bound = shape_values(scene, "bound")
    total = torch.where(counted, bound, torch.zeros_like(bound)).sum(dim=1)
    return torch.where(counted.any(dim=1), total / counted.sum(dim=1).clamp_min(1), torch.ones_like(total))
