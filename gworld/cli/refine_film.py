"""What is refined: a rollout drawn in its world with all conditions, or a video; and simulated frames as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, product
from pathlib import Path

from torch import Tensor

from gworld.cli.refine import Options, video_clips
from gworld.dynamics.state import Motion
from gworld.errors import InputError, UsageError
from gworld.files import need_asset
from gworld.formats.registry import world_folder
from gworld.formats.world import gaussians_hash, load_world
from gworld.geometry import transform_from_pose
from gworld.reconstruct.coverage import count_views, load_coverage
from gworld.refine.lora import load_lora
from gworld.refine.pretrained import CHUNK, load_backbone, refine_chunk
from gworld.refine.sample import Film, Refined
from gworld.refine.saved import SavedRefiner, load_refiner
from gworld.refine.strength import measure_strengths, photo_pairs
from gworld.render.api import RenderOptions
from gworld.render.conditions import Counts, render_frame
from gworld.scene.cameras import Cameras
from gworld.scene.clip import Clip, join_clips
from gworld.scene.gaussians import Gaussians
from gworld.scene.world import World
from gworld.simulate.files import read_rollout
from gworld.simulate.observe import Frame, pick_cameras, placed
from gworld.simulate.observe import Path as CameraPath


@dataclass(frozen=True)
class Source:
    """Frames to refine, how fast they are shown, with which refiner and photos; what is to be told about it."""

    frames: Iterable[Clip]
    count: int | None
    fps: float
    refiner: SavedRefiner
    photos: Clip | None
    place: Path
    notes: tuple[str, ...] = ()
    others: tuple[Gaussians, ...] = ()
    drawing: RenderOptions = field(default_factory=RenderOptions)
    strengths: dict[int, float] = field(default_factory=dict)


def open_source(options: Options) -> Source:
    """The frames of a rollout or a video."""
    if options.world is None:
        place = choose_refiner(None, options.refiner)
        trust = options.trust if options.trust < 1 else 0.0
        return Source(video_clips(options.source, trust), None, options.fps, load_refiner(place), None, place)
    folder = world_folder(options.world)
    world = load_world(folder)
    rollout = read_rollout(options.source)
    names = tuple(link.name for link in world.links)
    if rollout.link_names != names:
        raise InputError(f"`{options.source}` moves other links than `{options.world}` has; give its own world.")
    place = choose_refiner(world, options.refiner)
    refiner = load_refiner(place)
    photos, notes = own_photos(refiner, folder)
    poses = transform_from_pose(rollout.link_poses).float()
    seconds = float(rollout.times[-1] - rollout.times[0]) if len(rollout) > 1 else 1.0
    cameras = _cameras(world, options, seconds)
    counts = world_counts(world)
    if counts is None and options.trust == 1:
        notes += ("the world does not tell what was seen (no coverage): all is trusted; lower it with `--trust 0.5`",)

    drawing = _drawing(world, options.background)
    others = tuple(_beside(path, world) for path in options.also)
    strengths: dict[int, float] = {}
    if options.measured:
        if photos is None:
            raise UsageError(f"`--measured` needs photos, and `{place}` has none of this world; train one on it.")
        strengths = measure_strengths(refiner.model, photo_pairs(photos))
        notes += (told_strengths(strengths, names),)

    def frames() -> Iterator[Clip]:
        before: tuple[Tensor, Cameras] | None = None
        for t, pose in enumerate(poses):
            camera = placed(cameras(t / max(len(poses) - 1, 1) * seconds), pose)
            yield render_frame(
                world.gaussians, camera, pose, before or (pose, camera), counts=counts, references=photos,
                options=drawing, backend=options.backend,
            )  # fmt: skip
            before = (pose, camera)

    fps = (len(poses) - 1) / seconds if len(poses) > 1 else 30.0
    return Source(frames(), len(poses), fps, refiner, photos, place, notes, others, drawing, strengths)


def told_strengths(strengths: dict[int, float], names: Sequence[str]) -> str:
    """What was measured, in a line."""
    parts = [f"{names[link]} {strength:g}" for link, strength in strengths.items() if strength > 0]
    return f"strengths measured on the photos: {', '.join(parts) or 'nothing is made better'}; 0 for other links shown"


def _beside(path: Path, world: World) -> Gaussians:
    """The Gaussians of another fit; raises `InputError` where its links are others."""
    other = load_world(world_folder(path))
    if [link.name for link in other.links] != [link.name for link in world.links]:
        raise InputError(f"`{path}` has other links than the world that is refined; give fits of the same photos.")
    return other.gaussians


def backbone_frames(
    frames: Iterable[Clip], folder: Path, lora: Path | None, trust: float, seed: int
) -> Iterator[tuple[Clip, Refined]]:
    """Frames refined by a pretrained backbone, chunk by chunk."""
    backbone = load_backbone(folder)
    if lora is not None:
        load_lora(backbone, lora)
    shown: Tensor | None = None
    stream = iter(frames)
    while chunk := list(islice(stream, CHUNK)):
        clip = join_clips(chunk)
        made, shown = refine_chunk(backbone, clip.rgb, clip.confidence.clamp(max=trust), shown, seed)
        for frame, picture in zip(chunk, made, strict=True):
            yield frame, Refined(picture, (picture - frame.rgb[0]).abs().amax(-1))


def choose_refiner(world: World | None, told: Path | None) -> Path:
    """The refiner asked for, the one bound to the world, or the one shipped; raises `InputError` where none is."""
    place = told or (world.refiner if world is not None else None)
    if place is not None:
        return place
    return need_asset("refiner")


def own_photos(refiner: SavedRefiner, world: Path) -> tuple[Clip | None, tuple[str, ...]]:
    """The refiner's photos where they are of this world, with what is to be said where they are not."""
    if refiner.photos is None:
        return None, ()
    if refiner.gaussians and refiner.gaussians != gaussians_hash(world):
        return None, ("the refiner's photos are of other Gaussians than the world's: they are left out",)
    return refiner.photos, ()


def world_counts(world: World) -> Counts | None:
    """How many photos saw each Gaussian, where the world's folder tells."""
    coverage = None if world.folder is None else load_coverage(world.folder)
    if coverage is None:
        return None
    return lambda eye, poses: count_views(coverage, world.gaussians, eye, world_from_link=poses)


def refine_observer(
    observer: Callable[[Motion], Frame],
    world: World,
    told: Path | None,
    background: tuple[float, float, float] | None,
    backend: str,
) -> Callable[[Motion], Frame]:
    """The same observer with its rgb refined: each world's and camera's film for itself."""
    place = choose_refiner(world, told)
    refiner = load_refiner(place)
    photos = None if world.folder is None else own_photos(refiner, world.folder)[0]
    counts, drawing = world_counts(world), _drawing(world, background)
    films: dict[tuple[int, int], Film] = {}
    last: list[tuple[Tensor, Cameras]] = []

    def observe(motion: Motion) -> Frame:
        frame = observer(motion)
        if frame.rgb is None:
            raise UsageError("`--refine` needs rgb among the outputs.")
        now = (motion.world_from_link.clone(), frame.cameras)
        before = last.pop() if last else now
        rgb = frame.rgb.clone()
        for row, column in product(range(rgb.shape[0]), range(rgb.shape[1])):
            here, there = (pick_cameras(placed(cameras, poses[row]), [column]) for poses, cameras in (now, before))
            clip = render_frame(
                world.gaussians, here, now[0][row], (before[0][row], there), counts=counts, references=photos,
                options=drawing, backend=backend,
            )  # fmt: skip
            film = films.setdefault((row, column), Film(refiner.model, photos))
            rgb[row, column] = film(replace(clip, rgb=frame.rgb[row, column][None].clamp(0, 1).cpu())).picture.to(rgb)
        last.append(now)
        return replace(frame, rgb=rgb)

    return observe


def refine_views_of(
    world: World, told: Path | None
) -> Callable[[Tensor, Cameras, RenderOptions], tuple[Tensor, Tensor]]:
    """What refines single views of a world: (poses [L,4,4], one camera, drawing) -> picture and render, [H,W,3] each.

    Raises `InputError` where there is no refiner, or the world does not tell what was seen, so that all is trusted.
    """
    place = choose_refiner(world, told)
    counts = world_counts(world)
    if counts is None:
        raise InputError("the world does not tell what was seen (no coverage): all is trusted, so nothing is refined.")
    refiner = load_refiner(place)
    photos = None if world.folder is None else own_photos(refiner, world.folder)[0]

    def refine(poses: Tensor, camera: Cameras, drawing: RenderOptions) -> tuple[Tensor, Tensor]:
        clip = render_frame(
            world.gaussians, camera, poses, (poses, camera), counts=counts, references=photos, options=drawing
        )
        return Film(refiner.model, photos)(clip).picture, clip.rgb[0]

    return refine


def _drawing(world: World, background: tuple[float, float, float] | None) -> RenderOptions:
    told = background or world.background
    return RenderOptions() if told is None else RenderOptions(background=told)


def _cameras(world: World, options: Options, seconds: float) -> CameraPath:
    from gworld.cli.simulate import Options as Simulated
    from gworld.cli.simulate_draw import choose_cameras

    assert options.world is not None
    told = Simulated(world=options.world, cameras=(options.camera,) if options.camera else (), width=options.width)
    found = choose_cameras(world, told, seconds)
    if callable(found):
        return found
    first = pick_cameras(found, [0])
    return lambda time: first
