"""Rooms that are called like their verb: `gw.render` is the room and, called, its verb, whatever came first."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any


def make_callable(room: str, home: str) -> None:
    """Let the module `gworld.room` be called as the function `room` of the module `home`, imported on a first call."""

    class Verb(types.ModuleType):
        """A module that can be called."""

        def __call__(self, *arguments: Any, **options: Any) -> Any:
            return getattr(importlib.import_module(home), room)(*arguments, **options)

    sys.modules[f"gworld.{room}"].__class__ = Verb
