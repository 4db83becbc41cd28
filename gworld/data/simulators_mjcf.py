"""Building blocks of our own MuJoCo scenes: elements of MJCF as text, painted cube textures as PNG in memory."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from gworld.scene.world import ActionSpec

AMBIENT, OVERHEAD = 0.55, 0.45
"""Light from everywhere and from straight above: brightness is the same however a body turns about the vertical."""
AGENT_NAMES = ("left", "right", "third", "fourth", "fifth", "sixth")
Color = tuple[float, float, float]
AGENT_COLORS: tuple[Color, ...] = (
    (0.87, 0.42, 0.12), (0.15, 0.45, 0.80), (0.20, 0.62, 0.32), (0.62, 0.25, 0.68), (0.85, 0.72, 0.15),
    (0.80, 0.20, 0.35),
)  # fmt: skip
OBJECT_COLORS: tuple[Color, ...] = (
    (0.83, 0.20, 0.22), (0.95, 0.78, 0.22), (0.20, 0.65, 0.60), (0.55, 0.40, 0.75), (0.92, 0.50, 0.60),
    (0.45, 0.62, 0.20), (0.25, 0.35, 0.65), (0.90, 0.60, 0.30),
)  # fmt: skip


@dataclass(frozen=True)
class Goal:
    """What an agent is to do: bring `body` to `position` [3] metres, to within `radius` metres on the ground."""

    body: str
    position: tuple[float, float, float]
    radius: float


@dataclass(frozen=True)
class AgentPlan:
    """An agent of a scene: what it is, what it can be told, and which actuator each component of an action drives.

    `actuators` holds (actuator's name, factor, most change per second) per component, an empty name where the scene
    itself applies it; `root` is the link that all its links hang from, `hand` the site that touches things; `model` the
    robot alone as MJCF (its links and joints without the agent's name).
    """

    name: str
    kind: str
    spec: ActionSpec
    actuators: tuple[tuple[str, float, float], ...]
    root: str
    hand: str
    model: str


@dataclass(frozen=True)
class Ring:
    """Where cameras stand: around `target`, `distance` away at `elevations` (radians), looking at it with `fov_y`."""

    target: tuple[float, float, float]
    distance: float
    elevations: tuple[float, ...] = (0.75, 0.55, 0.95)
    fov_y: float = 0.75
    start: float = -math.pi / 2


@dataclass(frozen=True)
class Eye:
    """A camera on an agent: the link it is mounted on, its place there, where it looks and what is up (link axes)."""

    link: str
    place: tuple[float, float, float]
    toward: tuple[float, float, float]
    up: tuple[float, float, float]
    fov_y: float


@dataclass(frozen=True)
class Blueprint:
    """A scene: its MJCF with the pictures it names, agents, objects, cameras, and how an episode begins.

    `place` draws joint values by name (a free joint has 7) and the agents' goals.
    """

    xml: str
    pictures: Mapping[str, bytes]
    agents: tuple[AgentPlan, ...]
    objects: tuple[str, ...]
    ring: Ring
    eyes: tuple[Eye, ...]
    timestep: float
    place: Callable[[np.random.Generator], tuple[dict[str, Sequence[float]], dict[str, Goal]]]


@dataclass
class Paints:
    """Collects painted materials while a scene is put together."""

    pictures: dict[str, bytes] = field(default_factory=dict)

    def add(self, name: str, picture: np.ndarray) -> str:
        """Register a uint8 picture [S,S,3], laid on all six sides of whatever wears it; returns the material's name."""
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        self.pictures[f"{name}.png"] = buffer.getvalue()
        return name

    def assets(self, names: Sequence[str] | None = None) -> str:
        """The `<asset>` element of all materials, or of those named."""
        chosen = [file.removesuffix(".png") for file in self.pictures] if names is None else names
        return element(
            "asset",
            *(element("texture", name=n, type="cube", file=f"{n}.png") for n in chosen),
            *(element("material", name=n, texture=n, specular=0, shininess=0, reflectance=0) for n in chosen),
        )


def element(tag: str, *children: str, **attributes: object) -> str:
    """An XML element; sequences become numbers with spaces between them, None is left out, `_` at an end dropped."""
    words = []
    for key, value in attributes.items():
        if value is None:
            continue
        numbers = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)
        text = " ".join(f"{float(v):.9g}" for v in value) if numbers else str(value)  # type: ignore[attr-defined]  # numbers
        words.append(f' {key.rstrip("_")}="{text}"')
    head = f"<{tag}{''.join(words)}"
    return f"{head}>{''.join(children)}</{tag}>" if children else f"{head}/>"


def geom(kind: str, size: Sequence[float], material: str, pos: Sequence[float] = (0, 0, 0), **more: object) -> str:
    """A `<geom>`; a box is given by its edge lengths, a cylinder by radius and height, a sphere by its radius."""
    half = {"box": [v / 2 for v in size], "cylinder": [size[0], size[-1] / 2], "sphere": size[:1]}[kind]
    return element("geom", type=kind, size=half, material=material, pos=pos, **more)


def document(name: str, timestep: float, *, assets: str, bodies: Sequence[str], tail: Sequence[str] = ()) -> str:
    """A whole MJCF with our options: stiff elliptic friction, light from everywhere and from above, no shadows."""
    half = (0.5 * 1.0,) * 3
    light = element(
        "light", type="directional", pos=(0, 0, 10), dir=(0, 0, -1), diffuse=(OVERHEAD,) * 3, ambient=(0, 0, 0),
        specular=(0, 0, 0), castshadow="false",
    )  # fmt: skip
    visual = element(
        "visual",
        element("global", offwidth=4096, offheight=4096),
        element("quality", shadowsize=0, offsamples=0),
        element("headlight", ambient=(AMBIENT,) * 3, diffuse=(0, 0, 0), specular=(0, 0, 0)),
    )
    option = element(
        "option", timestep=timestep, integrator="implicitfast", cone="elliptic", impratio=10, noslip_iterations=4,
        iterations=60,
    )  # fmt: skip
    sky = element("texture", type="skybox", builtin="flat", rgb1=half, rgb2=half, width=8, height=48)
    return element(
        "mujoco",
        element("compiler", angle="radian", autolimits="true"),
        option,
        visual,
        assets.replace("<asset>", f"<asset>{sky}", 1),
        element("worldbody", light, *bodies),
        *tail,
        model=name,
    )


def checks(first: Color, second: Color, cells: int = 4, size: int = 64) -> np.ndarray:
    """A checkerboard."""
    place = np.arange(size) * cells // size
    return _mix((place[:, None] + place[None, :]) % 2 == 1, first, second)


def stripes(first: Color, second: Color, count: int = 4, size: int = 64) -> np.ndarray:
    """Slanted stripes."""
    place = np.arange(size) / size
    return _mix(((place[:, None] + place[None, :]) * count) % 1.0 > 0.5, first, second)


def dots(first: Color, second: Color, count: int = 3, size: int = 64) -> np.ndarray:
    """Round dots of the second colour."""
    place = (np.arange(size) / size * count) % 1.0 - 0.5
    return _mix(place[:, None] ** 2 + place[None, :] ** 2 < 0.09, first, second)


def rings(first: Color, second: Color, count: int = 3, size: int = 64) -> np.ndarray:
    """Rings around the middle with one spoke, so that turning shows."""
    place = (np.arange(size) + 0.5) / size - 0.5
    far = np.hypot(place[:, None], place[None, :])
    spoke = (np.abs(place)[:, None] < 0.06) & (place[None, :] > 0)
    return _mix(((far * 2 * count) % 1.0 > 0.5) | spoke, first, second)


def speckle(color: Color, contrast: float, rng: np.random.Generator, size: int = 256) -> np.ndarray:
    """Noise at several scales around a colour: something to hold on to at any distance."""
    noise = np.zeros((size, size))
    for cells in (4, 8, 16, 32, 64):
        grid = rng.standard_normal((cells, cells)).astype(np.float32)
        layer = Image.fromarray(np.pad(grid, 1, mode="wrap")).resize(
            (size + 2 * size // cells,) * 2, Image.Resampling.BICUBIC
        )
        start = size // cells
        noise += np.asarray(layer)[start : start + size, start : start + size] / np.sqrt(cells / 4)
    shade = 1 + contrast * noise / max(float(noise.std()), 1e-9)
    tint = 1 + 0.3 * contrast * rng.standard_normal((size, size, 3))
    return _bytes(np.asarray(color) * shade[:, :, None] * tint)


def planks(color: Color, rng: np.random.Generator, size: int = 256, count: int = 8) -> np.ndarray:
    """Boards of wood, each of a shade of its own."""
    picture = speckle(color, 0.05, rng, size) / 255.0
    row = np.arange(size) * count // size
    picture *= (1 + 0.12 * rng.standard_normal(count))[row][:, None, None]
    wave = np.sin(
        np.arange(size)[:, None] * 0.9 + 2.0 * np.sin(np.arange(size)[None, :] * 6.0 / size + row[:, None] * 1.7)
    )
    picture *= 1 + 0.05 * wave[:, :, None]
    picture[np.diff(row, prepend=0) > 0] *= 0.55
    return _bytes(picture)


def pattern(number: int, color: Color) -> np.ndarray:
    """One of four patterns in a colour and a lighter or darker mate."""
    mate = tuple(0.35 * c + (0.62 if sum(color) < 1.5 else 0.05) for c in color)
    return (rings, checks, stripes, dots)[number % 4](color, mate)  # type: ignore[arg-type]  # three numbers


def _mix(mask: np.ndarray, first: Color, second: Color) -> np.ndarray:
    return _bytes(np.where(mask[:, :, None], np.asarray(second), np.asarray(first)))


def _bytes(picture: np.ndarray) -> np.ndarray:
    return (np.clip(picture, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)
