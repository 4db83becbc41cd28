"""Simulating a world: any actions in, motion and pictures out, for any number of agents and worlds.

The room is called like the verb, so it can be called: `gw.simulate(world, actions)` is `gworld.simulate.run.simulate`.
"""

from __future__ import annotations

import sys
import types
from typing import Any


class _Verb(types.ModuleType):
    """A module that can be called."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from gworld.simulate.run import simulate

        return simulate(*arguments, **options)


sys.modules[__name__].__class__ = _Verb
simulate = sys.modules[__name__]
