"""What a turn is worth beside the simulator's success.

Sparse and dense rewards stay apart. `Rollout.rewards` is the simulator's success and nothing else; a `RewardFunction`
adds a dense reward for each turn. Checkpoints are chosen by the former alone.

A new reward is one file with a builder and one entry in REWARDS (registry.py).
"""

from vla_rl.rewards.process_reward import RewardModelScorer
from vla_rl.rewards.reward import SUCCESS_REWARD, RewardFunction
from vla_rl.rewards.shaping import ShapedReward
from vla_rl.rewards.simulator_reward import SimulatorScorer
from vla_rl.rewards.success_reward import SuccessReward

__all__ = [
    "SUCCESS_REWARD",
    "RewardFunction",
    "RewardModelScorer",
    "ShapedReward",
    "SimulatorScorer",
    "SuccessReward",
]
