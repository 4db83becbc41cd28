"""The scene `arms`: six-joint arms with grippers around a table with cubes, cans and bars."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gworld.data.simulators_mjcf import (
    AGENT_COLORS,
    AGENT_NAMES,
    OBJECT_COLORS,
    AgentPlan,
    Blueprint,
    Eye,
    Goal,
    Paints,
    Ring,
    checks,
    document,
    element,
    geom,
    pattern,
    planks,
    speckle,
    stripes,
)
from gworld.data.simulators_push import scatter
from gworld.scene.world import ActionSpec

JOINTS = ("yaw", "shoulder", "elbow", "roll", "pitch", "turn")
LIMITS = ((-2.8, 2.8), (-1.2, 1.9), (-0.2, 2.6), (-2.8, 2.8), (-1.9, 1.9), (-2.8, 2.8))
HOME = (0.0, 0.10, 1.55, 0.0, 1.49, 0.0)
"""Rest: the hand above the table before the arm, pointing down."""
STIFF = (300.0, 300.0, 250.0, 80.0, 80.0, 50.0)
FORCE = (40.0, 40.0, 30.0, 10.0, 10.0, 6.0)
SPEED = (1.8, 1.8, 1.8, 2.5, 2.5, 2.5)
"""How fast the targets of the joints' servos move, in rad/s."""
OPEN = 0.04
"""How far each finger moves, in metres."""
AWAY = 0.52
"""Distance of the arms' bases from the middle of the table, in metres."""


def arms_scene(agents: int, objects: int, layout: int, timestep: float) -> Blueprint:
    """`agents` arms and `objects` objects; sizes and looks are drawn from `layout` (0: the plain one)."""
    rng = np.random.default_rng([layout, 2])
    paints = Paints()
    names = AGENT_NAMES[:agents]
    turns = [math.pi + 2 * math.pi * number / agents for number in range(agents)]
    bases = {
        name: (AWAY * math.cos(turn), AWAY * math.sin(turn), turn + math.pi)
        for name, turn in zip(names, turns, strict=True)
    }
    arms = [_arm(f"{name}/", paints, number, bases[name]) for number, name in enumerate(names)]
    things = [_object(number, layout, rng, paints) for number in range(objects)]
    bodies = [*_room(paints, rng), *(body for body, _, _ in arms), *(body for _, body, _, _ in things)]
    drives = [drive for _, drives, _ in arms for drive in drives]
    ties = [_tie(f"{name}/") for name in names]
    tail = [element("actuator", *drives), element("equality", *ties)]
    xml = document("arms", timestep, assets=paints.assets(), bodies=bodies, tail=tail)
    plans = tuple(_plan(name, number, paints, timestep) for number, name in enumerate(names))
    sizes = {name: (radius, height) for name, _, radius, height in things}
    eyes = tuple(Eye(f"{name}/hand", (0.07, 0, 0.0), (-0.35, 0, 1), (1, 0, 0), 1.2) for name in names)

    def place(draw: np.random.Generator) -> tuple[dict, dict]:
        values: dict = {}
        for name in names:
            start = np.array(HOME) + draw.normal(0, [0.25, 0.08, 0.08, 0.05, 0.08, 0.2])
            values |= {f"{name}/{joint}": [v] for joint, v in zip(JOINTS, start, strict=True)}
            values |= {f"{name}/finger_{side}": [OPEN * 0.8] for side in ("left", "right")}
        spots = scatter({name: radius for name, (radius, _) in sizes.items()}, 0.24, draw)
        for name, (x, y) in spots.items():
            turn = draw.uniform(-np.pi, np.pi)
            values[name] = [x, y, sizes[name][1] / 2, np.cos(turn / 2), 0, 0, np.sin(turn / 2)]
        return values, _goals(bases, spots, {name: height for name, (_, height) in sizes.items()}, draw)

    ring = Ring((0.0, 0.0, 0.10), 1.4, elevations=(0.6, 0.5, 0.8), fov_y=0.8)
    return Blueprint(xml, paints.pictures, plans, tuple(sizes), ring, eyes, timestep, place)


def _plan(name: str, number: int, paints: Paints, timestep: float) -> AgentPlan:
    body, own, materials = _arm("", paints, number, (0.0, 0.0, 0.0))
    tail = [element("actuator", *own), element("equality", _tie(""))]
    model = document(name, timestep, assets=paints.assets(materials), bodies=[body], tail=tail)
    low, high = zip(*LIMITS, strict=True)
    spec = ActionSpec(
        (*(f"{joint}/position" for joint in JOINTS), "gripper/opening"),
        ("rad",) * 6 + ("1",),
        (*low, 0.0),
        (*high, 1.0),
    )
    actuators = (
        *((f"{name}/{joint}", 1.0, speed) for joint, speed in zip(JOINTS, SPEED, strict=True)),
        (f"{name}/fingers", OPEN, 0.15),
    )
    return AgentPlan(name, "arm", spec, actuators, f"{name}/base", f"{name}/grip", model)


def _goals(
    bases: dict[str, tuple[float, float, float]],
    spots: dict[str, tuple[float, float]],
    heights: dict[str, float],
    draw: np.random.Generator,
) -> dict[str, Goal]:
    """The nearest thing that nobody has for each arm, to be put down elsewhere within its reach."""
    goals: dict[str, Goal] = {}
    free = dict(spots)
    for name, (x, y, _) in bases.items():
        if not free:
            break
        body = min(free, key=lambda thing: math.hypot(free[thing][0] - x, free[thing][1] - y))
        start = free.pop(body)
        for _ in range(100):
            spot = draw.uniform(-0.26, 0.26, 2)
            near = math.hypot(spot[0] - x, spot[1] - y)
            others = all(math.hypot(*(spot - other)) > 0.12 for o, other in spots.items() if o != body)
            if 0.24 < near < 0.56 and math.hypot(*(spot - start)) > 0.12 and others:
                break
        goals[name] = Goal(body, (float(spot[0]), float(spot[1]), heights[body] / 2), 0.04)
    return goals


def _room(paints: Paints, rng: np.random.Generator) -> list[str]:
    top = planks((0.66, 0.52, 0.36), rng, 512, 10)
    paints.add("tabletop", top)
    paints.add("floor", speckle((0.52, 0.53, 0.55), 0.15, rng, 512))
    paints.add("legs", checks((0.25, 0.25, 0.28), (0.40, 0.40, 0.44), 6))
    table = geom("box", (1.5, 1.5, 0.05), "tabletop", (0, 0, -0.025), friction=(0.3, 0.005, 0.0001))
    legs = [
        geom("box", (0.07, 0.07, 0.65), "legs", (0.65 * x, 0.65 * y, -0.375), contype=0, conaffinity=0)
        for x in (-1, 1)
        for y in (-1, 1)
    ]
    rims = [
        geom("box", size, "legs", place, friction=(0.3, 0.005, 0.0001))
        for side in (-1, 1)
        for size, place in (
            ((1.5, 0.02, 0.03), (0, side * 0.74, 0.015)),
            ((0.02, 1.46, 0.03), (side * 0.74, 0, 0.015)),
        )
    ]
    floor = geom("box", (6.0, 6.0, 1.0), "floor", (0, 0, -1.2))
    return [table, *legs, *rims, floor]


def _tie(prefix: str) -> str:
    """The fingers move as one."""
    return element(
        "joint", joint1=f"{prefix}finger_right", joint2=f"{prefix}finger_left", polycoef=(0, 1, 0, 0, 0),
        solref=(0.005, 1),
    )  # fmt: skip


def _link(prefix: str, name: str, pos: tuple[float, float, float], axis: tuple, number: int, *inside: str) -> str:
    joint = element(
        "joint", name=f"{prefix}{JOINTS[number]}", type="hinge", axis=axis, range=LIMITS[number], armature=0.05,
        damping=2.0 if number < 3 else 0.8,
    )  # fmt: skip
    return element("body", joint, *inside, name=f"{prefix}{name}", pos=pos, gravcomp=1)


def _arm(
    prefix: str, paints: Paints, number: int, base: tuple[float, float, float]
) -> tuple[str, list[str], list[str]]:
    """The arm reaches along z when all joints are zero and bends towards x."""
    color = AGENT_COLORS[number]
    shell = paints.add(f"shell{number}", stripes(color, tuple(0.3 + 0.7 * c for c in color), 2))  # type: ignore[arg-type]  # three
    joint = paints.add(f"joint{number}", checks((0.16, 0.16, 0.18), tuple(0.5 * c for c in color), 4))  # type: ignore[arg-type]  # three
    pale = paints.add("pale", checks((0.88, 0.87, 0.84), (0.72, 0.72, 0.70), 3))
    rubber = paints.add("rubber", stripes((0.12, 0.12, 0.13), (0.30, 0.30, 0.32), 4))
    touch: dict[str, Any] = {"friction": (1.5, 0.01, 0.0005), "condim": 4, "density": 800, "solref": (0.01, 1)}
    light: dict[str, Any] = {"density": 900, "friction": (0.4, 0.005, 0.0001)}
    lying: dict[str, Any] = {"quat": (math.sqrt(0.5), math.sqrt(0.5), 0, 0)}
    fingers = [
        element(
            "body",
            element(
                "joint", name=f"{prefix}finger_{side}", type="slide", axis=(0, sign, 0), range=(0, OPEN), armature=0.2,
                damping=20.0,
            ),
            geom("box", (0.022, 0.012, 0.07), rubber, (0, sign * 0.006, 0.035), **touch),
            name=f"{prefix}finger_{side}", pos=(0, 0, 0.05), gravcomp=1,
        )
        for side, sign in (("left", 1), ("right", -1))
    ]  # fmt: skip
    grip = element("site", name=f"{prefix}grip", pos=(0, 0, 0.10), size=(0.004,), group=4)
    palm = geom("box", (0.035, 0.11, 0.03), joint, (0, 0, 0.035), **light)
    stub = geom("cylinder", (0.022, 0.03), pale, (0, 0, 0.01), **light)
    hand = _link(prefix, "hand", (0, 0, 0.06), (0, 0, 1), 5, stub, palm, grip, *fingers)
    knuckle = geom("cylinder", (0.028, 0.05), joint, **lying, **light)
    neck = geom("box", (0.035, 0.03, 0.05), shell, (0, 0, 0.025), **light)
    wrist = _link(prefix, "wrist", (0, 0, 0.10), (0, 1, 0), 4, knuckle, neck, hand)
    roll = geom("cylinder", (0.026, 0.08), pale, (0, 0, 0.04), **light)
    forearm = _link(prefix, "forearm", (0, 0, 0.20), (0, 0, 1), 3, roll, wrist)
    bone = geom("box", (0.05, 0.05, 0.17), shell, (0, 0, 0.105), **light)
    bend = geom("cylinder", (0.038, 0.085), joint, **lying, **light)
    fore = _link(prefix, "fore", (0, 0, 0.28), (0, 1, 0), 2, bend, bone, forearm)
    long = geom("box", (0.06, 0.055, 0.24), shell, (0, 0, 0.14), **light)
    hip = geom("cylinder", (0.048, 0.10), joint, **lying, **light)
    upper = _link(prefix, "upper", (0, 0, 0.08), (0, 1, 0), 1, hip, long, fore)
    turret = geom("cylinder", (0.055, 0.07), shell, (0, 0, 0.04), **light)
    shoulder = _link(prefix, "turret", (0, 0, 0.08), (0, 0, 1), 0, turret, upper)
    foot = geom("cylinder", (0.07, 0.08), pale, (0, 0, 0.04), **light)
    x, y, turn = base
    quat = (math.cos(turn / 2), 0, 0, math.sin(turn / 2))
    arm = element("body", foot, shoulder, name=f"{prefix}base", pos=(x, y, 0), quat=quat)
    drives = [
        element("position", name=f"{prefix}{name}", joint=f"{prefix}{name}", kp=kp, dampratio=1.0,
                forcerange=(-force, force), ctrlrange=limits)
        for name, kp, force, limits in zip(JOINTS, STIFF, FORCE, LIMITS, strict=True)
    ]  # fmt: skip
    drives.append(
        element("position", name=f"{prefix}fingers", joint=f"{prefix}finger_left", kp=800, dampratio=1.0,
                forcerange=(-25, 25), ctrlrange=(0, OPEN))
    )  # fmt: skip
    return arm, drives, [shell, joint, pale, rubber]


def _object(number: int, layout: int, rng: np.random.Generator, paints: Paints) -> tuple[str, str, float, float]:
    """A cube, a can or a bar in turn: its name, its body, the radius of a circle around it, its height."""
    kind = ("cube", "can", "bar")[number % 3]
    scale = float(rng.uniform(0.85, 1.2)) if layout else 1.0
    name = f"{kind}{number}"
    material = paints.add(name, pattern(number + 1, OBJECT_COLORS[(number + 3 * layout) % len(OBJECT_COLORS)]))
    more: dict[str, Any] = {"density": 300, "friction": (0.8, 0.01, 0.0005), "condim": 4, "solref": (0.01, 1)}
    if kind == "cube":
        height = 0.045 * scale
        shape, radius = geom("box", (height,) * 3, material, **more), 0.75 * height
    elif kind == "can":
        height = 0.07 * scale
        shape, radius = geom("cylinder", (0.022 * scale, height), material, **more), 0.022 * scale
    else:
        height = 0.035
        shape = geom("box", (0.11 * scale, 0.03, height), material, **more)
        radius = 0.06 * scale
    return name, element("body", element("freejoint", name=name), shape, name=name), radius, height
