"""The cached background: the same bits as a full render, and never a stale one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gworld.data.toys import poses_of, tabletop_world, waving_rollout
from gworld.errors import InputError
from gworld.geometry import se3_exp
from gworld.render.api import OutputName, Previous, RenderOptions, RenderOutput
from gworld.render.native import native_cpu_status, native_isas, render_native_cpu
from gworld.render.native_cache import BackgroundCache
from gworld.scene.cameras import Cameras, resize_cameras
from gworld.scene.gaussians import Gaussians
from tests.scenes import random_cameras, random_gaussians

pytestmark = pytest.mark.skipif(
    native_cpu_status() is not None, reason="the native library is not built (cmake -S cuda_ext -B build)"
)
isas = native_isas() if native_cpu_status() is None else ()
ALL: tuple[OutputName, ...] = ("rgb", "alpha", "depth", "link_id", "flow")


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GWORLD_THREADS", "2")


def same_bits(left: RenderOutput, right: RenderOutput, outputs: tuple[OutputName, ...] = ALL) -> bool:
    pairs = [(getattr(left, name), getattr(right, name)) for name in outputs]
    return all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in pairs)


def moved(step: int, worlds: int, links: int, reach: float = 0.3) -> Tensor:
    """Link 0 at rest, the others somewhere near it."""
    generator = torch.Generator().manual_seed(step)
    poses = se3_exp(torch.randn(worlds, links, 6, generator=generator) * reach)
    poses[:, 0] = torch.eye(4)
    return poses


def play(
    gaussians: Gaussians,
    frames: list[Tensor],
    cameras: Cameras,
    outputs: tuple[OutputName, ...] = ALL,
    options: RenderOptions = RenderOptions(),  # noqa: B008 (frozen)
    cache: BackgroundCache | None = None,
) -> None:
    """Draw the frames with one cache and in full; each pair must be equal and all from the cache."""
    cache = cache or BackgroundCache()
    last = frames[0]
    for poses in frames:
        previous: Previous | None = (last, cameras) if "flow" in outputs else None
        expected = render_native_cpu(gaussians, poses, cameras, outputs, previous, options)
        found = render_native_cpu(gaussians, poses, cameras, outputs, previous, options, cache)
        assert same_bits(found, expected, outputs)
        last = poses
    assert (cache.builds, cache.frames) == (1, len(frames))


@pytest.mark.parametrize("isa", isas)
@pytest.mark.parametrize("reuse", [False, True])
def test_a_waving_scene_keeps_every_bit(isa: str, reuse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GWORLD_ISA", isa)
    world = tabletop_world(0.03)
    assert world.cameras is not None
    frames = list(poses_of(waving_rollout(world, 1.0, 5.0))[:, None])
    cameras = resize_cameras(world.cameras, 150, 101)[:2]
    play(world.gaussians, frames, cameras, cache=BackgroundCache(reuse_pictures=reuse))
    arms = BackgroundCache(range(1, 9), reuse_pictures=reuse)
    play(world.gaussians, frames, cameras, ("rgb",), RenderOptions((0.2, 0.4, 0.6), antialiased=True), arms)


@pytest.mark.parametrize("isa", isas)
@pytest.mark.parametrize("reuse", [False, True])
def test_random_movers_in_many_worlds_keep_every_bit(isa: str, reuse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GWORLD_ISA", isa)
    gaussians = random_gaussians(1, 3000, degree=2, links=5, size=0.05)
    for worlds, views in ((1, 1), (3, 1), (6, 2)):  # two threads share a view, or draw views apart
        cameras = random_cameras(worlds, views, 75, 50)
        frames = [moved(step, worlds, 5) for step in range(3)]
        play(gaussians, frames, cameras, cache=BackgroundCache(reuse_pictures=reuse))
    for outputs in (("alpha",), ("depth", "link_id"), ("flow",)):
        play(gaussians, [moved(9, 2, 5)], random_cameras(4, 1, 40, 30), outputs)


def test_movers_may_leave_the_view_and_come_back() -> None:
    gaussians, cameras = random_gaussians(2, 1500, links=2, size=0.05), random_cameras(2, 1, 90, 60)
    away = torch.eye(4).repeat(1, 2, 1, 1)
    away[0, 1, :3, 3] = 1e4
    frames = [moved(0, 1, 2), away, away, moved(1, 1, 2), away, moved(2, 1, 2)]
    play(gaussians, frames, cameras, cache=BackgroundCache(reuse_pictures=True))


def test_all_or_none_may_move_and_equal_depths_keep_their_order() -> None:
    cameras = random_cameras(3, 1, 60, 40)
    gaussians = random_gaussians(3, 400, links=2, size=0.05)
    twins = replace(gaussians, means=gaussians.means[:1].expand(400, 3).clone())  # all at one depth, links interleaved
    frames = [torch.eye(4).repeat(1, 2, 1, 1)] * 2
    for scene in (gaussians, twins, random_gaussians(4, 0, links=2)):
        for moving in ((), (1,), (0, 1)):
            play(scene, frames, cameras, cache=BackgroundCache(moving))


@pytest.mark.parametrize("isa", isas)
def test_what_hides_and_what_is_hidden_keep_every_bit(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GWORLD_ISA", isa)
    gaussians, cameras = random_gaussians(8, 6000, links=3, size=0.08), random_cameras(8, 1, 50, 40)
    solid = replace(gaussians, opacity_logits=torch.full((6000,), 8.0))  # lists go on far behind what is seen
    faint = replace(gaussians, opacity_logits=torch.full((6000,), -5.0))  # many below the least alpha
    for scene in (gaussians, solid, faint):
        play(scene, [moved(step, 1, 3) for step in range(3)], cameras)


@pytest.mark.parametrize("isa", isas)
def test_threads_change_no_bit(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GWORLD_ISA", isa)
    # More than 16 thousand movers, so that threads share their sorting.
    gaussians, cameras = random_gaussians(5, 24000, links=4, size=0.02), random_cameras(5, 1, 120, 80)
    poses, before = moved(1, 13, 4), moved(2, 13, 4)
    found = []
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("GWORLD_THREADS", threads)
        for worlds in (1, 13):
            cache = BackgroundCache()
            arguments = (gaussians, poses[:worlds], cameras, ALL, (before[:worlds], cameras), RenderOptions())
            found.append(render_native_cpu(*arguments, cache))
            assert cache.frames == 1
            assert same_bits(found[-1], render_native_cpu(*arguments))
    for one, many in zip(found[0::2], found[1::2], strict=True):
        assert same_bits(one, found[0])
        assert same_bits(many, found[1])
        assert same_bits(one, RenderOutput(**{name: getattr(many, name)[:1] for name in ALL}))


class Stage:
    """A scene that can be changed between frames, its cache, and a way to draw both ways."""

    def __init__(self) -> None:
        self.gaussians, self.cameras = random_gaussians(6, 800, links=3, size=0.05), random_cameras(6, 1, 64, 48)
        self.poses, self.before = moved(0, 2, 3), moved(1, 2, 3)
        self.outputs, self.options = ALL, RenderOptions()
        self.cache = BackgroundCache(reuse_pictures=True)

    def frame(self) -> tuple[int, int]:
        """(backgrounds built, frames drawn from them) after one more frame, which must be right."""
        arguments = (self.gaussians, self.poses, self.cameras, self.outputs, (self.before, self.cameras), self.options)
        expected = render_native_cpu(*arguments)
        assert same_bits(render_native_cpu(*arguments, self.cache), expected, self.outputs)
        return self.cache.builds, self.cache.frames


def recolour(stage: Stage) -> None:
    stage.gaussians.sh.mul_(0.5)


def move_one(stage: Stage) -> None:
    stage.gaussians.means[0, 0] += 0.1


def hand_over(stage: Stage) -> None:
    stage.gaussians.links[:400] = 2


def exchange(stage: Stage) -> None:
    stage.gaussians = replace(stage.gaussians, opacity_logits=stage.gaussians.opacity_logits - 1)


def fewer(stage: Stage) -> None:
    stage.gaussians = random_gaussians(7, 300, links=3, size=0.05)


def move_camera(stage: Stage) -> None:
    stage.cameras = replace(
        stage.cameras, world_from_camera=stage.cameras.world_from_camera @ se3_exp(torch.ones(6) / 50)
    )


def zoom(stage: Stage) -> None:
    stage.cameras.K[:, 0, 0] *= 1.1


def more_cameras(stage: Stage) -> None:
    stage.cameras = random_cameras(6, 2, 64, 48)


def resize(stage: Stage) -> None:
    stage.cameras = resize_cameras(stage.cameras, 80, 60)


def repaint(stage: Stage) -> None:
    stage.options = RenderOptions(background=(0.1, 0.2, 0.3))


def cut_near(stage: Stage) -> None:
    stage.options = RenderOptions(near=1.0)


def smooth(stage: Stage) -> None:
    stage.options = RenderOptions(antialiased=True)


def ask_for_less(stage: Stage) -> None:
    stage.outputs = ("rgb", "flow")


def move_ground(stage: Stage) -> None:
    stage.poses = stage.poses.clone()
    stage.poses[:, 0, 0, 3] = 0.1


def ground_moved_before(stage: Stage) -> None:
    stage.before = stage.before.clone()
    stage.before[:, 0, 0, 3] = 0.1


@pytest.mark.parametrize(
    "change",
    [
        *(
            recolour,
            move_one,
            hand_over,
            exchange,
            fewer,
            move_camera,
            zoom,
            more_cameras,
            resize,
            repaint,
            cut_near,
            smooth,
        ),
        *(ask_for_less, move_ground, ground_moved_before),
    ],
)
def test_what_changes_is_noticed(change: Callable[[Stage], None]) -> None:
    stage = Stage()
    assert stage.frame() == (1, 1)
    stage.poses = moved(2, 2, 3)
    assert stage.frame() == (1, 2)
    change(stage)
    assert stage.frame() == (1, 2)  # in full
    assert stage.frame() == (2, 3)
    assert stage.frame() == (2, 4)


def test_other_threads_and_instruction_sets_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    assert stage.frame() == (1, 1)
    monkeypatch.setenv("GWORLD_THREADS", "3")
    assert stage.frame() == (1, 1)
    assert stage.frame() == (2, 2)
    monkeypatch.setenv("GWORLD_ISA", "portable")
    assert stage.frame() == (2, 2)
    assert stage.frame() == (3, 3)


def test_worlds_may_come_and_go() -> None:
    stage = Stage()
    assert stage.frame() == (1, 1)
    for worlds in (5, 1, 12):
        stage.poses, stage.before = moved(worlds, worlds, 3), moved(worlds + 1, worlds, 3)
        stage.frame()
    assert (stage.cache.builds, stage.cache.frames) == (1, 4)


def test_what_cannot_be_kept_is_drawn_in_full() -> None:
    stage = Stage()
    stage.poses[1, 0, 0, 3] = 0.1  # the ground differs between worlds
    assert stage.frame() == stage.frame() == (0, 0)
    stage = Stage()
    with torch.inference_mode():
        stage.gaussians = replace(stage.gaussians, means=stage.gaussians.means * 1.0)
        assert stage.frame() == stage.frame() == (0, 0)


def test_gradients_take_the_full_path() -> None:
    stage = Stage()
    means = stage.gaussians.means.requires_grad_()
    cache = BackgroundCache()
    picture = render_native_cpu(stage.gaussians, stage.poses, stage.cameras, ("rgb",), cache=cache).rgb
    assert picture is not None
    (gradient,) = torch.autograd.grad(picture.sum(), means)
    assert gradient.abs().sum() > 0
    assert cache.frames == 0
    with torch.no_grad():
        found = render_native_cpu(stage.gaussians, stage.poses, stage.cameras, ("rgb",), cache=cache).rgb
    assert found is not None
    assert torch.equal(found, picture)
    assert cache.frames == 1


def test_pictures_are_the_callers_unless_they_are_reused() -> None:
    stage = Stage()
    for reuse in (False, True):
        cache = BackgroundCache(reuse_pictures=reuse)
        first = render_native_cpu(stage.gaussians, moved(3, 1, 3), stage.cameras, ("rgb",), cache=cache).rgb
        assert first is not None
        kept = first.clone()
        second = render_native_cpu(stage.gaussians, moved(4, 1, 3), stage.cameras, ("rgb",), cache=cache).rgb
        assert second is not None
        assert (second.data_ptr() == first.data_ptr()) == reuse
        assert torch.equal(first, kept) != reuse


def test_forgetting_and_bad_links() -> None:
    stage = Stage()
    assert stage.frame() == (1, 1)
    stage.gaussians.sh.numpy()[:] *= 0.5  # unseen by torch
    stage.cache.forget()
    assert stage.frame() == (2, 2)
    with pytest.raises(InputError, match="moving links"):
        render_native_cpu(stage.gaussians, stage.poses, stage.cameras, ("rgb",), cache=BackgroundCache((7,)))
