"""Serve a policy from an environment of its own, for `gworld simulate --policy served:5555`.

python 03_serve_policy.py 5555

Needs numpy alone, so it runs in whatever environment the policy wants (LeRobot's, say). Give `act` your policy: it gets
the agent's name, `joints` (rad or m), `images` {camera: uint8 [H, W, 3]}, `time` and the world's number, and returns a
number for each component of the agent's action (None: not known).
"""

import base64
import json
import socketserver
import sys

import numpy as np


def act(observation):
    """Hold still: joints' targets where they are. Put your policy here.

    With LeRobot: `policy.select_action({"observation.state": .., "observation.images.front": ..})`, loaded outside.
    """
    return observation["joints"]


def open_server(function, port):
    """A server on this machine that answers each line of JSON with what `function` says."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            for line in self.rfile:
                asked = json.loads(line)
                for name, picture in asked["images"].items():
                    data = np.frombuffer(base64.b64decode(picture["data"]), np.uint8)
                    asked["images"][name] = data.reshape(picture["shape"])
                answer = json.dumps({"action": [None if x is None else float(x) for x in function(asked)]})
                self.wfile.write(answer.encode() + b"\n")

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = daemon_threads = True

    return Server(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    open_server(act, int(sys.argv[1])).serve_forever()
