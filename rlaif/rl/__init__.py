"""Reinforcement learning from a reward: the formulas (`math`), the KL controllers (`kl`), the rollout and
PPO.

Nothing is imported here, so that `rlaif.rl.kl` can be had without torch.
"""
