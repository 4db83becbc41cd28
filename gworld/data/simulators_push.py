"""The scene `push`: round pushers on a walled table with discs, boxes and T-blocks that slide and turn freely."""

from __future__ import annotations

from typing import Any

import numpy as np

from gworld.data.simulators_mjcf import (
    AGENT_COLORS,
    AGENT_NAMES,
    OBJECT_COLORS,
    AgentPlan,
    Blueprint,
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
from gworld.scene.world import ActionSpec

HALF, RIM = 0.6, 0.04
PUSHER, REACH, SPEED = 0.032, 0.55, 0.4
"""Radius of a pusher, how far from the middle it gets (m), how fast it may be told to move (m/s)."""
GRIP, FORCE = 60.0, 15.0
"""Newton per m/s of the pushers' drives, and the most they exert."""
OBJECT_HEIGHT, DENSITY, FRICTION = 0.04, 500.0, 0.4


def push_scene(agents: int, objects: int, layout: int, timestep: float) -> Blueprint:
    """`agents` pushers and `objects` objects; sizes and looks are drawn from `layout` (0: the plain one)."""
    rng = np.random.default_rng([layout, 1])
    paints = Paints()
    names = AGENT_NAMES[:agents]
    pushers = [_pusher(f"{name}/", paints, number) for number, name in enumerate(names)]
    things = [_object(number, layout, rng, paints) for number in range(objects)]
    bodies = [*_room(paints, rng), *(body for body, _, _ in pushers), *(body for _, body, _ in things)]
    drives = [drive for _, drives, _ in pushers for drive in drives]
    xml = document("push", timestep, assets=paints.assets(), bodies=bodies, tail=[element("actuator", *drives)])
    plans = []
    for number, name in enumerate(names):
        body, own, material = _pusher("", paints, number)
        tail = [element("actuator", *own)]
        model = document(name, timestep, assets=paints.assets([material]), bodies=[body], tail=tail)
        spec = ActionSpec(("x/velocity", "y/velocity"), ("m/s", "m/s"), (-SPEED,) * 2, (SPEED,) * 2)
        actuators = ((f"{name}/x", 1.0, np.inf), (f"{name}/y", 1.0, np.inf))
        plans.append(AgentPlan(name, "pusher", spec, actuators, f"{name}/base", f"{name}/tip", model))
    sizes = {name: radius for name, _, radius in things}

    def place(draw: np.random.Generator) -> tuple[dict, dict]:
        radii = {**{f"{name}/": PUSHER + 0.005 for name in names}, **sizes}
        spots = scatter(radii, 0.44, draw)
        values: dict = {}
        for name, (x, y) in spots.items():
            if name.endswith("/"):
                values |= {f"{name}x": [x], f"{name}y": [y]}
            else:
                turn = draw.uniform(-np.pi, np.pi)
                values[name] = [x, y, OBJECT_HEIGHT / 2, np.cos(turn / 2), 0, 0, np.sin(turn / 2)]
        return values, _goals(names, list(sizes), spots, draw)

    ring = Ring((0.0, 0.0, 0.0), 1.5, elevations=(0.95, 0.8, 1.1), fov_y=0.8)
    return Blueprint(xml, paints.pictures, tuple(plans), tuple(sizes), ring, (), timestep, place)


def scatter(radii: dict[str, float], half: float, draw: np.random.Generator) -> dict[str, tuple[float, float]]:
    """Places for discs in a square of half width `half` such that none overlap; larger ones are placed first."""
    spots: dict[str, tuple[float, float]] = {}
    for name in sorted(radii, key=lambda n: -radii[n]):
        for attempt in range(1000):
            room = half - 0.5 * radii[name]
            x, y = draw.uniform(-room, room, 2)
            gap = 0.015 if attempt < 500 else 0.0
            if all(np.hypot(x - a, y - b) > radii[name] + radii[o] + gap for o, (a, b) in spots.items()):
                break
        spots[name] = (float(x), float(y))
    return {name: spots[name] for name in radii}


def _goals(
    names: tuple[str, ...], things: list[str], spots: dict[str, tuple[float, float]], draw: np.random.Generator
) -> dict[str, Goal]:
    """A thing of its own for each agent as far as there are any, to be brought 0.15 to 0.5 m away."""
    order = [things[i] for i in draw.permutation(len(things))]
    goals = {}
    for number, name in enumerate(names):
        if not things:
            break
        body = order[number % len(order)]
        for _ in range(100):
            spot = draw.uniform(-0.38, 0.38, 2)
            if 0.15 < np.hypot(*(spot - spots[body])) < 0.5:
                break
        goals[name] = Goal(body, (float(spot[0]), float(spot[1]), OBJECT_HEIGHT / 2), 0.05)
    return goals


def _room(paints: Paints, rng: np.random.Generator) -> list[str]:
    top = speckle((0.74, 0.68, 0.58), 0.16, rng, 512)
    cell = np.arange(512) * 6 // 512
    top = np.where(((cell[:, None] + cell[None, :]) % 2 == 1)[:, :, None], top, (top * 0.82).astype(np.uint8))
    paints.add("tabletop", top)
    paints.add("rim", stripes((0.30, 0.24, 0.20), (0.45, 0.36, 0.28), 12, 128))
    paints.add("floor", planks((0.45, 0.47, 0.50), rng, 512, 24))
    table = geom("box", (2 * HALF, 2 * HALF, 0.05), "tabletop", (0, 0, -0.025), friction=(0.05, 0.001, 0.0001))
    bars = [
        geom("box", (2 * HALF + 0.04, 0.04, RIM + 0.05), "rim", (0, side * (HALF + 0.02), (RIM - 0.05) / 2))
        for side in (-1, 1)
    ] + [
        geom("box", (0.04, 2 * HALF, RIM + 0.05), "rim", (side * (HALF + 0.02), 0, (RIM - 0.05) / 2))
        for side in (-1, 1)
    ]
    floor = geom("box", (6.0, 6.0, 1.0), "floor", (0, 0, -1.2))
    return [table, *bars, floor]


def _pusher(prefix: str, paints: Paints, number: int) -> tuple[str, list[str], str]:
    color = AGENT_COLORS[number]
    material = paints.add(f"pusher{number}", stripes(color, (0.15, 0.15, 0.17), 3))
    slides = [
        element(
            "joint", name=f"{prefix}{axis}", type="slide", axis=direction, range=(-REACH, REACH), damping=2.0,
            armature=0.1,
        )
        for axis, direction in (("x", (1, 0, 0)), ("y", (0, 1, 0)))
    ]  # fmt: skip
    friction: dict[str, Any] = {"friction": (0.15, 0.001, 0.0001), "density": 1500}
    body = element(
        "body",
        *slides,
        geom("cylinder", (PUSHER, 0.08), material, (0, 0, 0.045), **friction),
        geom("sphere", (PUSHER,), material, (0, 0, 0.085), **friction),
        element("site", name=f"{prefix}tip", pos=(0, 0, 0.02), size=(0.004,), group=4),
        name=f"{prefix}pusher",
        gravcomp=1,
    )
    rail = element("body", body, name=f"{prefix}base")  # stands still, so that the joints are the robot's own
    drives = [
        element("velocity", name=f"{prefix}{axis}", joint=f"{prefix}{axis}", kv=GRIP, forcerange=(-FORCE, FORCE),
                ctrlrange=(-SPEED, SPEED))
        for axis in ("x", "y")
    ]  # fmt: skip
    return rail, drives, material


def _object(number: int, layout: int, rng: np.random.Generator, paints: Paints) -> tuple[str, str, float]:
    """A disc, a box or a T-block in turn: its name, its body, and the radius of a circle around it."""
    kind = ("disc", "box", "tee")[number % 3]
    scale = float(rng.uniform(0.8, 1.25)) if layout else 1.0
    color = OBJECT_COLORS[(number + 3 * layout) % len(OBJECT_COLORS)]
    name = f"{kind}{number}"
    material = paints.add(name, pattern(number, color) if kind != "tee" else checks(color, (0.95, 0.93, 0.88), 5))
    more: dict[str, Any] = {"density": DENSITY, "friction": (FRICTION, 0.002, 0.0001)}
    if kind == "disc":
        radius = 0.065 * scale
        geoms = [geom("cylinder", (radius, OBJECT_HEIGHT), material, **more)]
    elif kind == "box":
        x, y = 0.14 * scale, 0.095 * (float(rng.uniform(0.8, 1.3)) if layout else 1.0)
        radius = float(np.hypot(x, y)) / 2
        geoms = [geom("box", (x, y, OBJECT_HEIGHT), material, **more)]
    else:
        bar, stem, thick = 0.20 * scale, 0.13 * scale, 0.05
        middle = thick / 2 * bar / (bar + stem) - stem / 2 * stem / (bar + stem)  # so that the origin is the centre
        geoms = [
            geom("box", (bar, thick, OBJECT_HEIGHT), material, (0, thick / 2 - middle, 0), **more),
            geom("box", (thick, stem, OBJECT_HEIGHT), material, (0, -stem / 2 - middle, 0), **more),
        ]
        radius = float(np.hypot(bar / 2, thick - middle))
        radius = max(radius, stem + middle)
    return name, element("body", element("freejoint", name=name), *geoms, name=name), radius
