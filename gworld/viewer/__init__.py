"""The interactive viewer: worlds, rollouts and live agents in the browser."""
