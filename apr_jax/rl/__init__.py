"""Reinforcement learning on the engine's own rollouts: rewards, advantages and losses, packed groups, and the gate before them."""
