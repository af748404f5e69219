"""What a turn is worth beside the simulator's success.

Sparse and dense rewards stay apart: `Rollout.rewards` is the simulator's success and nothing else, a
`RewardFunction` adds a dense reward for each turn. Checkpoints are chosen by the former alone.
"""

from vla_rl.rewards.reward import SUCCESS_REWARD, RewardFunction, SuccessReward, bound_dense_rewards
from vla_rl.rewards.scorers import RewardModelScorer, SimulatorScorer
from vla_rl.rewards.shaping import ShapedReward

__all__ = [
    "SUCCESS_REWARD",
    "RewardFunction",
    "RewardModelScorer",
    "ShapedReward",
    "SimulatorScorer",
    "SuccessReward",
    "bound_dense_rewards",
]
