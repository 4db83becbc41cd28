"""gworld turns videos of robots into a Gaussian world you can act in.

The names below load on first use; importing the package loads no torch.

    import gworld as gw
    world = gw.read("runs/kitchen/world")
    picture = gw.render(world.gaussians, world.rest_poses(), world.cameras, outputs=("rgb",)).rgb
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_FACE = {
    "read": "gworld.formats.registry",
    "write": "gworld.formats.registry",
    "World": "gworld.formats.world",
    "WorldState": "gworld.scene.world",
    "Entity": "gworld.scene.world",
    "ActionSpec": "gworld.scene.world",
    "Link": "gworld.scene.links",
    "Gaussians": "gworld.scene.gaussians",
    "Cameras": "gworld.scene.cameras",
    "Views": "gworld.scene.views",
    "Episode": "gworld.scene.episode",
    "Rollout": "gworld.scene.rollout",
    "GWorldError": "gworld.errors",
    "render": "gworld.render.select",
    "RenderOptions": "gworld.render.api",
    "RenderOutput": "gworld.render.api",
    "BackgroundCache": "gworld.render.native_cache",
    "write_video": "gworld.render.video",
    "simulate": "gworld.simulate.run",
    "make_env": "gworld.simulate.run",
}

__all__ = ["__version__", *sorted(_FACE)]

if TYPE_CHECKING:
    from gworld.errors import GWorldError as GWorldError
    from gworld.formats.registry import read as read
    from gworld.formats.registry import write as write
    from gworld.formats.world import World as World
    from gworld.render.api import RenderOptions as RenderOptions
    from gworld.render.api import RenderOutput as RenderOutput
    from gworld.render.native_cache import BackgroundCache as BackgroundCache
    from gworld.render.select import render as render
    from gworld.render.video import write_video as write_video
    from gworld.scene.cameras import Cameras as Cameras
    from gworld.scene.episode import Episode as Episode
    from gworld.scene.gaussians import Gaussians as Gaussians
    from gworld.scene.links import Link as Link
    from gworld.scene.rollout import Rollout as Rollout
    from gworld.scene.views import Views as Views
    from gworld.scene.world import ActionSpec as ActionSpec
    from gworld.scene.world import Entity as Entity
    from gworld.scene.world import WorldState as WorldState
    from gworld.simulate.run import make_env as make_env
    from gworld.simulate.run import simulate as simulate


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module 'gworld' has no attribute {name!r}")
    value = getattr(importlib.import_module(_FACE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
