"""Atomic writes, joins that cannot escape, locks and caps."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gworld import files
from gworld.errors import InputError, ResourceError, UsageError


def test_atomic_write_replaces_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), files.atomic_write(target) as stream:
        stream.write(b"half")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    with files.atomic_write(target) as stream:
        stream.write(b"new")
    assert target.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_what_comes_with_gworld_is_found_and_its_absence_told() -> None:
    assert (files.need_asset("dynamics/push") / "manifest.json").is_file()
    assert files.find_asset("dynamics/none") is None
    with pytest.raises(InputError, match="assets/dynamics/none"):
        files.need_asset("dynamics/none")


def test_atomic_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt), files.atomic_folder(target, own=("x", "y")) as folder:
        (folder / "x").write_text("1")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with files.atomic_folder(target, own=("x", "y")) as folder:
        (folder / "x").write_text("1")
    with pytest.raises(UsageError, match="exists already"), files.atomic_folder(target, own=("x", "y")):
        pass
    with files.atomic_folder(target, own=("x", "y"), overwrite=True) as folder:
        (folder / "y").write_text("2")
    assert [p.name for p in target.iterdir()] == ["y"]
    (target / "photo.jpg").write_text("mine")
    with (
        pytest.raises(UsageError, match=r"holds `photo\.jpg`"),
        files.atomic_folder(target, own=("y",), overwrite=True),
    ):
        pass
    assert (target / "photo.jpg").read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../x", "..", "", "a\\..\\b", "C:/x", "C:x", "a\0b", "link/x"]
)
def test_safe_join_refuses_ways_out(tmp_path: Path, name: str) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    with pytest.raises(InputError):
        files.safe_join(tmp_path / "root", name)


def test_safe_join_refuses_names_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at most 255") as caught:
        files.safe_join(tmp_path, "front.mp4" * 3000)
    assert len(str(caught.value)) < 200
    assert files.safe_join(tmp_path, "/".join(["a" * 200] * 3)).parent.parent.parent == tmp_path


@given(st.text(max_size=40))
def test_safe_join_never_leaves_its_root(name: str) -> None:
    root = Path("/nonexistent/root")
    try:
        joined = files.safe_join(root, name)
    except InputError:
        return
    assert os.path.normpath(joined) == str(root) or os.path.normpath(joined).startswith(f"{root}/")


def test_counts_and_memory_are_refused_before_they_are_taken() -> None:
    with pytest.raises(InputError, match="promises 1000000000 vertices"):
        files.check_count(10**9, 12, 1000, "a.ply", "vertices")
    with pytest.raises(InputError):
        files.check_count(-1, 12, 1000, "a.ply", "vertices")
    with pytest.raises(ResourceError, match="needs"):
        files.check_memory(1 << 60, "a picture")
    files.check_memory(1, "a picture")


def test_json_is_bounded_and_strict(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"a": [1, 2.5]})
    assert files.read_json(path) == {"a": [1, 2.5]}
    for text in ('{"a": NaN}', "{", "[" * 100_000, "\udcff"):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(InputError, match="not valid JSON"):
            files.read_json(path)
    with pytest.raises(InputError, match="at most 2 "):
        files.read_json(path, max_bytes=2)
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, float("nan"))


@pytest.mark.parametrize("name", ["missing", "folder", "pipe"])
def test_existing_file_says_what_is_there(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"does not exist|is a folder|not a regular file"):
        files.existing_file(tmp_path / name)


def test_run_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from gworld.files import folder_lock\n"
        "with folder_lock(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=f"in use by process {holder.pid}"), files.folder_lock(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout:
            holder.stdout.close()
    for _ in range(100):
        try:
            with files.folder_lock(tmp_path):
                return
        except UsageError:
            time.sleep(0.02)
    pytest.fail("the lock outlived its holder")


def test_temporaries_of_killed_writers_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".a.12345678.tmp").write_text("x")
    (tmp_path / ".b.12345678.tmp").mkdir()
    (tmp_path / ".run.12345678.old").mkdir()  # moved aside, its successor never came
    (tmp_path / ".kept.12345678.old").mkdir()
    (tmp_path / "kept").mkdir()
    (tmp_path / "keep.tmp").write_text("x")
    assert files.sweep_temporaries(tmp_path) == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["keep.tmp", "kept", "run"]


def test_long_names_are_written_or_refused_in_a_sentence(tmp_path: Path) -> None:
    with files.atomic_write(tmp_path / ("n" * 252)) as stream:
        stream.write(b"x")
    with pytest.raises(UsageError, match="cannot be written"), files.atomic_write(tmp_path / ("n" * 300)):
        pass


def test_unwritable_place_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot be written"), files.atomic_write(tmp_path / "file" / "x"):
        pass
