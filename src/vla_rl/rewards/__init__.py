"""What a turn is worth beside the simulator's success.

Sparse and dense rewards stay apart: `Rollout.rewards` is the simulator's success and nothing else, a
`RewardModel` adds a dense reward for each turn. Checkpoints are chosen by the former alone.
"""

from vla_rl.rewards.reward import SUCCESS_REWARD, RewardModel, SuccessReward, bound_dense_rewards
from vla_rl.rewards.scorers import JudgeScorer, SimulatorScorer
from vla_rl.rewards.shaping import ShapedReward

__all__ = [
    "SUCCESS_REWARD",
    "JudgeScorer",
    "RewardModel",
    "ShapedReward",
    "SimulatorScorer",
    "SuccessReward",
    "bound_dense_rewards",
]
