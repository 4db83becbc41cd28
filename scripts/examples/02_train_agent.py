"""Train a small agent in a world, with stable-baselines3 (`pip install stable-baselines3`).

python scripts/examples/01_simulate.py demo && python scripts/examples/02_train_agent.py demo/world
"""

import sys

import gymnasium
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy

import gworld.simulate.env  # noqa: F401 - registers the ids

env = gymnasium.make("gworld/Reach-v0", world=sys.argv[1], limit=40, step=0.1)
model = PPO("MlpPolicy", env, n_steps=400, batch_size=100, learning_rate=1e-3, gamma=0.95, seed=0)
print("before", evaluate_policy(model, model.get_env(), n_eval_episodes=20))
model.learn(8000)
print("after", evaluate_policy(model, model.get_env(), n_eval_episodes=20))
