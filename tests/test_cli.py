"""The command line as a stranger meets it: help, errors and exit codes are held by snapshots in tests/golden/cli.

Set GWORLD_UPDATE_GOLDEN=1 to write the snapshots anew after a wanted change.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gworld.cli import main as cli
from gworld.errors import ResourceError
from gworld.formats.registry import read_table, write_table
from gworld.render.video import read_video
from tests.tables import random_table

GOLDEN = Path(__file__).parent / "golden" / "cli"


def snapshot(name: str, text: str, tmp_path: Path) -> None:
    """Compare with the golden file, the temporary folder's name replaced."""
    text = text.replace(str(tmp_path), "TMP")
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("GWORLD_UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), f"no snapshot {path}; run with GWORLD_UPDATE_GOLDEN=1 and read what it wrote"
    assert text == path.read_text(encoding="utf-8")


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    try:
        code = cli.main(arguments)
    except SystemExit as stop:  # tyro's --help
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Some good and some bad files."""
    write_table(random_table(degree=1), tmp_path / "a.ply")
    data = (tmp_path / "a.ply").read_bytes()
    (tmp_path / "cut.ply").write_bytes(data[:-100])
    values = bytearray(data)
    values[-8:-4] = np.float32(np.nan).tobytes()
    (tmp_path / "nan.ply").write_bytes(bytes(values))
    (tmp_path / "text.ply").write_text("hello")
    (tmp_path / "huge.ply").write_bytes(data.replace(b"vertex 300", b"vertex 1000000000"))
    (tmp_path / "cut.spz").write_bytes(b"NGSP\x04")
    (tmp_path / "cut.glb").write_bytes(b"glTF\x02\0\0\0")
    (tmp_path / "odd.splat").write_bytes(b"\0" * 33)
    (tmp_path / "a.ckpt").write_bytes(b"PK\x03\x04")
    (tmp_path / "points.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\n"
        "property uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n0 0 0 1 2 3\n"
    )
    (tmp_path / "bad.yaml").write_text("decimat: 5\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "world.json").write_text("{}")
    return tmp_path


ERRORS = {
    "no-command": ([], 2),
    "unknown-command": (["inof"], 2),
    "missing-argument": (["info"], 2),
    "unknown-option": (["info", "a.ply", "--thumb", "x.png"], 2),
    "bad-choice": (["convert", "a", "b", "--axes", "up"], 2),
    "bad-number": (["convert", "a", "b", "--decimate", "many"], 2),
    "missing-file": (["info", "TMP/none.ply"], 3),
    "folder-of-nothing": (["info", "TMP/empty"], 3),
    "cut-ply": (["info", "TMP/cut.ply"], 3),
    "nan-ply": (["info", "TMP/nan.ply"], 3),
    "text-ply": (["info", "TMP/text.ply"], 3),
    "huge-ply": (["info", "TMP/huge.ply"], 3),
    "point-cloud-ply": (["info", "TMP/points.ply"], 3),
    "cut-spz": (["info", "TMP/cut.spz"], 3),
    "cut-glb": (["info", "TMP/cut.glb"], 3),
    "odd-splat": (["info", "TMP/odd.splat"], 3),
    "checkpoint": (["convert", "TMP/a.ckpt", "TMP/b.ply"], 3),
    "bad-world": (["info", "TMP/world"], 3),
    "output-exists": (["convert", "TMP/a.ply", "TMP/nan.ply"], 2),
    "unknown-format": (["convert", "TMP/a.ply", "TMP/b.xyz"], 2),
    "empty-crop": (["convert", "TMP/a.ply", "TMP/b.ply", "--crop-box", "1", "1", "1", "0", "0", "0"], 2),
    "zero-scale": (["convert", "TMP/a.ply", "TMP/b.ply", "--scale", "0"], 2),
    "bad-recipe": (["convert", "TMP/a.ply", "TMP/b.ply", "--config", "TMP/bad.yaml"], 2),
    "config-without-path": (["info", "TMP/a.ply", "--config"], 2),
    "bad-completion": (["--completion", "fish"], 2),
    "bad-render-name": (["render", "TMP/a.ply", "--out", "TMP/a.avi"], 2),
    "render-no-cameras": (["render", "TMP/a.ply", "--out", "TMP/a.mp4", "--path", "cameras"], 3),
    "render-missing-path": (["render", "TMP/a.ply", "--out", "TMP/a.mp4", "--path", "TMP/none.json"], 3),
    "render-no-seconds": (["render", "TMP/a.ply", "--out", "TMP/a.mp4", "--seconds", "0"], 2),
    "render-fov": (["render", "TMP/a.ply", "--out", "TMP/a.mp4", "--fov", "0"], 2),
    "render-size": (["render", "TMP/a.ply", "--out", "TMP/a.mp4", "--width", "9000"], 2),
    "demo-seconds": (["demo", "--out", "TMP/d", "--seconds", "nan"], 2),
    "decimate-zero": (["convert", "TMP/a.ply", "TMP/b.ply", "--decimate", "0"], 2),
    "not-finite": (["convert", "TMP/a.ply", "TMP/b.ply", "--translate", "nan", "0", "0"], 2),
    "two-recipes": (["info", "TMP/a.ply", "--config", "a", "--config", "b"], 2),
    "thumbnail-name": (["info", "TMP/a.ply", "--thumbnail", "TMP/a.jpg"], 2),
    "unknown-bench": (["bench", "taste"], 2),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_sentences(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, code = ERRORS[name]
    found, out, err = run([word.replace("TMP", str(folder)) for word in arguments], capsys)
    assert found == code, err
    assert "Traceback" not in err
    snapshot(name, out + err, folder)


@pytest.mark.parametrize("name", ["", *cli.COMMANDS])
def test_help(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = run([name, "--help"] if name else ["--help"], capsys)
    assert code == 0 and not err
    snapshot(f"help-{name}" if name else "help", re.sub(r"\x1b\[[0-9;]*m", "", out), tmp_path)


def test_version_and_completion(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"], capsys) == (0, "gworld 0.1.0\n", "")
    code, out, _ = run(["--completion", "bash"], capsys)
    assert code == 0 and "complete" in out and "convert" in out


def test_info_for_people_and_machines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(["info", str(folder / "a.ply")], capsys)
    assert code == 0 and out == ""
    snapshot("info", err, folder)
    code, out, err = run(["info", str(folder / "a.ply"), "--json", "--thumbnail", str(folder / "a.png")], capsys)
    facts = json.loads(out)
    assert code == 0 and facts["count"] == 300 and facts["sh_degree"] == 1
    picture = np.asarray(Image.open(folder / "a.png"))
    assert picture.shape == (360, 480, 3) and picture.std() > 5


def test_convert_edits_in_order(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = folder / "b.ply"
    words = f"convert {folder}/a.ply {target} --axes RFU --scale 0.001 --translate 0 0 1 --metric True --sh-degree 0"
    code, _, err = run([*words.split(), "--crop-sphere", "0", "0", "1", "0.002"], capsys)
    assert code == 0 and "Gaussians of 300" in err
    table, before = read_table(target), read_table(folder / "a.ply")
    assert table.metric and table.axes == "RFU" and table.sh_degree == 0
    moved = np.stack([before.means[:, 0], before.means[:, 2], -before.means[:, 1]], axis=1) * 0.001
    inside = np.linalg.norm(moved, axis=1) <= 0.002
    np.testing.assert_allclose(table.means, moved[inside] + [0, 0, 1], atol=1e-6)
    assert table.axes != before.axes


def test_recipe_is_overridden_by_flags_and_repeats(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "r.yaml").write_text(f"source: {folder}/a.ply\ndecimate: 50\nsh_degree: 0\n")
    code, out, err = run(
        [
            "convert",
            "--config",
            str(folder / "r.yaml"),
            f"{folder}/a.ply",
            f"{folder}/b.ply",
            "--decimate",
            "20",
            "--json",
        ],
        capsys,
    )
    assert code == 0, err
    assert json.loads(out)["count"] == 20
    assert read_table(folder / "b.ply").sh_degree == 0


def test_render_writes_a_video_that_shows_the_scene(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"render {folder}/a.ply --out {folder}/v.mp4 --seconds 0.2 --fps 10 --width 96 --height 64 --json"
    code, out, err = run([*words.split(), "--outputs", "rgb", "depth", "link_id", "flow", "alpha"], capsys)
    assert code == 0, err
    facts = json.loads(out)
    frames = list(read_video(folder / "v.mp4"))
    assert facts["frames"] == len(frames) == 2
    assert frames[0].shape[0] == 64 and frames[0][:, :96].std() > 5
    assert np.abs(frames[0].astype(int) - frames[1]).max() > 10  # the camera moved


def test_doctor_names_every_backend(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(["doctor"], capsys)
    assert code == 0
    for name in ("native-cuda", "gsplat", "native-cpu", "reference", "torch", "extra mesh", "pytorch3d"):
        assert name in err
    code, out, _ = run(["doctor", "--json"], capsys)
    findings = {finding["name"]: finding for finding in json.loads(out)["findings"]}
    assert findings["render reference"]["ok"]
    assert all(finding["ok"] or finding["fact"] for finding in findings.values())


@pytest.mark.parametrize(
    ("error", "code"),
    [(ResourceError("full"), 5), (MemoryError(), 5), (KeyboardInterrupt(), 130), (ValueError("x"), 1)],
)
def test_exit_codes(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert cli.main(["info"]) == code
    assert capsys.readouterr().err.splitlines()[-1].startswith("gworld: ")


def test_import_and_help_load_nothing_heavy() -> None:
    code = (
        "import sys, gworld\nfrom gworld.cli.main import main\nmain(['--help'])\n"
        "heavy = {'torch', 'numpy', 'scipy', 'tyro', 'rich', 'kornia', 'trimesh'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_info_and_convert_load_no_torch(folder: Path) -> None:
    code = (
        "import sys\nfrom gworld.cli.main import main\n"
        f"assert main(['info', '{folder}/a.ply']) == 0\n"
        f"assert main(['convert', '{folder}/a.ply', '{folder}/b.spz']) == 0\n"
        "sys.exit('torch was loaded' if 'torch' in sys.modules else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)


def test_interrupt_leaves_no_half_written_file(folder: Path) -> None:
    table = random_table(count=400_000, degree=3)
    write_table(table, folder / "big.ply")
    command = [sys.executable, "-m", "gworld", "convert", str(folder / "big.ply"), str(folder / "out.ply")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not list(folder.glob(".out.ply.*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    if process.returncode == 0:  # it had finished before the signal came
        assert len(read_table(folder / "out.ply")) == 400_000
    else:
        assert process.returncode == 130 and "interrupted" in err
        assert not (folder / "out.ply").exists() and not list(folder.glob(".out.ply.*"))


def test_bad_rows_are_dropped_on_request(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(["convert", f"{folder}/nan.ply", f"{folder}/b.ply", "--drop-bad"], capsys)
    assert code == 0 and "299 Gaussians of 300" in err
    np.testing.assert_array_equal(read_table(folder / "b.ply").means, read_table(folder / "a.ply").means[:299])


def test_overwrite_never_takes_what_is_not_ours(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = folder / "photos"
    photos.mkdir()
    (photos / "1.jpg").write_text("mine")
    for words in (f"render {folder}/a.ply --seconds 0.1 --out {photos}", f"demo --seconds 0.1 --out {photos}"):
        code, _, err = run([*words.split(), "--overwrite"], capsys)
        assert code == 2 and "gworld did not write there" in err
    assert (photos / "1.jpg").read_text() == "mine"


def test_empty_results_are_files_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"convert {folder}/a.ply {folder}/none.ply --crop-sphere 100 100 100 1"
    code, _, err = run(words.split(), capsys)
    assert code == 0 and "nothing is left" in err
    code, out, _ = run(["info", f"{folder}/none.ply", "--json"], capsys)
    assert code == 0 and json.loads(out)["count"] == 0


def test_stated_axes_decide_what_is_up(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["convert", f"{folder}/a.ply", f"{folder}/up.ply", "--source-axes", "RFU"], capsys)
    assert read_table(folder / "up.ply").axes == "RFU"
    run(["convert", f"{folder}/up.ply", f"{folder}/up.splat"], capsys)  # cannot say so: turned to the habit
    before, after = read_table(folder / "a.ply"), read_table(folder / "up.splat")
    np.testing.assert_allclose(np.sort(after.means[:, 1]), np.sort(-before.means[:, 2]), atol=1e-6)


def test_full_disk_is_exit_five(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gworld", "--help"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 5 and b"cannot be used" in done.stderr


def test_posed_images_do_not_become_splats(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "transforms.json").write_text('{"camera_model": "PINHOLE", "frames": []}')
    code, _, err = run(["convert", f"{folder}/transforms.json", f"{folder}/x.spz"], capsys)
    assert code == 2 and "not Gaussians" in err
    assert not (folder / "x.spz").exists()
