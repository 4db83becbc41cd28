"""From where a world was seen: what a new view shows of it is seen, extrapolated or invented.

A pixel is *seen* when its surface was seen by two training views or more from within 15 degrees of the direction from
which it is looked at now, *extrapolated* with one, else *invented*. Kept are one bit per Gaussian and view, and where
the cameras stood: the directions follow exactly, at 38 bytes per Gaussian for 300 views.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from jaxtyping import Float, Int, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gworld.errors import InputError
from gworld.files import atomic_write, existing_file
from gworld.formats.world import COVERAGE_FILE, gaussians_hash
from gworld.geometry import invert_transform
from gworld.reconstruct.contribution import LONGEST, Masks, glimpses, light_shares, poses_by_view
from gworld.render.api import RenderOptions
from gworld.render.select import render
from gworld.scene.cameras import Cameras
from gworld.scene.gaussians import Gaussians
from gworld.scene.harmonics import sh_from_rgb

FORMAT = "gworld coverage 1"
INVENTED, EXTRAPOLATED, SEEN = 0, 1, 2
NEAR_DEGREES = 15.0
ARRIVES = 0.05
"""Share of a Gaussian's light that must arrive in a view for it to be seen there; a wall lets nothing through."""
MAX_VIEWS = 1024
"""Views that are kept; of more, these many are chosen evenly (128 bytes per Gaussian)."""
ROWS_AT_ONCE = 1 << 12


@dataclass(frozen=True)
class Coverage:
    """Which views saw each Gaussian: `views [N,B]` bits, view v in bit v % 8 of byte v // 8; `count` is how many.

    `origins [V,L,3]` are the cameras' centres in the frame of each link (metres), so that a body that moved while it
    was filmed keeps the directions from which its own sides were seen.
    """

    views: UInt8[Tensor, "N B"]
    origins: Float[Tensor, "V L 3"]

    def __post_init__(self) -> None:
        if self.views.ndim != 2 or self.origins.ndim != 3 or self.views.shape[1] != (len(self.origins) + 7) // 8:
            raise InputError(
                f"the coverage has bits {list(self.views.shape)} and origins {list(self.origins.shape)}; one bit for "
                "each of the views is needed."
            )

    def __len__(self) -> int:
        return len(self.views)


def measure_coverage(
    gaussians: Gaussians,
    cameras: Sequence[Cameras],
    *,
    masks: Masks | None = None,
    world_from_link: Tensor | None = None,
    options: RenderOptions = RenderOptions(),  # noqa: B008 (frozen)
    longest: int = LONGEST,
    backend: str = "auto",
) -> Coverage:
    """See which views get at least `ARRIVES` of each Gaussian's light (see `contribution.glimpses`).

    `cameras` one by one (`single_cameras`); world_from_link [L,4,4] or [C,L,4,4]. Masked pixels see nothing. Of more
    than `MAX_VIEWS` cameras an even choice is taken. One picture is held at a time.
    """
    chosen = torch.linspace(0, len(cameras) - 1, min(len(cameras), MAX_VIEWS)).round().long().tolist()
    poses = poses_by_view(gaussians, world_from_link, len(cameras))[chosen]
    some = [cameras[index] for index in chosen]
    chosen_masks: Masks | None = None if masks is None else (lambda index: masks(chosen[index]))
    views = torch.zeros(len(gaussians), (len(chosen) + 7) // 8, dtype=torch.uint8)
    looks = glimpses(
        gaussians, some, masks=chosen_masks, world_from_link=poses, options=options, longest=longest, backend=backend
    )
    for look in looks:
        arrived = light_shares(gaussians, look, options) >= ARRIVES
        views[:, look.index // 8] |= arrived.cpu().to(torch.uint8) << (look.index % 8)
    centres = [camera.world_from_camera[0, :3, 3].to(poses) for camera in some]
    stacked = torch.stack(centres) if centres else poses.new_zeros(0, 3)
    return Coverage(views, _in_links(stacked, poses).float().cpu())


def count_views(
    coverage: Coverage,
    gaussians: Gaussians,
    eye: Float[Tensor, " 3"],
    *,
    world_from_link: Float[Tensor, "L 4 4"] | None = None,
    degrees: float = NEAR_DEGREES,
) -> Int[Tensor, " N"]:
    """How many views saw each Gaussian from within `degrees` of the direction in which it lies from `eye` (world)."""
    check_coverage(coverage, gaussians)
    poses = poses_by_view(gaussians, world_from_link, 1)
    eyes = _in_links(eye.to(poses)[None], poses)[0].double()
    least = math.cos(math.radians(degrees))
    counts = torch.zeros(len(gaussians), dtype=torch.int32)
    shifts = torch.arange(8, dtype=torch.uint8)
    for start in range(0, len(gaussians), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        bits = (coverage.views[rows, :, None] >> shifts) & 1
        seen = bits.flatten(1)[:, : len(coverage.origins)].bool()
        links = gaussians.links[rows].long().cpu()
        means = gaussians.means[rows].detach().cpu().double()
        for link in links.unique().tolist():
            own = links == link
            near = _within(means[own], coverage.origins[:, link].double(), eyes[link].cpu(), least)
            counts[rows][own] = (near & seen[own]).sum(1).int()
    return counts


def coverage_map(
    coverage: Coverage,
    gaussians: Gaussians,
    cameras: Cameras,
    *,
    world_from_link: Float[Tensor, "L 4 4"] | None = None,
    options: RenderOptions = RenderOptions(),  # noqa: B008 (frozen)
    degrees: float = NEAR_DEGREES,
    backend: str = "auto",
) -> UInt8[Tensor, "C H W"]:
    """Per pixel of each camera: `SEEN` (2), `EXTRAPOLATED` (1) or `INVENTED` (0).

    A pixel is what half of its blend weight is, or better (the weighted median); where no surface covers half of it,
    it is invented. Cameras stand fixed in the world.
    """
    maps = torch.zeros(len(cameras), cameras.height, cameras.width, dtype=torch.uint8)
    for index in range(len(cameras)):
        eye = cameras.world_from_camera[index, :3, 3]
        counts = count_views(coverage, gaussians, eye, world_from_link=world_from_link, degrees=degrees)
        # Two colours carry two shares: of Gaussians seen twice or more, and of those seen at all.
        kinds = torch.stack([counts >= 2, counts >= 1, torch.zeros_like(counts) > 0], dim=1)
        sh = torch.as_tensor(sh_from_rgb(kinds.to(gaussians.means)), dtype=gaussians.means.dtype)
        painted = replace(gaussians, sh=sh[:, None].to(gaussians.device))
        with torch.no_grad():
            out = render(
                painted,
                poses_by_view(gaussians, world_from_link, 1)[0],
                cameras[index],
                outputs=("rgb", "alpha"),
                options=replace(options, background=(0.0, 0.0, 0.0)),
                backend=backend,
            )
        assert out.rgb is not None and out.alpha is not None
        share, alpha = out.rgb[0, 0].cpu(), out.alpha[0, 0].cpu()
        half = (share[..., :2] >= 0.5 * alpha[..., None]) & (alpha[..., None] >= 0.5)
        maps[index] = half.sum(-1).to(torch.uint8)
    return maps


def coverage_shares(maps: UInt8[Tensor, "*B"]) -> dict[str, float]:
    """The shares of `seen`, `extrapolated` and `invented` pixels."""
    total = max(maps.numel(), 1)
    names = {"seen": SEEN, "extrapolated": EXTRAPOLATED, "invented": INVENTED}
    return {name: int((maps == value).sum()) / total for name, value in names.items()}


def select_coverage(coverage: Coverage, rows: Tensor) -> Coverage:
    """The coverage of some Gaussians, by a boolean mask or an index tensor."""
    return replace(coverage, views=coverage.views[rows.cpu()])


def extend_coverage(coverage: Coverage, count: int, world_from_link: Float[Tensor, "L 4 4"]) -> Coverage:
    """The coverage of a world to which Gaussians (none of them seen, at the end) and resting links were added.

    Gaussians that went over to a new link keep their rows: it stood still while the footage was taken. `count` is how
    many Gaussians there are now. Raises `InputError` when there are fewer than before.
    """
    fresh, known = count - len(coverage), coverage.origins.shape[1]
    if fresh < 0 or len(world_from_link) < known or known == 0:
        raise InputError(
            f"a coverage of {len(coverage)} Gaussians on {known} links cannot become one of {count} on "
            f"{len(world_from_link)}; measure it again."
        )
    views = torch.cat([coverage.views, coverage.views.new_zeros(fresh, coverage.views.shape[1])])
    poses = world_from_link[known:].double().expand(len(coverage.origins), -1, 4, 4)
    added = _in_links(coverage.origins[:, 0].double(), poses)
    return Coverage(views, torch.cat([coverage.origins, added.float()], dim=1))


def save_coverage(coverage: Coverage, world: str | Path) -> None:
    """Write `coverage.safetensors` into a world folder, bound by hash to the `gaussians.ply` that stands there.

    The rows must be those of that file. Raises `InputError` when the folder holds no world.
    """
    folder = Path(world)
    bound = {"format": FORMAT, "gaussians": gaussians_hash(folder)}
    tensors = {"views": coverage.views.contiguous(), "origins": coverage.origins.contiguous()}
    with atomic_write(folder / COVERAGE_FILE) as stream:
        stream.write(safetensors.torch.save(tensors, metadata=bound))


def load_coverage(world: str | Path) -> Coverage | None:
    """The coverage of a world folder, or None where it has none.

    Raises `InputError` when the file is damaged or was measured on other Gaussians than those of the folder.
    """
    file = Path(world) / COVERAGE_FILE
    if not file.exists():
        return None
    try:
        with safe_open(existing_file(file), framework="pt") as parts:
            found = parts.metadata() or {}
            tensors = {name: parts.get_tensor(name) for name in ("views", "origins")}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"`{file}` is damaged: {error}. Reconstruct again, or delete it.") from error
    kinds = {name: tensor.dtype for name, tensor in tensors.items()}
    if found.get("format") != FORMAT or kinds != {"views": torch.uint8, "origins": torch.float32}:
        raise InputError(f"`{file}` is not of the format {FORMAT!r}. Delete it, or use the gworld that wrote it.")
    if found.get("gaussians") != gaussians_hash(file.parent):
        raise InputError(f"`{file}` belongs to another `gaussians.ply` than the one beside it. Delete it.")
    if not bool(tensors["origins"].isfinite().all()):
        raise InputError(f"`{file}` holds camera centres that are not finite. Delete it.")
    try:
        return Coverage(tensors["views"], tensors["origins"])
    except InputError as error:
        raise InputError(f"`{file}`: {error}") from error


def check_coverage(coverage: Coverage, gaussians: Gaussians) -> None:
    """Raise `InputError` when a coverage is not that of these Gaussians."""
    links = int(gaussians.links.max()) + 1 if len(gaussians) else 0
    if len(coverage) != len(gaussians) or (len(coverage.origins) and coverage.origins.shape[1] < links):
        raise InputError(
            f"the coverage is of {len(coverage)} Gaussians on {coverage.origins.shape[1]} links; there are "
            f"{len(gaussians)} on {links}. Measure it again."
        )


def _in_links(points: Float[Tensor, "C 3"], poses: Float[Tensor, "C L 4 4"]) -> Float[Tensor, "C L 3"]:
    """World points in the frame of each link at their time."""
    back = invert_transform(poses)
    return (back[..., :3, :3] @ points[:, None, :, None])[..., 0] + back[..., :3, 3]


def _within(
    means: Float[Tensor, "N 3"], origins: Float[Tensor, "V 3"], eye: Float[Tensor, " 3"], least: float
) -> Tensor:
    """[N,V]: whether origin and eye lie within the angle of cosine `least`, as seen from each mean."""
    # Counted from the eye the numbers are small, and float32 has digits enough for the squares that cancel below.
    origins, means = (origins - eye).float(), (means - eye).float()
    towards = torch.nn.functional.normalize(-means, dim=1)
    dot = towards @ origins.T - (towards * means).sum(1, keepdim=True)
    square = (means.square().sum(1, keepdim=True) + origins.square().sum(1)) - 2 * (means @ origins.T)
    return dot >= least * square.clamp_min(0).sqrt()
