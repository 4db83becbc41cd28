"""Episodes by a Ray cluster: what travels, that nothing leaves its folder, and a run in which a worker is killed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

from gworld.cli.cluster import RayWorkers, pack_recipe, settle_recipe, unpack
from gworld.config import mapping_from
from gworld.data.store import open_episodes
from gworld.errors import InputError, MissingBackendError
from gworld.formats.world import load_world, save_world
from gworld.simulate.generate import Recipe, recipe_digest
from gworld.simulate.produce import PARTS, Plan, produce
from gworld.simulate.variation import Guest, Variation
from tests.test_cli_generate import equal
from tests.test_simulate_plausible import table_world


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("worlds") / "world"
    save_world(table_world(), place)
    return place


def test_a_recipe_travels_with_its_files(folder: Path, tmp_path: Path) -> None:
    recipe = Recipe(folder, variation=Variation(add=(Guest(folder, "ball", "other"),)))
    packed, files = pack_recipe(recipe)
    assert packed.world == Path("input-0") and packed.variation.add[0].world == Path("input-0")
    assert set(files) == {"input-0/world.json", "input-0/gaussians.ply"}
    unpack(files, tmp_path / "there")
    settled = settle_recipe(packed, tmp_path / "there")
    assert len(load_world(settled.world).gaussians) == len(load_world(folder).gaussians)
    assert recipe_digest(settled) == recipe_digest(recipe)
    assert mapping_from(settled.limits) == mapping_from(recipe.limits)
    with pytest.raises(InputError, match="leads outside"):
        unpack({"../evil": b"x"}, tmp_path / "there")


def test_without_ray_one_sentence_says_so(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingBackendError, match=r"gworld\[cluster\]"):
        RayWorkers(Recipe(folder), tmp_path, 2, "local")


@pytest.mark.slow
def test_two_ray_workers_one_of_them_killed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed; pip install 'gworld[cluster]'")
    from gworld.simulate.pool import Here

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(part for part in sys.path if part))
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    recipe = Recipe(folder, seconds=0.4, policy="random")
    plan, out = Plan(8, hard_share=0.2, round=4), tmp_path / "store"
    token = uuid.uuid4().hex
    monkeypatch.setenv("GWORLD_TEST_TOKEN", token)
    killed: list[int] = []
    killer = threading.Thread(target=kill_one, args=(token, killed), daemon=True)
    killer.start()
    backend = RayWorkers(recipe, out / PARTS, 2, "local")
    try:
        found = produce(recipe, plan, out, backend)
    finally:
        backend.close()
    killer.join()
    assert killed and found.added == 8 and not ray.is_initialized()
    whole = tmp_path / "whole"
    produce(recipe, plan, whole, Here(recipe, whole / PARTS))
    equal(open_episodes(out), open_episodes(whole))


def kill_one(token: str, killed: list[int]) -> None:
    """Kill the first worker of our own cluster that is found making an episode."""
    until = time.monotonic() + 120
    while not killed and time.monotonic() < until:
        for place in Path("/proc").iterdir():
            try:
                working = place.name.isdigit() and (place / "cmdline").read_bytes().startswith(b"ray::make_remotely")
                if working and token.encode() in (place / "environ").read_bytes():
                    os.kill(int(place.name), signal.SIGKILL)
                    killed.append(int(place.name))
                    return
            except OSError:
                continue
        time.sleep(0.02)
