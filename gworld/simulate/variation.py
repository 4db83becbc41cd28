"""What may vary from episode to episode: one declarative file of ranges, read strictly."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

from gworld.config import config_from, read_recipe
from gworld.errors import UsageError

Range = tuple[float, float]
Count = tuple[int, int]
ONE: Range = (1.0, 1.0)
NONE: Range = (0.0, 0.0)


@dataclass(frozen=True)
class Guest:
    """An agent or object of another world that is put into this one."""

    world: Path = Path()
    """The other world's folder."""
    entity: str = ""
    """Its name there."""
    name: str = ""
    """Its name here; the same when empty."""
    count: Count = (1, 1)
    """How many of it, at least and at most."""
    spread: float = 0.3
    """How far (m) from where it stood it is put, on the level."""


@dataclass(frozen=True)
class Double:
    """An agent or object of this world that is there several times."""

    entity: str = ""
    """Its name."""
    count: Count = (1, 1)
    """How many more, at least and at most."""
    spread: float = 0.3
    """How far (m) from the first they are put, on the level."""


@dataclass(frozen=True)
class Removal:
    """A body that is sometimes not there."""

    entity: str = ""
    """Its name."""
    chance: float = 1.0
    """How often it is taken out, 0 to 1."""


@dataclass(frozen=True)
class Look:
    """Size and colours of one body, or of all of a kind."""

    entity: str = "objects"
    """Its name; or `objects`, `agents`, `scene`, each body drawing for itself."""
    scale: Range = ONE
    """Size, as a factor (bodies without a robot model)."""
    hue: Range = NONE
    """Degrees by which colours are turned."""
    saturation: Range = ONE
    """How strong colours are, as a factor."""
    brightness: Range = ONE
    """How bright, as a factor."""


@dataclass(frozen=True)
class Light:
    """The light that falls on everything."""

    exposure: Range = NONE
    """More light, in stops."""
    warmth: Range = NONE
    """More red and less blue, as a part."""
    strength: Range = NONE
    """Light from one side, drawn anywhere above, as a part of what is there."""


@dataclass(frozen=True)
class Backdrop:
    """What stands behind."""

    worlds: tuple[Path, ...] = ()
    """Worlds whose static scenes are put behind, one of them drawn."""
    chance: float = 1.0
    """How often it is swapped, 0 to 1."""
    keep: float = 0.25
    """What of the own scene stays: all within so many metres of the box of its bodies."""
    turn: Range = NONE
    """Degrees about the vertical by which the other scene is turned."""
    color: tuple[Range, Range, Range] | None = None
    """Red, green and blue, 0 to 1, where there is nothing at all."""


@dataclass(frozen=True)
class CameraPlay:
    """How far cameras are off from where the world has them; deviations are drawn evenly up to these."""

    shift: float = 0.0
    """Metres along each axis."""
    turn: float = 0.0
    """Degrees about each axis."""
    zoom: float = 0.0
    """Focal length, as a part of it."""


@dataclass(frozen=True)
class Physics:
    """Factors on what the dynamics have learned; needs dynamics."""

    mass: Range = ONE
    """Mass of each object, drawn for each by itself."""
    friction: Range = ONE
    """Friction between bodies and on what they lie on."""
    restitution: Range = ONE
    """How much contacts bounce."""
    drag: Range = ONE
    """Resistance of the air."""
    gravity: Range = ONE
    """Weight, and with it the friction of what lies."""


@dataclass(frozen=True)
class Variation:
    """Everything that may vary; what is left out stays as it is."""

    add: tuple[Guest, ...] = ()
    duplicate: tuple[Double, ...] = ()
    remove: tuple[Removal, ...] = ()
    looks: tuple[Look, ...] = ()
    light: Light = field(default_factory=Light)
    background: Backdrop = field(default_factory=Backdrop)
    cameras: CameraPlay = field(default_factory=CameraPlay)
    physics: Physics = field(default_factory=Physics)

    def __post_init__(self) -> None:
        """Refuse ranges that cannot be drawn from."""
        for guest in self.add:
            _check_count("add", guest.count)
        for double in self.duplicate:
            _check_count("duplicate", double.count)
        for look in self.looks:
            _check_factors(f"looks of {look.entity}", look.scale, look.saturation, look.brightness, least=0.0)
            _check_factors(f"looks of {look.entity}", look.scale, least=1e-3)
            _check_ranges("looks", look.hue)
        chances = [removal.chance for removal in self.remove] + [self.background.chance]
        if not all(0 <= chance <= 1 for chance in chances):
            raise UsageError(f"the variation has the chances {chances}; 0 to 1 are possible.")
        _check_ranges("light", self.light.exposure, self.light.warmth, self.light.strength)
        _check_ranges("background", self.background.turn, *(self.background.color or ()))
        play, physics = self.cameras, self.physics
        _check_ranges("cameras", (0.0, play.shift), (0.0, play.turn), (0.0, play.zoom))
        if play.zoom >= 1:
            raise UsageError(f"cameras.zoom is {play.zoom}; less than 1 is possible.")
        _check_factors("physics", physics.mass, physics.friction, physics.gravity, least=1e-6)
        _check_factors("physics", physics.restitution, physics.drag, least=0.0)


def load_variation(path: str | Path) -> Variation:
    """A variation from its YAML file; worlds named in it are found from the file's own folder.

    Raises `UsageError` for unknown keys, wrong values and ranges that cannot be drawn from.
    """
    found = config_from(Variation, read_recipe(Path(path)), source=f"`{path}`")
    home = Path(path).resolve().parent
    add = tuple(replace(guest, world=home / guest.world) for guest in found.add)
    worlds = tuple(home / world for world in found.background.worlds)
    return replace(found, add=add, background=replace(found.background, worlds=worlds))


def _check_ranges(what: str, *ranges: Range) -> None:
    for low, high in ranges:
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise UsageError(f"the variation has a range {low} to {high} ({what}); finite, the lower one first, fits.")


def _check_factors(what: str, *ranges: Range, least: float) -> None:
    _check_ranges(what, *ranges)
    for low, _ in ranges:
        if low < least:
            raise UsageError(f"the variation has a factor of {low} ({what}); {least:g} or more is possible.")


def _check_count(what: str, count: Count) -> None:
    if not 0 <= count[0] <= count[1] <= 64:
        raise UsageError(f"the variation asks for {count[0]} to {count[1]} bodies ({what}); 0 to 64 are possible.")
