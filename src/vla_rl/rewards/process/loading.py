"""Finds and loads a process reward model of any kind."""

from __future__ import annotations

from pathlib import Path

from vla_rl.config.errors import UserError
from vla_rl.rewards.process.model import TrainableRewardModel, description_file, read_description
from vla_rl.runtime.hub import checkpoint_folder

REWARD_MODEL_FOLDER = "reward_model"
"""Where a run of `vla-rl reward train` keeps what it trained."""
OLD_REWARD_MODEL_FOLDER = "judge"
"""Its name before."""


def reward_model_folder(folder: Path | str) -> Path:
    """`folder` itself, or the reward model in it where it is a run folder of `vla-rl reward train`.

    Of a hub id, the folder it is fetched to.
    """
    folder = checkpoint_folder(folder)
    inside = (folder / name for name in (REWARD_MODEL_FOLDER, OLD_REWARD_MODEL_FOLDER))
    return next((place for place in inside if description_file(place) is not None), folder)


def load_reward_model(folder: Path | str, device: str = "auto") -> TrainableRewardModel:
    """Load a reward model that `save` wrote, of either backbone; no code comes from the folder.

    Raises UserError for what is no reward model, is damaged, or needs a package that is not installed.
    """
    folder = reward_model_folder(folder)
    try:
        return _load(folder, device)
    except UserError as error:
        if str(folder) in str(error):
            raise
        raise UserError(f"the reward model in {folder} cannot be loaded: {error}") from error


def _load(folder: Path, device: str) -> TrainableRewardModel:
    # here, so that neither backbone is imported for the other, and transformers (seconds) only where it is needed
    if read_description(folder).backbone == "tiny":
        from vla_rl.rewards.process.tiny import TinyProcessRewardModel

        return TinyProcessRewardModel.load(folder, device)
    from vla_rl.rewards.process.vlm import VlmProcessRewardModel

    return VlmProcessRewardModel.load(folder, device)
