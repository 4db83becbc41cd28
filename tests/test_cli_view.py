"""`gworld view` as it is called: what it opens, what it says, what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import gworld as gw
from gworld.cli.main import main
from gworld.cli.view import addresses
from gworld.data.shapes import plain, sphere
from gworld.data.store import EpisodeWriter
from gworld.scene.world import World
from gworld.simulate.files import make_episode, write_rollout
from gworld.viewer.app import Subject, Viewer, ViewOptions
from tests.acting import acting_world

BRIEF = ["--seconds", "0.1", "--port", "0", "--json"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return acting_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def made(world: World) -> Path:
    """The folder around the world, with a rollout, a store and a splat file in it."""
    assert world.folder is not None
    folder = world.folder.parent
    rollout = gw.simulate(world, {"cart": torch.full((5, 3), 0.2)}, step=1 / 30)
    write_rollout(rollout, folder / "r.parquet")
    with EpisodeWriter(folder / "store") as writer:
        writer.add(make_episode(world, rollout, {}, None, {"cart": "replay"}))
    gw.write(sphere(0.2, 0.05, plain(1, 0, 0)), folder / "ball.ply")
    return folder


def view(source: Path, *more: str, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, str], str]:
    assert main(["view", str(source), *BRIEF, *more]) == 0
    said = capsys.readouterr()
    return json.loads(said.out), said.err


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("world", "kinematics only"),
        (".", "kinematics only"),  # a run: its world/
        ("r.parquet", "in the world"),
        ("store", "in the world"),
        ("store/episode-000000", "in the world"),
        ("ball.ply", "open http://localhost:"),
    ],
)
def test_everything_is_opened(made: Path, source: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    facts, said = view(made / source, capsys=capsys)
    assert facts["address"].startswith("http://localhost:") and facts["token"] is None
    assert words in said and "Ctrl+C ends it" in said and "Traceback" not in said


def test_motion_without_a_world_is_shown_as_balls(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deep").mkdir()
    shutil.copy(made / "r.parquet", tmp_path / "deep" / "r.parquet")
    assert "each link is a ball" in view(tmp_path / "deep" / "r.parquet", capsys=capsys)[1]
    _, said = view(tmp_path / "deep" / "r.parquet", "--world", str(made / "world"), capsys=capsys)
    assert "ball" not in said


def test_actions_and_rollouts_come_along(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Subject] = []

    def keep(subject: Subject, options: ViewOptions) -> Viewer:
        shown.append(subject)
        return Viewer(subject, options)

    monkeypatch.setattr("gworld.viewer.app.Viewer", keep)
    rollout = str(made / "r.parquet")
    view(made / "world", "--rollouts", rollout, rollout, "--actions", rollout, capsys=capsys)
    assert len(shown[0].recordings) == 2 and shown[0].driver is not None
    assert shown[0].driver.table is not None, "what to replay"


def test_others_get_in_by_a_token_only(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts, said = view(made / "ball.ply", "--host", "0.0.0.0", capsys=capsys)
    assert facts["token"] and facts["token"] in facts["address"] and facts["address"] in said
    assert "nothing is encrypted" in said


def test_the_way_in_over_ssh_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "ada")
    monkeypatch.setenv("SSH_CONNECTION", "10.1.1.1 5000 10.1.1.2 22")
    assert "from your own machine: ssh -L 8080:localhost:8080 ada@10.1.1.2" in addresses(
        "http://localhost:8080/", 8080, False
    )
    monkeypatch.setenv("SSH_CONNECTION", "10.1.1.1 5000 10.1.1.2 2022")
    assert any("ssh -p 2022 -L 80:localhost:80 " in line for line in addresses("a", 80, False))
    monkeypatch.delenv("SSH_CONNECTION")
    assert not any("ssh" in line for line in addresses("a", 80, False))


def test_a_page_is_exported(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "r.html"
    facts, _ = view(made / "r.parquet", "--export", str(page), capsys=capsys)
    assert facts["frames"] == 6 and page.stat().st_size == facts["bytes"]
    assert main(["view", str(made / "r.parquet"), "--export", str(page)]) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere"], 3, "does not exist"),
        (["store/index.jsonl"], 3, "no known format"),
        (["world", "--rollouts", "ball.ply"], 0, ""),  # read when it is chosen, said in the panel
        (["world", "--host", "203.0.113.7"], 2, "cannot be listened on"),
        (["world", "--clients", "0"], 2, "clients"),
        (["world", "--rate", "0"], 2, "rate 0"),
        (["ball.ply", "--actions", "r.parquet"], 2, "this world has none"),
        (["world", "--actions", "ball.ply"], 3, "none of .parquet"),
    ],
)
def test_what_cannot_be_opened_is_one_sentence(
    made: Path, arguments: list[str], code: int, words: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(made)
    assert main(["view", *arguments, "--seconds", "0.2", "--port", "0"]) == code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in last and (code == 0 or last.startswith("gworld: "))


def test_an_empty_store_has_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with EpisodeWriter(tmp_path / "store"):
        pass
    (tmp_path / "store" / "index.jsonl").touch()
    assert main(["view", str(tmp_path / "store")]) == 3
    assert "holds no episode yet" in capsys.readouterr().err
