"""What `gworld bind` does to a world, and what it says of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gworld.agents.actions import Control, gripper_joints
from gworld.agents.binding import bind_object, bind_robot, cut_object, save_bound
from gworld.agents.kinematics import rest_values
from gworld.agents.segment import find_holes, hole_shares, rows_in_box
from gworld.agents.skeleton import read_robot
from gworld.agents.tree import Skeleton, subtree, value_slots
from gworld.cli.bind import Options
from gworld.cli.bind_base import find_base
from gworld.cli.options import print_json, say
from gworld.errors import UsageError
from gworld.files import refuse_existing
from gworld.formats.registry import world_folder
from gworld.formats.world import bind_dynamics, bind_refiner, load_world
from gworld.geometry import pose_from_transform, transform_from_pose
from gworld.scene.gaussians import select_gaussians
from gworld.scene.world import World

if TYPE_CHECKING:
    from gworld.reconstruct.base import BaseFit

TOLD_HOLES = 5


@dataclass(frozen=True, eq=False)
class _Bound:
    """The world with what was bound, new robots by name, which Gaussians of the old world went, and the base found."""

    world: World
    robots: dict[str, Skeleton]
    gone: Tensor | None = None
    base: BaseFit | None = None


def bind_into(options: Options, kind: str) -> None:
    """Bind what the option `kind` names; raises `InputError` for what cannot be read."""
    if kind in ("dynamics", "refiner"):
        _bind_checkpoint(options)
        return
    target = options.out or world_folder(options.world)
    refuse_existing(target, overwrite=options.overwrite)
    before = load_world(world_folder(options.world))
    bound = {"robot": _robot, "object": _object, "cut": _cut, "cut_motion": _cut_motion}[kind](before, options)
    holes = None
    cameras = before.cameras
    if bound.gone is not None and cameras is not None and cameras.model == "pinhole" and not any(cameras.links):
        shares = [round(float(share), 5) for share in hole_shares(before, bound.gone, cameras)]
        holes = {"shares": shares, "patches": find_holes(before, bound.gone, cameras)}
    also = None if options.cut_model == "drop" else _carried_coverage(before, bound.world)
    save_bound(bound.world, bound.robots, target, overwrite=options.overwrite, also=also)
    _report(before, bound, options, target, holes)


def _bind_checkpoint(options: Options) -> None:
    """Check that it is what it is called, then bind it."""
    folder = world_folder(options.world)
    kind = "dynamics" if options.dynamics is not None else "refiner"
    if options.dynamics is not None:
        from gworld.dynamics.saved import load_model

        load_model(options.dynamics)
        world = bind_dynamics(folder, options.dynamics, options.out, overwrite=options.overwrite)
    else:
        assert options.refiner is not None
        world = bind_refiner(folder, options.refiner, options.out, overwrite=options.overwrite)
    facts = {"world": str(world.folder), "bound": kind, "checkpoint": str(world.dynamics or world.refiner)}
    if options.json:
        print_json(facts)
        return
    say(f"{kind} of {options.dynamics or options.refiner} bound to {world.folder}, named there by hash")
    say(f"  next: gworld simulate --world {world.folder} --policy random")


def _robot(world: World, options: Options) -> _Bound:
    assert options.robot is not None
    skeleton = read_robot(options.robot, options.name, options.package)
    if options.root is not None:
        skeleton = subtree(skeleton, options.root, options.name)
    gripper = gripper_joints(skeleton) if options.gripper == "auto" and options.control != "vehicle" else ()
    control = Control(options.control, gripper=gripper, hand=options.hand)
    fit, values = None, _values(skeleton, options.joints)
    if options.base == "auto":
        found = find_base(world, skeleton, options.name, options.find)
        fit, pose = found.fit, found.fit.world_from_base
        if not options.joints and found.joints is not None:
            values = found.joints
    else:
        pose = _pose(options)
    robots = {options.name: skeleton}
    after = bind_robot(world, skeleton, options.name, pose, values, control, options.skin)
    if options.cut_model == "no":
        return _Bound(after, robots, None, fit)
    from gworld.agents.segment_model import links_near_robot, take_links

    owner = links_near_robot(world, skeleton, values[None], pose, options.cut_within)
    if options.cut_model == "take":
        return _Bound(take_links(after, options.name, owner), robots, owner >= 0, fit)
    return _Bound(_without(after, owner >= 0), robots, owner >= 0, fit)


def _object(world: World, options: Options) -> _Bound:
    assert options.object is not None
    if options.base == "auto":
        raise UsageError("`--base auto` finds the base of a robot; say where the object stands.")
    pose = _pose(options)
    after = bind_object(world, options.object, options.name, pose, scale=options.scale, skin=options.skin)
    if options.cut_model == "no":
        return _Bound(after, {})
    from gworld.agents.segment_model import rows_near_mesh, take_links

    rows = rows_near_mesh(world, options.object, pose, scale=options.scale, within=options.cut_within)
    if options.cut_model == "take":
        return _Bound(take_links(after, options.name, rows.long() - 1), {}, rows)
    return _Bound(_without(after, rows), {}, rows)


def _cut(world: World, options: Options) -> _Bound:
    assert options.cut is not None
    rows = rows_in_box(world, options.cut[:3], options.cut[3:])
    return _Bound(cut_object(world, options.name, rows), {}, rows)


def _cut_motion(world: World, options: Options) -> _Bound:
    """An object of every body that moves, called NAME, NAME-2 and so on, largest first."""
    from gworld.agents.segment_motion import cluster_motion, read_tracks, rows_by_motion

    assert options.cut_motion is not None
    tracks = read_tracks(options.cut_motion)
    if not 0 <= options.cut_frame < len(tracks):
        raise UsageError(f"--cut-frame {options.cut_frame} is none of the {len(tracks)} frames of the tracks.")
    found = cluster_motion(tracks, options.motion)
    owner = rows_by_motion(world, tracks[options.cut_frame], found.labels)
    counts = found.labels.bincount() if bool((found.labels >= 0).all()) else (found.labels + 1).bincount()[1:]
    say(
        f"{int((found.labels > 0).sum())} of {tracks.shape[1]} points move, as {max(len(counts) - 1, 0)} bodies; "
        f"{int((found.labels < 0).sum())} fit none; points scatter by {1000 * found.noise:.1f} mm"
    )
    number, after = 0, world
    for body in range(1, len(counts)):
        rows = owner == body
        if not bool(rows.any()):
            say(f"  body {body} ({int(counts[body])} points) has no Gaussian near it and is left out")
            continue
        number += 1
        after = cut_object(after, options.name if number == 1 else f"{options.name}-{number}", rows)
    if number == 0:
        raise UsageError("nothing that moves in the tracks has Gaussians in the world. See `--cut-frame`, `--motion`.")
    return _Bound(after, {}, owner > 0)


def _without(world: World, rows: Tensor) -> World:
    """The world without some of its first Gaussians."""
    keep = torch.ones(len(world.gaussians), dtype=torch.bool)
    keep[: len(rows)] = ~rows
    return replace(world, gaussians=select_gaussians(world.gaussians, keep))


def _carried_coverage(before: World, after: World) -> Any:
    """Writes the old world's coverage, extended to what was added, beside the new one; None without a coverage."""
    from gworld.reconstruct.coverage import extend_coverage, load_coverage, save_coverage

    coverage = None if before.folder is None else load_coverage(before.folder)
    if coverage is None or len(after.gaussians) < len(before.gaussians):
        return None
    extended = extend_coverage(coverage, len(after.gaussians), after.rest_poses())
    return lambda folder: save_coverage(extended, folder)


def _pose(options: Options) -> Tensor:
    base = options.base
    assert base != "auto"
    norm = math.hypot(*base[3:])
    if not (all(map(math.isfinite, base)) and abs(norm - 1) < 1e-2):
        raise UsageError(f"--base {base} is no pose: x y z and a unit quaternion qw qx qy qz are needed.")
    return transform_from_pose(torch.tensor(base, dtype=torch.float64))


def _values(skeleton: Skeleton, words: tuple[str, ...]) -> torch.Tensor:
    values, slots = rest_values(skeleton, torch.float64), value_slots(skeleton)
    for word in words:
        name, _, text = word.rpartition("=")
        slot = slots.get(name)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if slot is None or slot.stop - slot.start != 1 or not math.isfinite(value):
            single = [known for known, place in slots.items() if place.stop - place.start == 1]
            raise UsageError(f"--joints {word} cannot be set; NAME=VALUE with a name out of {', '.join(single)} is.")
        values[slot] = value
    return values


def _report(before: World, bound: _Bound, options: Options, target: Path, holes: dict[str, Any] | None) -> None:
    world = bound.world
    fresh = world.entities[len(before.entities) :]
    entity = fresh[0]
    owned = int(torch.isin(world.gaussians.links.long(), torch.tensor([k for e in fresh for k in e.links])).sum())
    facts: dict[str, Any] = {
        "world": str(target),
        "name": entity.name,
        "kind": entity.kind,
        "entities": [each.name for each in fresh],
        "links": [world.links[index].name for each in fresh for index in each.links],
        "gaussians": owned,
        "added": len(world.gaussians) - len(before.gaussians),
        "taken": 0 if bound.gone is None else int(bound.gone.sum()),
        "action": list(entity.action.names) if entity.action else [],
        "holes": None if holes is None else holes["shares"],
        "patches": None if holes is None else [vars(hole) for hole in holes["patches"]],
        "metric": before.metric,
    }
    if bound.base is not None:
        fit = bound.base
        facts["base"] = [round(float(value), 6) for value in pose_from_transform(fit.world_from_base)]
        facts |= {"found_by": fit.how, "base_sigma_m": fit.position_sigma, "base_sigma_rad": fit.rotation_sigma}
    if options.json:
        print_json(facts)
        return
    if bound.base is not None:
        turn = math.degrees(bound.base.rotation_sigma)
        say(f"base {' '.join(f'{value:.4f}' for value in facts['base'])}")
        say(f"  found by {bound.base.how}; sure to {1000 * bound.base.position_sigma:.1f} mm, {turn:.2f} degrees")
    for each in fresh:
        say(f"{each.kind} `{each.name}` in {target}: {len(each.links)} links")
    cut = f"; {facts['taken']:,} cut out of the scene" if facts["taken"] else ""
    say(f"  {owned:,} Gaussians{cut}")
    if entity.action:
        say(f"  told by {', '.join(entity.action.names)}")
    if holes is not None:
        _tell_holes(world, holes)
    if not before.metric and facts["added"]:
        say(f"  the unit of {options.world} is unknown, models are in metres: `{entity.name}` may be far too large or")
        say("  small. Give the scene its scale (`gworld reconstruct --frame.scale-from`; `gworld convert --scale`)")
    say(f"  next: gworld render {target}")


def _tell_holes(world: World, holes: dict[str, Any]) -> None:
    patches = holes["patches"]
    say(f"  leaves {len(patches)} holes, {max(holes['shares']):.2%} of a picture at most, where nothing lies behind")
    names = world.cameras.names if world.cameras is not None else ()
    for hole in patches[:TOLD_HOLES]:
        camera = names[hole.camera] if names else f"camera {hole.camera}"
        place = " ".join(f"{value:.2f}" for value in hole.place)
        say(f"    {camera}: {hole.pixels} pixels, about {1e4 * hole.area:.0f} cm^2, behind {place}")
