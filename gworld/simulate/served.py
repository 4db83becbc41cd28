"""A policy that runs in a process and environment of its own, asked over a local socket, one line of JSON each way.

We say {"agent": "left", "world": 0, "time": 1.2, "joints": [..], "images": {"front": {"shape": [H, W, 3], "data": ..}}}
(pixels as base64), it says {"action": [..]}, null for what it leaves open. `scripts/examples/03_serve_policy.py` is the
other end. Only this machine is ever connected to.
"""

from __future__ import annotations

import base64
import json
import math
import socket
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gworld.errors import InputError, UsageError
from gworld.files import parse_json
from gworld.render.video import as_uint8
from gworld.scene.cameras import resize_cameras
from gworld.simulate.engine import Engine
from gworld.simulate.observe import Observer

HOST = "127.0.0.1"
PREFIX = "served:"
LONGEST_REPLY = 1 << 20
PATIENCE = 60.0
"""Seconds to wait for an answer."""
LARGEST = 320
"""Width in pixels of the pictures that are sent, at most."""


class Served:
    """One agent's actions from behind `served:PORT`; raises `UsageError` where nothing listens there."""

    def __init__(self, word: str, engine: Engine, agent: str) -> None:
        port = word.removeprefix(PREFIX)
        if not port.isdigit() or not 0 < int(port) < 65536:
            raise UsageError(f"`{word}` names no port; `served:5555` is the form.")
        self.engine, self.agent, self.place = engine, agent, f"{HOST}:{port}"
        try:
            self._line = socket.create_connection((HOST, int(port)), PATIENCE)
        except OSError as error:
            raise UsageError(f"nothing answers on {self.place} ({error}); start the policy's server first.") from None
        self._observer, self._rest = _observer(engine), b""

    def __call__(self) -> Tensor:
        """The actions [W,A] of the agent in the engine's state, asked world by world."""
        motion, body = self.engine.motion, self.engine.stepper.bodies.get(self.agent)
        frame = None if self._observer is None else self._observer(motion)
        rows = []
        for world in range(self.engine.options.worlds):
            request: dict[str, Any] = {"agent": self.agent, "world": world, "time": motion.time, "images": {}}
            request["joints"] = [] if body is None else motion.memory[self.agent][world, : body.width].tolist()
            if frame is not None and frame.rgb is not None:
                for index, name in enumerate(frame.cameras.names):
                    picture = as_uint8(frame.rgb[world, index])
                    data = base64.b64encode(picture.tobytes()).decode("ascii")
                    request["images"][name] = {"shape": list(picture.shape), "data": data}
            rows.append(self._ask(request))
        return torch.tensor(rows)

    def _ask(self, request: dict[str, Any]) -> list[float]:
        try:
            self._line.sendall(json.dumps(request, allow_nan=False).encode() + b"\n")
            while b"\n" not in self._rest:
                part = self._line.recv(1 << 16)
                if not part or len(self._rest) > LONGEST_REPLY:
                    raise InputError(f"the policy on {self.place} ended without a whole answer; look at its output.")
                self._rest += part
        except OSError as error:
            raise InputError(f"the policy on {self.place} does not answer ({error}); look at its output.") from None
        answer, _, self._rest = self._rest.partition(b"\n")
        found = parse_json(answer, f"the answer of {self.place}")
        action, wanted = found.get("action") if isinstance(found, dict) else None, len(self.engine.specs[self.agent])
        if not isinstance(action, list) or [x for x in action if x is not None and type(x) not in (int, float)]:
            action = []
        if len(action) != wanted:
            raise InputError(f"the policy on {self.place} gave no action of {wanted} numbers for `{self.agent}`.")
        return [math.nan if value is None else float(value) for value in action]

    def __del__(self) -> None:
        line = getattr(self, "_line", None)
        if line is not None:
            line.close()


def _observer(engine: Engine) -> Observer | None:
    cameras = engine.world.cameras
    if cameras is None:
        return None
    width = min(cameras.width, LARGEST)
    cameras = resize_cameras(cameras, width, max(1, round(cameras.height * width / cameras.width)))
    named = cameras.names or tuple(f"camera{index}" for index in range(len(cameras)))
    return Observer(engine.world, replace(cameras, names=named))
