"""True pixels: what our own renderer sees from where a visitor stands, behind everything else in the browser."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import viser
from jaxtyping import Float, UInt8

from gworld.errors import GWorldError
from gworld.geometry import transform_from_pose
from gworld.refine.sample import changed_share
from gworld.render.api import RenderOptions
from gworld.render.select import render
from gworld.render.video import as_uint8
from gworld.scene.cameras import Cameras, intrinsics, resize_cameras
from gworld.scene.gaussians import gaussians_to
from gworld.viewer.stage import Stage

STILL_WIDTH, LEAST_WIDTH = 1280, 160
SETTLED = 0.25
"""Seconds without change after which a picture is drawn in full."""
AIM = 0.05
"""Seconds that a picture should take while things move; its width adapts."""
FILM_WIDTH = 640
REFINING = 1.0
"""Seconds that refining a picture should take; the width at which it is done adapts."""
REFINED_WIDTHS = (64, 640)
Refine = Callable[
    [Float[torch.Tensor, "L 4 4"], Cameras, RenderOptions],
    tuple[Float[torch.Tensor, "H W 3"], Float[torch.Tensor, "H W 3"]],
]
"""(world_from_link, one camera, how it is drawn) -> the refined picture and the render that it was made of, in 0..1."""
WHITE = (1.0, 1.0, 1.0)


@dataclass
class _Eye:
    """What a visitor was shown last."""

    seen: tuple[float, ...] = ()
    changed: float = 0.0
    full: bool = False
    refined: bool = False


class TruePixels:
    """Streams rendered pictures to every visitor while `on`; a thread of its own, which ends with `close`.

    `width` is that of pictures of moving things, found by measuring; `note` says what it costs or why it failed. With
    `refining`, what no longer changes is refined; `open_refine` loads what does that, when it is first wished for.
    """

    def __init__(
        self, stage: Stage, server: viser.ViserServer, open_refine: Callable[[], Refine] | None = None
    ) -> None:
        self.stage, self.server = stage, server
        self.on, self.width, self.note = False, 480, ""
        self.refining, self._open_refine = False, open_refine
        self._refine: Refine | None = None
        self._refined_width = 256
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._drawing = RenderOptions(background=stage.world.background or WHITE)
        self._gaussians = gaussians_to(stage.world.gaussians, device=device)
        self._eyes: dict[int, _Eye] = {}
        self._ended = threading.Event()
        self._one = threading.Lock()
        self._thread = threading.Thread(target=self._stream, name="true pixels", daemon=True)
        self._thread.start()

    def switch(self, on: bool) -> None:
        """Begin, or leave the browser to its own splats."""
        self.on = on
        self.stage.draw_splats(not on)
        if not on:
            for client in self.server.get_clients().values():
                client.scene.set_background_image(None)
        self._eyes.clear()

    def refine(self, on: bool) -> None:
        """Begin to refine what stands still, or leave it as it is drawn."""
        self.refining = on
        self._eyes.clear()

    def picture(self, client: viser.ClientHandle, width: int) -> UInt8[np.ndarray, "H W 3"]:
        """What a visitor looks at, drawn and, where wished, refined; `width` in pixels is cut to that of the window."""
        poses, camera = self._poses(), camera_of(client, width)
        return as_uint8(self._refined(poses, camera)[0] if self.refining else self._drawn(poses, camera))

    def draw(self, world_from_link: Float[torch.Tensor, "L 4 4"], cameras: Cameras) -> UInt8[np.ndarray, "H W 3"]:
        """The world with its links somewhere, seen by one camera."""
        return as_uint8(self._drawn(world_from_link, cameras))

    def _poses(self) -> Float[torch.Tensor, "L 4 4"]:
        return transform_from_pose(torch.from_numpy(self.stage.poses.copy()).float())

    def _drawn(self, world_from_link: Float[torch.Tensor, "L 4 4"], cameras: Cameras) -> Float[torch.Tensor, "H W 3"]:
        gaussians = self._gaussians
        poses = world_from_link.to(gaussians.means)
        cameras = replace(cameras, K=cameras.K.to(poses), world_from_camera=cameras.world_from_camera.to(poses))
        with self._one, torch.no_grad():
            rgb = render(gaussians, poses, cameras, outputs=("rgb",), options=self._drawing).rgb
        assert rgb is not None
        return rgb[0, 0].cpu()

    def _refined(
        self, poses: Float[torch.Tensor, "L 4 4"], camera: Cameras
    ) -> tuple[Float[torch.Tensor, "H W 3"], str]:
        """The world refined, and what to say of it.

        The refiner works on as few pixels as it has time for; what it changed there is laid onto the full picture, so
        that what it leaves alone stays as sharp as it is.
        """
        begin, full = time.monotonic(), self._drawn(poses, camera)
        if self._open_refine is None:
            return full, "not refined: an edited world is, once it is saved and opened anew"
        if self._refine is None:
            try:
                self._refine, begin = self._open_refine(), time.monotonic()
            except GWorldError as error:
                return full, f"not refined: {error}"
        width = min(self._refined_width, camera.width)
        small = resize_cameras(camera, width, max(round(width * camera.height / camera.width), 16))
        with torch.no_grad():
            picture, render = self._refine(poses, small, self._drawing)
        change = (picture - render).movedim(-1, 0)[None]
        share = changed_share(change.abs().amax(1))
        change = torch.nn.functional.interpolate(change, full.shape[:2], mode="bilinear", align_corners=False)
        took = time.monotonic() - begin
        low, high = REFINED_WIDTHS
        self._refined_width = int(min(max(width * min(max((REFINING / took) ** 0.5, 0.5), 1.5), low), high))
        said = f"{100 * share:.1f} % of the pixels refined, at {small.width} x {small.height} in {1000 * took:.0f} ms"
        return (full + change[0].movedim(0, -1)).clamp(0, 1), said

    def update(self) -> None:
        """Draw the world that is on the stage now; the refiner knows another one."""
        self._open_refine = self._refine = None
        self._gaussians = gaussians_to(self.stage.world.gaussians, device=self._gaussians.device)
        self._eyes.clear()

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join(timeout=5)

    def _stream(self) -> None:
        while not self._ended.wait(0.015):
            if not self.on:
                continue
            clients = self.server.get_clients()
            for number in set(self._eyes) - set(clients):
                self._eyes.pop(number, None)
            for number, client in clients.items():
                try:
                    self._serve(self._eyes.setdefault(number, _Eye()), client)
                except GWorldError as error:
                    self.note = str(error)

    def _serve(self, eye: _Eye, client: viser.ClientHandle) -> None:
        """Draw for one visitor if anything changed: coarsely, and in full once it has settled."""
        now, seen = time.monotonic(), self._seen(client)
        if seen != eye.seen:
            eye.seen, eye.changed, eye.full, eye.refined = seen, now, False, False
        elif eye.full and self.refining and not eye.refined:
            self._serve_refined(eye, client)
            return
        elif eye.full or now - eye.changed < SETTLED:
            return
        full = now - eye.changed >= SETTLED
        picture = self.draw(self._poses(), camera_of(client, STILL_WIDTH if full else self.width))
        took = time.monotonic() - now
        client.scene.set_background_image(picture, format="jpeg", jpeg_quality=92 if full else 75)
        eye.full = full
        if not full:
            factor = min(max((AIM / max(took, 1e-4)) ** 0.5, 0.7), 1.25)
            self.width = int(min(max(self.width * factor, LEAST_WIDTH), STILL_WIDTH))
        self.note = f"{picture.shape[1]} x {picture.shape[0]} in {1000 * took:.0f} ms"

    def _serve_refined(self, eye: _Eye, client: viser.ClientHandle) -> None:
        """Refine what a visitor sees in full already; one that cannot be refined is not tried again."""
        eye.refined = True
        picture, self.note = self._refined(self._poses(), camera_of(client, STILL_WIDTH))
        if self.on and self.refining:
            client.scene.set_background_image(as_uint8(picture), format="jpeg", jpeg_quality=92)

    def _seen(self, client: viser.ClientHandle) -> tuple[float, ...]:
        """All that a picture depends on."""
        camera = client.camera
        place = (*camera.position.tolist(), *camera.wxyz.tolist(), camera.fov, camera.image_width, camera.image_height)
        return (*place, float(self.stage.sent))


def view_of(client: viser.ClientHandle | None) -> Cameras | None:
    """A visitor's view as a camera for films; None where nobody asked."""
    return None if client is None else camera_of(client, FILM_WIDTH)


def camera_of(client: viser.ClientHandle, width: int) -> Cameras:
    """A visitor's view as a camera of at most `width` pixels across."""
    camera = client.camera
    across, down = max(int(camera.image_width), 1), max(int(camera.image_height), 1)
    columns = min(max(min(width, across), 16), 4096)
    rows = min(max(round(columns * down / across), 16), 4096)
    pose: Float[np.ndarray, " 7"] = np.concatenate([camera.position, camera.wxyz])
    world_from_camera = transform_from_pose(torch.from_numpy(pose).float())[None]
    fov = min(max(float(camera.fov), 0.02), 3.0)
    return Cameras(intrinsics(columns, rows, fov)[None], world_from_camera, columns, rows)
