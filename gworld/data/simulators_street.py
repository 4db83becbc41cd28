"""The scene `street`: cars on crossing roads among crates, drums and blocks that can be run into."""

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
    speckle,
    stripes,
)
from gworld.scene.world import ActionSpec

LONG, WIDE = 30.0, 20.0
"""Half length and half width of the lot in metres."""
ROAD, LANE = 4.0, 2.0
"""Half width of a road, and where its lanes' middles lie."""
WHEELBASE, STEER, ACCELERATE = 2.6, 0.6, 4.0
MASS, INERTIA = 1200.0, 1900.0
GRIP, STIFFNESS, ROLLING, TOP = 0.9, 20.0, 0.08, 10.0
"""Friction of the tyres; slip damping and rolling resistance per second; highest speed under power in m/s."""


def street_scene(agents: int, objects: int, layout: int, timestep: float) -> Blueprint:
    """`agents` cars and `objects` obstacles; sizes and looks are drawn from `layout` (0: the plain one)."""
    rng = np.random.default_rng([layout, 3])
    paints = Paints()
    names = AGENT_NAMES[:agents]
    cars = [_car(f"{name}/", paints, number) for number, name in enumerate(names)]
    things = [_obstacle(number, layout, rng, paints) for number in range(objects)]
    bodies = [*_ground(paints, rng), *(body for body, _, _ in cars), *(body for _, body, _, _ in things)]
    drives = [drive for _, drives, _ in cars for drive in drives]
    tail = [element("actuator", *drives), element("equality", *(_tie(f"{name}/") for name in names))]
    xml = document("street", timestep, assets=paints.assets(), bodies=bodies, tail=tail)
    plans = []
    for number, name in enumerate(names):
        body, own, materials = _car("", paints, number)
        tail = [element("actuator", *own), element("equality", _tie(""))]
        model = document(name, timestep, assets=paints.assets(materials), bodies=[body], tail=tail)
        spec = ActionSpec(
            ("vehicle/steer", "vehicle/accelerate"), ("rad", "m/s^2"), (-STEER, -ACCELERATE), (STEER, ACCELERATE)
        )
        actuators = ((f"{name}/steer", 1.0, 1.0), ("", 1.0, math.inf))
        plans.append(AgentPlan(name, "vehicle", spec, actuators, f"{name}/chassis", f"{name}/bumper", model))
    sizes = {name: (radius, height) for name, _, radius, height in things}
    eyes = tuple(Eye(f"{name}/chassis", (0.3, 0, 1.35), (1, 0, -0.12), (0, 0, 1), 0.9) for name in names)

    def place(draw: np.random.Generator) -> tuple[dict, dict]:
        values, goals = _traffic(names, draw)
        taken = [(values[f"{name}/x"][0], values[f"{name}/y"][0], 3.2) for name in names]
        for name, (radius, height) in sizes.items():
            x, y = _free_spot(taken, radius, draw)
            taken.append((x, y, radius))
            turn = draw.uniform(-np.pi, np.pi)
            values[name] = [x, y, height / 2, np.cos(turn / 2), 0, 0, np.sin(turn / 2)]
        return values, goals

    ring = Ring((0.0, 0.0, 0.0), 36.0, elevations=(0.8, 0.65, 0.95), fov_y=0.85)
    return Blueprint(xml, paints.pictures, tuple(plans), tuple(sizes), ring, eyes, timestep, place)


def lanes() -> list[tuple[float, float, float]]:
    """Where cars may start: x, y and heading of eight places on the lanes, driving on the right."""
    spots = []
    for arm in range(4):
        angle = arm * math.pi / 2
        far = (LONG if arm % 2 == 0 else WIDE) * 0.75
        for distance in (far, far * 0.5):
            x, y = -distance * math.cos(angle), -distance * math.sin(angle)
            spots.append((x + LANE * math.sin(angle), y - LANE * math.cos(angle), angle))
    return spots


def _traffic(names: tuple[str, ...], draw: np.random.Generator) -> tuple[dict, dict[str, Goal]]:
    """Each car on a lane of its own, its goal at the far end of its own road or around the corner."""
    spots = lanes()
    values: dict = {}
    goals = {}
    for name, index in zip(names, draw.permutation(len(spots)), strict=False):
        x, y, heading = spots[index]
        along = draw.uniform(-1.5, 1.5)
        start = heading + draw.uniform(-0.06, 0.06)
        values |= {
            f"{name}/x": [x + along * math.cos(heading)],
            f"{name}/y": [y + along * math.sin(heading)],
            f"{name}/turn": [start],
        }
        way = heading + draw.choice([0.0, 0.0, math.pi / 2, -math.pi / 2])
        far = LONG * 0.7 if abs(math.cos(way)) > 0.5 else WIDE * 0.7
        goal = (
            far * math.cos(way) + LANE * math.sin(way),
            far * math.sin(way) - LANE * math.cos(way),
            0.0,
        )
        goals[name] = Goal(f"{name}/chassis", goal, 3.0)
    return values, goals


def _free_spot(taken: list[tuple[float, float, float]], radius: float, draw: np.random.Generator) -> tuple:
    """A place on or near the roads that is clear of what stands there."""
    for _ in range(500):
        along, across = draw.uniform(-0.8, 0.8), draw.uniform(-ROAD - 2, ROAD + 2)
        x, y = (along * LONG, across) if draw.random() < 0.6 else (across, along * WIDE)
        if all(math.hypot(x - a, y - b) > radius + size + 0.3 for a, b, size in taken):
            break
    return float(x), float(y)


def _ground(paints: Paints, rng: np.random.Generator) -> list[str]:
    paints.add("ground", _street_picture(rng))
    paints.add("kerb", stripes((0.85, 0.82, 0.78), (0.70, 0.20, 0.18), 40, 512))
    floor = geom("box", (2 * LONG, 2 * WIDE, 0.2), "ground", (0, 0, -0.1), friction=(0.1, 0.005, 0.0001))
    bars = [geom("box", (2 * LONG + 1, 0.5, 0.8), "kerb", (0, s * (WIDE + 0.25), 0.3)) for s in (-1, 1)]
    bars += [geom("box", (0.5, 2 * WIDE, 0.8), "kerb", (s * (LONG + 0.25), 0, 0.3)) for s in (-1, 1)]
    return [floor, *bars]


def _street_picture(rng: np.random.Generator, size: int = 1024) -> np.ndarray:
    """Grass, two crossing roads, dashed middles and white edges."""
    grass, asphalt = speckle((0.36, 0.47, 0.26), 0.22, rng, size), speckle((0.33, 0.33, 0.35), 0.14, rng, size)
    x = (np.arange(size) + 0.5) / size * 2 * LONG - LONG
    y = (np.arange(size) + 0.5) / size * 2 * WIDE - WIDE
    x, y = np.meshgrid(x, y)
    picture = grass.copy()
    road = (np.abs(y) < ROAD) | (np.abs(x) < ROAD)
    picture[road] = asphalt[road]
    crossing = (np.abs(y) < ROAD + 1) & (np.abs(x) < ROAD + 1)
    for across, along in ((y, x), (x, y)):
        inside = (np.abs(across) < ROAD) & ~crossing
        picture[inside & (np.abs(across) < 0.12) & (along % 4.0 < 2.2)] = (235, 225, 160)
        picture[inside & (np.abs(np.abs(across) - ROAD + 0.3) < 0.12)] = (232, 232, 228)
        stop = inside & (np.abs(np.abs(along) - ROAD - 1.8) < 0.9) & (across % 1.2 < 0.6)
        picture[stop] = (225, 225, 220)
    return picture


def tyre_forces(
    turn: np.ndarray, velocity: np.ndarray, spin: np.ndarray, steer: np.ndarray, accelerate: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Forces [V,2] N in world axes and torques [V] Nm about the vertical that the tyres of V cars exert.

    Each axle resists sliding sideways as far as its grip goes (two-wheel model, Rajamani, Vehicle Dynamics and Control,
    2012, 2.3, with the slip force linear up to the friction limit); the drive pushes along the car, up to `TOP` m/s.
    """
    ahead = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    aside = np.stack([-ahead[:, 1], ahead[:, 0]], axis=1)
    along, across = (velocity * ahead).sum(axis=1), (velocity * aside).sum(axis=1)
    share = MASS / 2
    front_wheel = np.stack([-np.sin(steer), np.cos(steer)], axis=1)  # across the steered wheel, in the car's axes
    front_slip = along * front_wheel[:, 0] + (across + spin * WHEELBASE / 2) * front_wheel[:, 1]
    rear_slip = across - spin * WHEELBASE / 2
    limit = GRIP * 9.81 * share
    front = np.clip(-STIFFNESS * share * front_slip, -limit, limit)
    rear = np.clip(-STIFFNESS * share * rear_slip, -limit, limit)
    drive = np.where(accelerate * along > 0, np.clip((TOP - np.abs(along)) * 2.0, 0.0, 1.0), 1.0) * accelerate * MASS
    push = drive - ROLLING * MASS * along + front * front_wheel[:, 0]
    side = rear + front * front_wheel[:, 1]
    torque = WHEELBASE / 2 * (front * front_wheel[:, 1] - rear)
    return push[:, None] * ahead + side[:, None] * aside, torque


def _tie(prefix: str) -> str:
    """The front wheels steer as one."""
    return element(
        "joint", joint1=f"{prefix}steer_right", joint2=f"{prefix}steer_left", polycoef=(0, 1, 0, 0, 0), solref=(0.01, 1)
    )


def _car(prefix: str, paints: Paints, number: int) -> tuple[str, list[str], list[str]]:
    color = AGENT_COLORS[number]
    body = paints.add(f"car{number}", stripes(color, tuple(0.75 * c for c in color), 3))  # type: ignore[arg-type]  # three
    cabin = paints.add("cabin", checks((0.14, 0.17, 0.22), (0.30, 0.36, 0.42), 3))
    wheel = paints.add("wheel", checks((0.10, 0.10, 0.11), (0.45, 0.45, 0.47), 2))
    none: dict[str, Any] = {"contype": 0, "conaffinity": 0, "mass": 0.0}
    planar = [
        element("joint", name=f"{prefix}{name}", type=kind, axis=axis, damping=0)
        for name, kind, axis in (("x", "slide", (1, 0, 0)), ("y", "slide", (0, 1, 0)), ("turn", "hinge", (0, 0, 1)))
    ]
    turned: dict[str, Any] = {"quat": (math.sqrt(0.5), math.sqrt(0.5), 0, 0)}
    front = []
    for side, y in (("left", 0.8), ("right", -0.8)):
        inertia = element("inertial", pos=(0, 0, 0), mass=1.0, diaginertia=(0.1, 0.1, 0.1))
        joint = element("joint", name=f"{prefix}steer_{side}", type="hinge", axis=(0, 0, 1), armature=1.0)
        disc = geom("cylinder", (0.33, 0.22), wheel, **turned, **none)
        front.append(element("body", inertia, joint, disc, name=f"{prefix}wheel_{side}", pos=(1.3, y, 0.33)))
    chassis = element(
        "body",
        element("inertial", pos=(0, 0, 0.5), mass=MASS, diaginertia=(500, INERTIA, INERTIA)),
        *planar,
        geom("box", (4.2, 1.8, 0.6), body, (0, 0, 0.6), friction=(0.3, 0.005, 0.0001)),
        geom("box", (2.0, 1.6, 0.5), cabin, (-0.25, 0, 1.15), **none),
        *(geom("cylinder", (0.33, 0.22), wheel, (-1.3, y, 0.33), **turned, **none) for y in (0.8, -0.8)),
        *front,
        element("site", name=f"{prefix}bumper", pos=(2.1, 0, 0.5), size=(0.05,), group=4),
        name=f"{prefix}chassis",
        gravcomp=1,
    )
    drives = [element("position", name=f"{prefix}steer", joint=f"{prefix}steer_left", kp=200, kv=30)]
    return chassis, drives, [body, cabin, wheel]


def _obstacle(number: int, layout: int, rng: np.random.Generator, paints: Paints) -> tuple[str, str, float, float]:
    """A crate, a drum or a block in turn: its name, its body, its radius and its height."""
    kind = ("crate", "drum", "block")[number % 3]
    scale = float(rng.uniform(0.8, 1.3)) if layout else 1.0
    name = f"{kind}{number}"
    material = paints.add(name, pattern(number + 1, OBJECT_COLORS[(number + 3 * layout) % len(OBJECT_COLORS)]))
    friction = (0.6, 0.005, 0.0001)
    if kind == "crate":
        edge = 1.1 * scale
        shape, radius, height = geom("box", (edge,) * 3, material, mass=60 * scale**3, friction=friction), 0.78, edge
    elif kind == "drum":
        shape = geom("cylinder", (0.45 * scale, 1.0), material, mass=40 * scale**2, friction=friction)
        radius, height = 0.45 * scale, 1.0
    else:
        shape = geom("box", (2.0 * scale, 0.6, 0.8), material, mass=150 * scale, friction=friction)
        radius, height = 1.05 * scale, 0.8
    return name, element("body", element("freejoint", name=name), shape, name=name), radius, height
