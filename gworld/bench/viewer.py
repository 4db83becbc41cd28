"""The viewer under load, from outside: `gworld view` as it is started, guests without browsers, rude strangers."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gworld.bench.catalogue import BenchInput
from gworld.bench.rows import Row, at_least, at_most
from gworld.bench.viewer_client import CAMERA, Guest, RefusedError, fetch
from gworld.bench.viewer_fit import fit_rows
from gworld.data.shapes import box, plain
from gworld.errors import MissingBackendError
from gworld.formats.world import save_world
from gworld.scene.gaussians import Gaussians, join_gaussians
from gworld.scene.links import Link
from gworld.scene.world import ActionSpec, Entity, World

BYTES_EACH = 32
"""What one splat takes on the wire."""
SLIDE = ActionSpec(("x/velocity", "y/velocity"), ("m/s", "m/s"), (-0.5, -0.5), (0.5, 0.5))
STRANGE_PATHS = (
    "/../../../../etc/passwd", "/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/..%5c..%5cetc/passwd", "//etc/passwd",
    "/assets/../../../../../../../etc/passwd", "/./../../etc/shadow",
)  # fmt: skip
STRANGE_ORIGINS = ("http://evil.example", "null", "https://localhost.evil.example", "http://127.0.0.1.evil.example")


@dataclass(frozen=True)
class Server:
    """A running `gworld view`."""

    port: int
    process: subprocess.Popen[str]

    @property
    def memory(self) -> float:
        """Resident megabytes now."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def rows(given: BenchInput) -> Iterator[Row]:
    """Rows of serving, memory, malformed messages, strangers, latency, and what watching a fit costs."""
    splats = 20_000 if given.quick else 200_000
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        save_world(big_world(splats, given.seed), place / "world")
        with serve([str(place / "world"), "--clients", "64"]) as server:
            yield from serving_rows(server, splats, 16)
            yield from churn_rows(server, splats, 64, 2 if given.quick else 20)
            yield from malformed_rows(server, 500 if given.quick else 10_000)
            yield from stranger_rows(server)
        with serve([str(place / "world")]) as server:
            yield from latency_rows(server, 10 if given.quick else 100)
        yield from token_rows(place / "world")
        yield from fit_rows(place, given)


def big_world(splats: int, seed: int) -> World:
    """A static cloud of so many splats, with a cart in it that slides."""
    rng = torch.Generator().manual_seed(seed)
    cart = box((0.2, 0.2, 0.1), 0.05, plain(0.2, 0.6, 0.3))
    count = splats - len(cart)
    cloud = Gaussians(
        means=torch.randn(count, 3, generator=rng),
        quats_wxyz=torch.nn.functional.normalize(torch.randn(count, 4, generator=rng), dim=1),
        log_scales=torch.full((count, 3), -4.0),
        opacity_logits=torch.full((count,), 2.0),
        sh=torch.randn(count, 1, 3, generator=rng),
        links=torch.zeros(count, dtype=torch.int32),
    )
    links = (Link("world"), Link("cart", (0.0, 0.0, 0.05, 1.0, 0.0, 0.0, 0.0), 0))
    entities = (Entity("scene", "static", (0,)), Entity("cart", "agent", (1,), SLIDE))
    cart = replace(cart, links=torch.ones_like(cart.links))
    return World(join_gaussians([cloud, cart]), links, entities, metric=True)


@contextlib.contextmanager
def serve(words: list[str]) -> Iterator[Server]:
    """Start `gworld view` in a process of its own; ended with the block."""
    command = [sys.executable, "-m", "gworld", "view", *words, "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        text = ""
        while not text.endswith("}\n"):
            line = process.stdout.readline()
            if not line:
                raise MissingBackendError("`gworld view` did not start. Run it by hand to see why.")
            text += line
        yield Server(int(json.loads(text)["port"]), process)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        process.kill()
        process.wait()
        process.stdout.close()


def serving_rows(server: Server, splats: int, count: int) -> Iterator[Row]:
    """So many guests at once, each until all splats have arrived."""
    yield Row("server before anybody came", server.memory, "MB", note=f"{splats} splats")
    with served(server, splats, 1):
        yield Row("server with 1 guest", server.memory, "MB")
    with served(server, splats, count) as seconds:
        yield at_most(f"{count} guests served, the last one", max(seconds), "s", 3.0)
        yield Row(f"{count} guests served, median", statistics.median(seconds), "s")
        yield at_most(f"server with {count} guests", server.memory, "MB", 500.0)


@contextlib.contextmanager
def served(server: Server, splats: int, count: int) -> Iterator[list[float]]:
    """Guests who have everything, and the seconds that each waited; they leave with the block."""
    guests: list[Guest] = []
    seconds: list[float] = []

    def visit() -> None:
        begin = time.monotonic()
        guest = _seat(server)
        guests.append(guest)
        guest.say(CAMERA)
        while guest.taken < BYTES_EACH * splats:
            guest.hear()
        seconds.append(time.monotonic() - begin)

    threads = [threading.Thread(target=visit) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        yield seconds if len(seconds) == count else [float("inf")]
    finally:
        for guest in guests:
            guest.close()


def _seat(server: Server) -> Guest:
    """A guest who is let in, if need be when others have left; raises `RefusedError` after ten seconds."""
    end = time.monotonic() + 10
    while True:
        try:
            return Guest(server.port, timeout=60.0)
        except RefusedError as error:
            if error.status != 503 or time.monotonic() > end:
                raise
        time.sleep(0.1)


def churn_rows(server: Server, splats: int, count: int, rounds: int) -> Iterator[Row]:
    """Guests who come at once and go: memory at the end beside what it was before them, and half way."""
    found = [server.memory]
    for _ in range(rounds):
        with served(server, splats, count):
            pass
        wait_for(lambda: _free_places(server), 10)
        time.sleep(1.0)
        found.append(server.memory)
    last, middle = found[-1], found[(rounds + 1) // 2]
    yield Row(
        f"server after {count} guests came and went {rounds} times", last, "MB", note=f"before them {found[0]:.0f}"
    )
    yield at_most("the same, over what it was before them", 100 * (last / found[0] - 1), "%", 10.0)
    yield Row("the same, over what it was half way", 100 * (last / middle - 1), "%")


def _free_places(server: Server) -> bool:
    with contextlib.suppress(RefusedError, OSError), Guest(server.port):
        return True
    return False


def malformed_rows(server: Server, count: int) -> Iterator[Row]:
    """Nonsense of several kinds by guests who come again each time they are shown out."""
    kinds = (
        b"",
        b"\x00",
        b"\xc1" * 64,
        os.urandom(200),
        b"\x91" * 5000,
        b"\x81\xa4type\xa3abc",
        b"\xdd\xff\xff\xff\xff",
    )
    sent = 0
    while sent < count:
        with contextlib.suppress(OSError, RefusedError), Guest(server.port) as guest:
            for _ in range(min(100, count - sent)):
                sent += 1
                guest.send(kinds[sent % len(kinds)])
    wait_for(lambda: _free_places(server), 20)
    alive = server.process.poll() is None and fetch(server.port)[0] == 200 and _answers(server)
    yield at_least(f"alive and serving after {count} malformed messages", float(alive), "", 1.0)


def _answers(server: Server) -> bool:
    with contextlib.suppress(OSError, RefusedError, TimeoutError), Guest(server.port) as guest:
        guest.say(CAMERA)
        guest.hear_until(lambda message: message["type"] == "GuiSliderMessage", 20)
        return True
    return False


def stranger_rows(server: Server) -> Iterator[Row]:
    """Pages of other sites, names that merely point here, and paths that lead out."""
    let_in = 0
    for origin in STRANGE_ORIGINS:
        with contextlib.suppress(RefusedError, OSError), Guest(server.port, origin=origin):
            let_in += 1
    yield at_most(f"cross-origin WebSockets let in, of {len(STRANGE_ORIGINS)}", let_in, "", 0)
    served_hosts = sum(fetch(server.port, host=host)[0] == 200 for host in ("evil.example", "localhost.evil.example"))
    yield at_most("foreign Host names answered, of 2", served_hosts, "", 0)
    found = [fetch(server.port, path) for path in STRANGE_PATHS]
    leaked = sum(status == 200 or b"root:" in body for status, body in found)
    yield at_most(f"paths out of the page answered, of {len(STRANGE_PATHS)}", leaked, "", 0)


def token_rows(world: Path) -> Iterator[Row]:
    """A viewer that others can reach: nobody gets in without its token."""
    with serve([str(world), "--host", "0.0.0.0"]) as server:
        page = fetch(server.port)[0]
        let_in = int(page == 200)
        with contextlib.suppress(RefusedError, OSError), Guest(server.port):
            let_in += 1
    yield at_most("let in without a token where others can reach it, page and socket", let_in, "", 0, note=f"{page}")


def latency_rows(server: Server, count: int) -> Iterator[Row]:
    """From a slider's message to the pose that comes back, over loopback, with 30 steps of the engine a second."""
    with Guest(server.port) as guest:
        guest.say(CAMERA)
        label = f"{SLIDE.names[0]} [{SLIDE.units[0]}]"
        told = guest.hear_until(lambda m: m["type"] == "GuiSliderMessage" and m["props"]["label"] == label, 60)
        uuid = told[-1]["uuid"]
        times, value = [], 0.4
        time.sleep(3.0)  # the splats are on their way
        for _ in range(count):
            value = -value
            _drain(guest)
            begin = time.monotonic()
            guest.say({"type": "GuiUpdateMessage", "uuid": uuid, "updates": {"value": value}})
            guest.hear_until(lambda m: m["type"] == "SetPositionMessage" and "cart" in m["name"], 10)
            times.append(1000 * (time.monotonic() - begin))
            guest.say({"type": "GuiUpdateMessage", "uuid": uuid, "updates": {"value": 0.0}})
            time.sleep(0.25)
    yield at_most("slider to pose, median", statistics.median(times), "ms", 60.0)
    yield Row("slider to pose, 95th percentile", statistics.quantiles(times, n=20)[-1], "ms")


def _drain(guest: Guest) -> None:
    """Hear until nothing has come for a moment: the cart stands."""
    end = time.monotonic() + 5
    with contextlib.suppress(TimeoutError):
        while time.monotonic() < end:
            guest.hear_until(lambda m: m["type"] == "SetPositionMessage", 0.15)


def wait_for(fact: Callable[[], bool], seconds: float) -> bool:
    """Wait until something holds, or the time is up."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if fact():
            return True
        time.sleep(0.1)
    return False
