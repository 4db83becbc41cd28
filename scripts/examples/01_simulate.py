"""Two agents on a table, told by numbers: a world made from nothing, a run, a counterfactual, a plan, an environment.

python scripts/examples/01_simulate.py [FOLDER]

A world is Gaussians on links, and entities that own the links. An agent without a robot model moves by what the
components of its action are called: `x/velocity` slides it along the world's x. With a URDF they are its joints.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

import gworld as gw
from gworld.data.shapes import box, cylinder, plain
from gworld.formats.world import save_world
from gworld.scene.cameras import Cameras, intrinsics, look_at
from gworld.scene.gaussians import join_gaussians
from gworld.scene.world import ActionSpec, Entity, World
from gworld.simulate.engine import Engine, EngineOptions
from gworld.simulate.observe import Observer
from gworld.simulate.plan import plan_actions
from gworld.simulate.tasks import Judged, Task


def two_pucks() -> World:
    """A table, a red and a blue puck, one camera; metres, +Z up."""
    parts = [
        box((1.2, 0.8, 0.02), 0.03, plain(0.75, 0.7, 0.6), (0, 0, -0.01)),
        cylinder(0.06, 0.05, 0.012, plain(0.8, 0.2, 0.15)),
        cylinder(0.06, 0.05, 0.012, plain(0.15, 0.3, 0.8)),
    ]
    body = join_gaussians([replace(part, links=torch.full_like(part.links, link)) for link, part in enumerate(parts)])
    told = ActionSpec(("x/velocity", "y/velocity"), ("m/s", "m/s"), (-0.5, -0.5), (0.5, 0.5))
    links = (
        gw.Link("world"),
        gw.Link("red", (-0.3, 0.0, 0.025, 1, 0, 0, 0), 0),
        gw.Link("blue", (0.3, 0.0, 0.025, 1, 0, 0, 0), 0),
    )
    entities = (
        Entity("scene", "static", (0,)),
        Entity("red", "agent", (1,), told),
        Entity("blue", "agent", (2,), told),
    )
    pose = look_at(torch.tensor([[0.0, -1.1, 0.9]]), torch.zeros(1, 3))
    camera = Cameras(intrinsics(320, 240, 0.8)[None], pose, 320, 240, names=("front",))
    return World(body, links, entities, camera, metric=True)


def main(folder: Path) -> None:
    """Run all five and print what came of each."""
    world = two_pucks()
    save_world(world, folder / "world", overwrite=True)

    # One call: 30 steps of 1/30 s; what nobody says of blue is unknown, and it stays.
    rollout = gw.simulate(world, {"red": torch.tensor([[0.3, 0.0]]).expand(30, 2)})
    print("red went", (rollout.link_poses[-1, 1, :3] - rollout.link_poses[0, 1, :3]).tolist())

    # Step by step, three worlds at once; every state can be drawn, saved and gone on from.
    engine = Engine(world, options=EngineOptions(worlds=3))
    look = Observer(world, outputs=("rgb", "link_id", "scene_flow"))
    for _ in range(15):
        engine.step({"red": torch.tensor([[0.3, 0.0], [0.0, 0.3], [0.0, -0.3]])})
        frame = look(engine.motion)
    gw.write_video(frame.rgb[:, 0], folder / "worlds.mp4", 1.0)
    print(
        "pictures", tuple(frame.rgb.shape), "fastest pixel", float(frame.scene_flow.norm(dim=-1).max()), "m per frame"
    )

    # Look ahead in the model: both agents together, 48 futures at once.
    judged = Judged(Task("reach", ("red",), target=(0.3, 0.0, 0.025)), world)
    judged.draw(engine.generators)
    plan = plan_actions(engine, judged.score(), ["red", "blue"])
    print("the plan gains", round(plan.score, 3), "m; doing nothing", round(plan.idle, 3), "m")

    print(f"next: gworld simulate --world {folder / 'world'} --policy red=random,blue=extreme --out {folder / 'a.mp4'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="gworld-")))
