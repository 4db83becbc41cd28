"""Push-T, recorded: a Franka pushes a T-block before three cameras; two are tracked with, the third one judges."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gworld.agents.binding import bind_robot
from gworld.agents.skeleton import read_robot
from gworld.agents.skinning import SkinOptions
from gworld.agents.tree import Skeleton
from gworld.bench.rows import Row, at_least
from gworld.bench.track_outlines import OUTLINES, drawn_mask
from gworld.capture.calibration import read_calibration
from gworld.data.clips import read_frames
from gworld.geometry import pose_from_transform, transform_from_pose
from gworld.reconstruct.motion import Film, Tracked, TrackOptions, track_motion
from gworld.reconstruct.motion_draw import draw
from gworld.reconstruct.motion_film import Level, Plates, Shot, first_plates, in_light, levels_of, shot_at
from gworld.reconstruct.motion_fit import Prior, fit_state
from gworld.reconstruct.motion_lens import FREE, straightened, unbent
from gworld.reconstruct.motion_paint import clean_plates, link_colours
from gworld.reconstruct.motion_rig import RigFit, RigOptions, refine_rig
from gworld.scene.cameras import Cameras
from gworld.scene.gaussians import Gaussians
from gworld.scene.harmonics import sh_from_rgb
from gworld.scene.links import Link
from gworld.scene.world import Entity, World

MODEL = Path("embodied_gaussians/robot/panda.urdf")
HOME = Path("embodied_gaussians/examples/embodied_environments/pusht_embodied")
START = (-0.675, -1.08, 1.565, -2.475, 1.27, 1.96, 0.95, 0.0)
"""Joint values (rad) of the first instant, from the first pictures of all three cameras: there are none recorded."""
STRAIGHT_START = (-0.707, -1.538, 1.4998, -2.4237, 1.4934, 1.5473, 0.6382, 0.0)
STAND = (-0.0058, -0.0013, 0.0072, 0.9999, 0.0024, -0.0048, -0.0143)
"""The same, and the robot's root, found again (by rendering and comparing, first pictures of all three cameras) in
pictures without the bending of their lenses; the root stands upright on the table."""
HOLES = 0.0228
"""Metres from hole to hole of the table, at which the robot fits the first pictures best."""
RAISED = 0.004
"""Metres by which the block stands higher than its authors say, in straight first pictures of all three cameras."""
SKIN = 30_000.0
"""Gaussians per square metre of the arm: with 6,000, 13 mm apart, they stand over its edges by two pixels."""
WHITE = (0.92, 0.85, 0.80)
SIDE = "234222303707"
"""The only camera that sees the elbow."""
BLOCK_IOU, ROBOT_IOU, DECIBELS, MARGIN = 0.90, 0.85, 3.0, 0.03
TOOL = "panda_hand"
"""Carried about square to the root, pointing down: the way whose cameras see it found it so within 3 degrees."""
POSTURE = 0.3
"""Radians by which joints stray from their start, there: the first value tried. The tip is lost without it."""
RISE = 0.01
"""Metres within which the tool keeps its height, where nobody sees the arm."""
TIP = (0.0, 0.0, -0.1368)
"""The pusher's end in its link (metres)."""
BEYOND = 16
"""Pixels by which straightened pictures are widened to be laid on the film."""
EVERY, RIM = 20, 7
"""Every how many instants are judged; twice the width of the block's edge and one (pixels)."""
STEP, STRIDE = 0.0365, 3
"""Seconds between instants (every other picture), and every how many of them are fitted."""


@dataclass(frozen=True, eq=False)
class Recording:
    """Push-T as tracking takes it."""

    world: World
    robot: Skeleton
    films: list[Film]
    cameras: Cameras
    plane: tuple[float, float, float, float]
    lenses: Float[Tensor, "C 7"]
    """Taken away from the films: zeros where they are as recorded."""


def real_rows(data: Path, quick: bool) -> Iterator[Row]:
    """All three ways of holding a camera out (`quick`: one, of the first three seconds)."""
    if not (data / HOME).is_dir():
        return
    given, rig = straight_recording(data)
    yield Row("push-T, cameras disagree on the table", rig.after, "px", baseline=rig.before)
    tips: list[Tensor] = []
    for held in range(1 if quick else len(given.films)):
        tracked = track_way(given, held, 3.0 if quick else 14.7)
        yield from judge_way(given, held, tracked, every=4 if quick else EVERY)
        tips.append(_tips(tracked))
        if given.cameras.names[held] == SIDE and len(tips) > 1:
            apart = torch.stack([(tips[-1] - tip).norm(dim=-1) for tip in tips[:-1]]).mean(0)
            name = f"push-T without {SIDE}, pusher's tip against the ways that see the arm"
            yield Row(
                name, 1000 * float(apart.median()), "mm", note=f"90th percentile {1000 * apart.quantile(0.9):.1f}"
            )


def read_recording(data: Path) -> Recording:
    """Films, cameras as supplied, and a world of block and arm."""
    home = data / HOME
    views = read_calibration(home / "sample_demos/0/cameras.json").views
    films = []
    for view in views:
        source = home / "sample_demos/0/videos" / f"{view.name}.mp4"
        pictures = np.stack(list(read_frames(source)))
        times = json.loads(source.with_suffix(".json").read_text(encoding="utf-8"))["timestamps"]
        films.append(Film(np.array(times, float), pictures))
    K, poses = (torch.stack([getattr(view, field) for view in views]).float() for field in ("K", "world_from_camera"))
    cameras = Cameras(K, poses, views[0].width, views[0].height, names=tuple(view.name for view in views))
    plane = json.loads((home / "environment/ground_plane.json").read_text(encoding="utf-8"))["plane"]
    world, robot = _world(home, data / MODEL)
    return Recording(world, robot, films, cameras, tuple(plane), torch.zeros(len(films), FREE))


def straight_recording(data: Path) -> tuple[Recording, RigFit]:
    """Films without their lenses' bending, cameras that agree on the table's holes, and the robot where it then stands.

    Nothing but the first picture of each camera is used for it.
    """
    given = read_recording(data)
    first = np.stack([film.pictures[0] for film in given.films]).astype(np.float32) / 255
    rig = refine_rig(first, given.cameras, RigOptions(plane=given.plane, lens=True, dots=HOLES))
    films = straightened(given.films, given.cameras, rig.lenses)
    world, _ = _world(data / HOME, data / MODEL, STRAIGHT_START, STAND)
    return replace(given, world=world, films=films, cameras=rig.cameras, lenses=rig.lenses), rig


def track_way(given: Recording, held: int, end: float) -> Tracked:
    """Tracked with all cameras but one."""
    rows = [row for row in range(len(given.films)) if row != held]
    rise, posture = (RISE, POSTURE) if given.cameras.names[held] == SIDE else (0.0, 0.0)
    options = TrackOptions(
        hold=("panda_finger_joint1",), square=(TOOL,), square_rise=rise, posture=posture,
        rig=RigOptions(plane=given.plane), objects="planar", search=0.0, reach=0.12, stride=STRIDE,
    )  # fmt: skip
    times = torch.arange(0.04, end, STEP, dtype=torch.float64)
    films = [given.films[row] for row in rows]
    return track_motion(given.world, films, _some(given.cameras, rows), times, options, robots={"panda": given.robot})


def _tips(tracked: Tracked) -> Float[Tensor, "T 3"]:
    """Where the pusher's tip is."""
    poses = transform_from_pose(tracked.link_poses[:, tracked.link_names.index("panda/panda_pusher")].double())
    return (poses[:, :3, :3] @ torch.tensor(TIP, dtype=torch.float64)) + poses[:, :3, 3]


def judge_way(given: Recording, held: int, tracked: Tracked, every: int) -> Iterator[Row]:
    """Silhouettes and colours on the camera that took no part, beside the best that any pose could reach there."""
    camera, film = _some(given.cameras, [held]), given.films[held]
    clock, name = tracked.times.numpy(), given.cameras.names[held]
    blank = first_plates([film], link_colours(tracked.bodies))
    some = np.arange(0, len(clock), max(1, len(clock) // 60))
    full = levels_of(camera, blank, (1,))[1]
    plates = clean_plates([film], full, tracked.bodies, clock[some], tracked.states[some], blank)
    level = levels_of(camera, plates, (1,))[1]
    found: dict[str, list[float]] = {"block": [], "block best": [], "robot": [], "robot best": [], "gain": []}
    best: list[Tensor] = []
    for row in range(0, len(clock), every):
        shot = shot_at([film], float(clock[row]), level)
        state = tracked.states[row]
        truth = _truth(shot.rgb[0], level, plates)
        _score(found, "", tracked, state, level, truth)
        best = _best_states(tracked, state, best, level, shot)
        tops: dict[str, list[float]] = {"block best": [], "robot best": []}
        for one in (state, *best):
            _score(tops, " best", tracked, one, level, truth)
        for key, values in tops.items():
            found[key] += [max(values)] if values else []
        found["gain"].append(_gain(tracked, state, level, shot.rgb[0]))
    if name in OUTLINES:
        found["robot"], found["robot best"] = _by_hand(tracked, OUTLINES[name], level, film, given.lenses[held])
    means = {key: float(np.nanmean(values)) if len(values) else float("nan") for key, values in found.items()}
    limit = min(BLOCK_IOU, means["block best"] - MARGIN)
    yield at_least(
        f"push-T without {name}, block IoU", means["block"], "", limit, note=f"best {means['block best']:.3f}"
    )
    note = f"best {means['robot best']:.3f}, {len(found['robot'])} pictures"
    if name == SIDE:
        elbow = tracked.pose_sigma[:, list(tracked.link_names).index("panda/panda_link4"), 0].median()
        yield Row(f"push-T without {name}, elbow's stated uncertainty", 1000 * float(elbow), "mm")
        yield Row(f"push-T without {name}, robot IoU", means["robot"], "", note=note)
    else:
        yield at_least(f"push-T without {name}, robot IoU", means["robot"], "", ROBOT_IOU, note=note)
    yield at_least(f"push-T without {name}, PSNR over the background's", means["gain"], "dB", DECIBELS)


def _by_hand(
    tracked: Tracked, outlines: dict[float, tuple[str, ...]], level: Level, film: Film, lens: Float[Tensor, " 7"]
) -> tuple[list[float], list[float]]:
    """Silhouettes of the robot against outlines drawn by hand in the pictures as filmed: as tracked, and the better of
    that and fitted there."""
    clock, found, best = tracked.times.numpy(), list[float](), list[float]()
    wide = _widened(level.cameras)
    for time, parts in outlines.items():
        row = int(np.abs(clock - time).argmin())
        if abs(clock[row] - time) > STEP:
            continue
        real = drawn_mask(parts, level.cameras.width, level.cameras.height)
        state = tracked.states[row]
        scores = []
        for one in (state, *_best_states(tracked, state, [], level, shot_at([film], float(clock[row]), level))):
            shown = _filmed(_owners(tracked, one, wide) == "robot", level.cameras.K[0].double(), lens.double())
            scores.append(float((shown & real).sum() / (shown | real).sum()))
        found.append(scores[0])
        best.append(max(scores))
    return found, best


def _widened(cameras: Cameras) -> Level:
    """Straightened pictures with `BEYOND` more on every side: the film shows what lies outside of them."""
    K = cameras.K.clone()
    K[:, :2, 2] += BEYOND
    wide = replace(cameras, K=K, width=cameras.width + 2 * BEYOND, height=cameras.height + 2 * BEYOND)
    blank = np.zeros((len(cameras), wide.height, wide.width, 3), np.float32)
    return levels_of(wide, Plates(blank, blank[..., 0] == 0), (1,))[1]


def _filmed(wide: Bool[np.ndarray, "H W"], K: Float[Tensor, "3 3"], lens: Float[Tensor, " 7"]) -> np.ndarray:
    """A mask of widened straightened pictures in the pixels of the film."""
    import cv2

    mask, (height, width) = wide, (size - 2 * BEYOND for size in wide.shape)
    rows, columns = np.indices((height, width)) + 0.5
    place = unbent(torch.from_numpy(np.stack([columns, rows], axis=-1)), K, lens) - 0.5 + BEYOND
    x, y = place.float().unbind(-1)
    return cv2.remap(mask.astype(np.float32), x.contiguous().numpy(), y.contiguous().numpy(), cv2.INTER_LINEAR) > 0.5


def _best_states(tracked: Tracked, state: Tensor, before: list[Tensor], level: Level, shot: Shot) -> list[Tensor]:
    """Fitted to the judging camera itself, from the tracked state and from where the instant before ended."""
    loose = torch.full((tracked.bodies.size,), 1e-3, dtype=torch.float64)
    starts = [state, *before[:1]]
    solved = [fit_state(tracked.bodies, level, shot, Prior(state, loose), start, 6) for start in starts]
    return [one.state for one in sorted(solved, key=lambda one: one.cost)]


def _truth(rgb: Float[Tensor, "H W 3"], level: Level, plates: Plates) -> dict[str, Bool[np.ndarray, "H W"]]:
    """The block by its orange; the robot by what differs from the plate; where the plate was seen.

    Around the block its blurred edge differs from the plate too: that band tells nothing of the robot.
    """
    import cv2

    red, green, blue = rgb.numpy().transpose(2, 0, 1)
    block = (red > 0.55) & (red - green > 0.25) & (red - blue > 0.3)
    other = in_light(rgb, level.plates[0])[1].numpy() > 0.5
    band = cv2.dilate(block.astype(np.uint8), np.ones((RIM, RIM), np.uint8)) > 0
    return {"block": block, "robot": other & ~block, "seen": plates.known[0] & (block | ~band)}


def _score(
    found: dict[str, list[float]],
    kind: str,
    tracked: Tracked,
    state: Tensor,
    level: Level,
    truth: dict[str, np.ndarray],
) -> None:
    drawn = _owners(tracked, state, level)
    for name in ("block", "robot"):
        where = truth["seen"] if name == "robot" else np.ones_like(truth["seen"])
        shown = (drawn == name) & where
        real = truth[name] & where
        if real.sum() > 150:  # less is an edge of the picture
            found[name + kind].append(float((shown & real).sum() / max((shown | real).sum(), 1)))


def _owners(tracked: Tracked, state: Tensor, level: Level) -> np.ndarray:
    """Which body is drawn at each pixel: `block`, `robot` or nothing."""
    bodies = tracked.bodies
    block = bodies.gaussians.links == bodies.things[0].link
    marked = sh_from_rgb(torch.where(block[:, None], torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])))
    painted = replace(bodies, gaussians=replace(bodies.gaussians, sh=marked[:, None]))
    drawn = draw(painted, state[None], level, 0)
    names = np.where(drawn.rgb[0, ..., 0].numpy() > drawn.rgb[0, ..., 1].numpy(), "block", "robot")
    return np.where(drawn.alpha[0].numpy() > 0.5, names, "")


def _gain(tracked: Tracked, state: Tensor, level: Level, rgb: Float[Tensor, "H W 3"]) -> float:
    """Decibels by which the bodies drawn over the plate beat the plate alone, where either shows a body."""
    drawn = draw(tracked.bodies, state[None], level, 0)
    alpha = drawn.alpha[0][..., None]
    over = drawn.rgb[0] + (1 - alpha) * level.plates[0]
    where = ((alpha[..., 0] > 0.5) | (in_light(rgb, level.plates[0])[1] > 0.5)) & (level.known[0] > 0.5)
    errors = [(picture - rgb)[where].square().mean() for picture in (over, level.plates[0])]
    return float(10 * torch.log10(errors[1] / errors[0]))


def _some(cameras: Cameras, rows: list[int]) -> Cameras:
    names = tuple(cameras.names[row] for row in rows)
    return replace(cameras, K=cameras.K[rows], world_from_camera=cameras.world_from_camera[rows], names=names)


def read_block(path: Path) -> tuple[Gaussians, tuple[float, ...]]:
    """The block as its authors stored it, raised: Gaussians (link 0) and `x y z qw qx qy qz` in the first picture."""
    block = json.loads(path.read_text(encoding="utf-8"))
    given = {name: torch.tensor(values).float() for name, values in block["gaussians"].items()}
    gaussians = Gaussians(
        means=given["means"],
        quats_wxyz=given["quats"],
        log_scales=given["scales"].log(),
        opacity_logits=given["opacities"].clamp(0.05, 0.99).logit(),
        sh=sh_from_rgb(given["colors"].flip(-1))[:, None],  # stored blue first
        links=torch.zeros(len(given["means"]), dtype=torch.int32),
    )
    x, y, z, *turn = pose_from_transform(torch.tensor(block["X_WB"], dtype=torch.float64)).tolist()
    return gaussians, (x, y, z + RAISED, *turn)


def _world(
    home: Path, model: Path, joints: Sequence[float] = START, stand: Sequence[float] = (0, 0, 0, 1, 0, 0, 0)
) -> tuple[World, Skeleton]:
    gaussians, pose = read_block(home / "objects/tblock.json")
    gaussians = replace(gaussians, links=torch.ones_like(gaussians.links))
    entities = (Entity("scene", "static", (0,)), Entity("tblock", "object", (1,)))
    world = World(gaussians, (Link("world"), Link("tblock", pose, 0)), entities, metric=True)
    robot = read_robot(model, "panda")
    base = transform_from_pose(torch.tensor(stand, dtype=torch.float32))
    skin = SkinOptions(per_square_metre=SKIN)
    world = bind_robot(world, robot, "panda", base, torch.tensor(joints), skin=skin)
    sh = world.gaussians.sh[:, :1].clone()
    sh[world.gaussians.links > 1] = sh_from_rgb(torch.tensor(WHITE))
    return replace(world, gaussians=replace(world.gaussians, sh=sh)), robot
