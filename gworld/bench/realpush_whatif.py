"""Pushes that were never made: left, right, faster, past the block, two sticks at once; what must hold whatever moves.

They are laid out in the block's own frame: its axis of symmetry is found in the outline, the sticks come straight at
the bar's outer side. What the recording told of the block holds; the error of the tracked pusher does not. Then arms
carry the sticks, the recorded one and a second one, and are filmed in the recorded world.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.bench.realpush_data import CELL, Outline, Pushing, lift, place
from gworld.bench.realpush_network import BLOCK, Stage, open_stage, roll_blocks
from gworld.bench.realpush_robots import nearest, stage_trial
from gworld.bench.rows import Row, at_least, at_most
from gworld.dynamics.network import Dynamics
from gworld.formats.world import load_world
from gworld.geometry import transform_from_pose
from gworld.render.select import render
from gworld.render.video import as_uint8, open_video, side_by_side
from gworld.scene.cameras import Cameras
from gworld.scene.rollout import Rollout
from gworld.scene.world import World
from gworld.simulate.files import write_rollout

SIDE, AHEAD, WAY = 0.06, 0.03, 0.09
"""How far to the side of the axis the sticks come (m), how far from the bar they start, and how far they go."""
PACE, FAST = 0.1, 0.3
"""Speeds (m/s)."""
PAST = 0.18
"""To the side (m) where a stick misses."""
DEEP, STILL, ALIKE = 2.0, 0.1, 10.0
"""Goals: overlap (mm), motion before a touch (mm), difference of mirror images (%)."""
KINDS = ("left", "right", "faster", "miss", "two at once")
TOUCH = 1e-3
"""Gap (m) below which a stick counts as touching: about what a grid of distances tells."""
SKETCH = 260
"""Width of a picture on a contact sheet (pixels)."""
RESTS = 0.01
"""How far (m) the block has moved once it no longer lies where it lay at first."""
LED, FREE = 1.0, 10.0
"""Goals: how far a stick is off its path (mm), and the room between bodies other than stick and block (mm)."""
EYE, AIM, LENS = (1.35, -0.45, 0.95), (0.5, 0.28, 0.28), 1.26
"""A view of the whole scene: from where to where (m), and focal length in heights of the picture."""


@dataclass(frozen=True, eq=False)
class Trial:
    """One push: the sticks' paths {agent: [T,2]} and the block's places [T,3]."""

    paths: dict[str, Float[Tensor, "T 2"]]
    block: Float[Tensor, "T 3"]


def whatif_rows(pushing: Pushing, model: Dynamics, values: Float[Tensor, " P"], out: Path) -> Iterator[Row]:
    """Overlaps, rest before the touch, mirror images; contact sheets are written below `out`."""
    values = values.clone()
    values[:2] = 0.0
    trials = {kind: run_trial(pushing, model, values, kind) for kind in KINDS}
    reach = contact_reach(pushing, model, values)
    for kind, trial in trials.items():
        write_sheet(pushing, trial, reach, out / f"whatif-{kind.replace(' ', '-')}.png")
        deep = 1e3 * float(overlap(pushing.outline, trial, reach).max())
        yield at_most(f"{kind}: overlap at most", max(deep, 0.0), "mm", DEEP)
        early, whole = still(pushing, trial, reach)
        note = f"moves {1e3 * whole:.0f} mm, {np.degrees(float(trial.block[-1, 2] - trial.block[0, 2])):.0f} degrees"
        yield at_most(f"{kind}: block's motion before it is touched", 1e3 * early, "mm", STILL, note=note)
    left, right = trials["left"].block, trials["right"].block
    yield at_most("mirror images: left against right", 100 * unlike(left, right), "%", ALIKE)
    own = values.clone()
    own[6:8] = values[6:8] - across(values[6:8], axis_of(pushing.outline))
    pair = [run_trial(pushing, model, own, kind).block for kind in ("left", "right")]
    note = "pressure on the axis of symmetry; above, as it was found"
    yield at_most("mirror images, even pressure", 100 * unlike(*pair), "%", ALIKE, note=note)
    fast = trials["faster"].block[-1] - left[-1]
    yield Row("faster: end against left's", 1e3 * float(fast[:2].norm()), "mm", note=f"{FAST / PACE:.0f} times as fast")
    turned = abs(np.degrees(float(trials["two at once"].block[-1, 2] - trials["two at once"].block[0, 2])))
    yield Row("two at once, side by side: turn", turned, "degrees", note="none if both push alike")


def acted_rows(
    pushing: Pushing,
    model: Dynamics,
    values: Float[Tensor, " P"],
    folder: Path,
    held: str,
    out: Path,
    kinds: tuple[str, ...] = KINDS,
) -> Iterator[Row]:
    """The same pushes by arms in the recorded worlds of `folder` (`world` with one arm, `pair` with two): how well the
    arms go, how much room is between bodies; motions and films are written below `out`."""
    if not all((folder / name / "world.json").is_file() for name in ("world", "pair")):
        note = f"`{folder}` has no `world` and `pair`: skipped; scripts/examples/05_real_push.py makes them"
        yield Row("pushes by arms", 0.0, "", note=note)
        return
    one, two = (load_world(folder / name) for name in ("world", "pair"))
    values = values.clone()
    values[:2] = 0.0
    row = int((pushing.apart(pushing.block, pushing.block[:1].expand_as(pushing.block)) > RESTS).nonzero()[0, 0]) // 2
    for kind in kinds:
        trial = run_trial(pushing, model, values, kind)
        world = two if len(trial.paths) > 1 else one
        rollout, off = stage_trial(world, pushing, trial.paths, trial.block, pushing.block[row], pushing.dt)
        yield at_most(f"{kind}: sticks carried by arms, off their paths at most", 1e3 * off, "mm", LED)
        names = [agent.name for agent in world.agents]
        pairs = [(name, "tblock") for name in names] + ([tuple(names)] if len(names) > 1 else [])
        room = {pair: 1e3 * nearest(world, rollout, *pair) for pair in pairs}
        told = ", ".join(f"{a} and {b} {value:.0f}" for (a, b), value in room.items())
        yield at_least(
            f"{kind}: room between arms and things, sticks left out", min(room.values()), "mm", FREE, note=told
        )
        stem = f"acted-{kind.replace(' ', '-')}"
        write_rollout(rollout, out / f"{stem}.parquet")
        film_trial(world, rollout, held, out / f"{stem}.mp4")


def film_trial(world: World, rollout: Rollout, held: str, path: Path) -> None:
    """The held-out camera's view beside one of the whole scene, every instant, at a third of the pace."""
    assert world.cameras is not None
    views = (world.cameras[world.cameras.names.index(held)], _overview(world.cameras.height))
    poses = transform_from_pose(rollout.link_poses).float()
    rate = (len(rollout) - 1) / float(rollout.times[-1] - rollout.times[0])
    with open_video(path, rate / 3) as add:
        for pose in poses:
            shown = [render(world.gaussians, pose[None], view, outputs=("rgb",)).rgb for view in views]
            pair = [as_uint8(picture[0, 0].clamp(0, 1)) for picture in shown if picture is not None]
            add(side_by_side(pair, ("the held-out camera", "the whole scene")))


def _overview(height: int) -> Cameras:
    eye, aim = torch.tensor(EYE), torch.tensor(AIM)
    ahead = torch.nn.functional.normalize(aim - eye, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(ahead, torch.tensor([0.0, 0.0, 1.0])), dim=0)
    pose = torch.eye(4)
    pose[:3, :3] = torch.stack([right, torch.linalg.cross(ahead, right), ahead], dim=1)
    pose[:3, 3] = eye
    lens, width = LENS * height, round(4 * height / 3)
    K = torch.tensor([[lens, 0.0, width / 2], [0.0, lens, height / 2], [0.0, 0.0, 1.0]])
    return Cameras(K[None], pose[None], width, height)


def contact_reach(pushing: Pushing, model: Dynamics, values: Float[Tensor, " P"]) -> float:
    """How far (m) from the block's outline a stick's axis touches it: its radius and what the network learned by how
    much Gaussians reach beyond their surface."""
    stage = open_stage(pushing)
    skins = stage.scene.solids.skin[stage.scene.solid[0, [BLOCK, *stage.tips]]]
    return pushing.radius + float(values[3]) + float(model.materials.skin.detach()) * float(skins.sum())


def run_trial(pushing: Pushing, model: Dynamics, values: Float[Tensor, " P"], kind: str) -> Trial:
    """One push of the block, which stands with its axis along x."""
    stage: Stage = open_stage(pushing, 2 if kind == "two at once" else 1)
    angle = axis_of(pushing.outline)
    start = torch.tensor([[0.0, 0.0, -angle]], dtype=torch.float64)
    sides = {"left": (SIDE,), "right": (-SIDE,), "faster": (SIDE,), "miss": (PAST,), "two at once": (SIDE, -SIDE)}[kind]
    pace = FAST if kind == "faster" else PACE
    face = float(place(start, pushing.outline.spots)[0, :, 0].amin()) - contact_reach(pushing, model, values)
    steps = round((AHEAD + WAY) / pace / stage.scene.dt)
    along = face - AHEAD + pace * stage.scene.dt * torch.arange(steps + 1, dtype=torch.float64)
    paths = {
        name: torch.stack([along, torch.full_like(along, side)], dim=-1)
        for name, side in zip(stage.agents, sides, strict=True)
    }
    told = {name: path[None] for name, path in paths.items()}
    block = roll_blocks(model, stage, values[None], start, torch.zeros(1, 3, dtype=torch.float64), told)[0, 0]
    return Trial(paths, block)


def axis_of(outline: Outline) -> float:
    """The angle (rad) in the block's frame of its axis of symmetry, from the bar to the stem's end: the principal axis
    along which the area is askew, so that its long tail is ahead."""
    inside = (outline.sd < 0).nonzero().double() * CELL + outline.low
    inside = inside - inside.mean(0)
    axes = torch.linalg.eigh(inside.T @ inside / len(inside)).eigenvectors.T
    along = inside @ axes.T
    skew = (along**3).mean(0) / (along.square().mean(0) ** 1.5)
    best = int(skew.abs().argmax())
    axis = axes[best] * skew[best].sign()
    return float(torch.atan2(axis[1], axis[0]))


def across(shift: Float[Tensor, " 2"], angle: float) -> Float[Tensor, " 2"]:
    """The part of a shift across the axis of symmetry."""
    side = torch.tensor([-np.sin(angle), np.cos(angle)], dtype=torch.float64)
    return (shift @ side) * side


def overlap(outline: Outline, trial: Trial, reach: float) -> Float[Tensor, " T"]:
    """How deep (m) the deepest stick is in the block at each instant; negative: how far the nearest is off."""
    found = []
    for path in trial.paths.values():
        back = torch.linalg.inv(lift(trial.block))
        local = (back[:, :2, :2] @ path[..., None])[..., 0] + back[:, :2, 3]
        found.append(reach - outline.distance(local)[0])
    return torch.stack(found).amax(0)


def still(pushing: Pushing, trial: Trial, reach: float) -> tuple[float, float]:
    """How far (m) the block has moved while every stick is off it, and at the end."""
    deep = overlap(pushing.outline, trial, reach)
    touched = (deep > -TOUCH).nonzero()[:, 0]
    last = int(touched[0]) - 1 if len(touched) else len(deep) - 1
    moved = pushing.apart(trial.block, trial.block[:1].expand_as(trial.block))
    return float(moved[: max(last, 0) + 1].max()), float(moved[-1])


def unlike(left: Float[Tensor, "T 3"], right: Float[Tensor, "T 3"]) -> float:
    """Part by which a motion differs from the other's mirror image about the x axis, at the end."""
    one, two = (track[-1] - track[0] for track in (left, right))
    mirror = two * two.new_tensor([1.0, -1.0, -1.0])
    lever = one.new_tensor([1.0, 1.0, 0.07])
    return float(((one - mirror) * lever).norm() / (one * lever).norm().clamp_min(1e-9))


def write_sheet(pushing: Pushing, trial: Trial, reach: float, path: Path) -> None:
    """Six instants seen from above: the block's outline, the sticks, and where the block stood first."""
    from PIL import Image

    rows = np.linspace(0, len(trial.block) - 1, 6).round().astype(int)
    sheet = np.concatenate([sketch(pushing.outline, trial, reach, int(row)) for row in rows], axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path)


def sketch(outline: Outline, trial: Trial, reach: float, row: int) -> np.ndarray:
    """One instant from above [S,S,3] uint8, 45 cm wide."""
    ticks = torch.linspace(-0.22, 0.23, SKETCH, dtype=torch.float64)
    x, y = torch.meshgrid(ticks, ticks.flip(0), indexing="xy")
    grid = torch.stack([x, y], dim=-1).view(-1, 2)
    image = torch.full((len(grid), 3), 0.95)
    for step, colour in ((0, (0.80, 0.82, 0.85)), (row, (0.95, 0.45, 0.15))):
        back = torch.linalg.inv(lift(trial.block[step]))
        inside = outline.distance(grid @ back[:2, :2].T + back[:2, 3])[0] < 0
        image[inside] = torch.tensor(colour)
    for path in trial.paths.values():
        image[(grid - path[row]).norm(dim=-1) < reach] = torch.tensor([0.15, 0.25, 0.55])
    return (255 * image).to(torch.uint8).view(SKETCH, SKETCH, 3).numpy()
