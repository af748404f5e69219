"""The policy in a run folder or in one of its checkpoints, as it was written or not at all."""

from __future__ import annotations

import logging
from pathlib import Path

from vla_rl.config.errors import UserError
from vla_rl.runtime.files import read_json
from vla_rl.runtime.new_run import CONFIG, PROVENANCE
from vla_rl.runtime.run_folder import CHECKPOINTS, newest_checkpoint, saved_checkpoints

POLICY = "policy"
MANIFEST = "manifest.json"
logger = logging.getLogger(__name__)


def policy_of_run(folder: Path) -> Path | None:
    """The policy of the run, checkpoint or checkpoint's policy in `folder`; None where it is none of these.

    Of a run it is that of the newest checkpoint that is whole, as resuming takes it; the log names the damaged ones.
    Raises UserError for a run without a checkpoint yet, and for a checkpoint that is not as it was written.
    """
    from vla_rl.runtime.checkpoint import CheckpointError, find_damage, verify_checkpoint

    if (folder / MANIFEST).is_file() or (
        folder.name.startswith("iteration-") and (folder / POLICY).is_dir()
    ):
        verify_checkpoint(folder)
        return folder / POLICY
    if folder.name == POLICY and (folder.parent / MANIFEST).is_file():
        damage = find_damage(folder.parent, below=POLICY)
        if damage:
            raise CheckpointError(f"the policy of checkpoint {folder.parent} is damaged: {damage}")
        return folder
    # a fine-tuning has its policy beside its checkpoints once it is finished
    if (folder / POLICY / CONFIG).is_file():
        return folder / POLICY
    if not (folder / CHECKPOINTS).is_dir() and not _is_run(folder):
        return None
    newest = newest_checkpoint(folder)
    if newest is None or not (newest / POLICY).is_dir():
        raise UserError(_no_policy(folder))
    if newest != saved_checkpoints(folder)[-1][1]:
        logger.warning("%s: takes %s, the newest checkpoint that is whole", folder, newest.name)
    return newest / POLICY


def _is_run(folder: Path) -> bool:
    return (folder / PROVENANCE).is_file() and (folder / CONFIG).is_file()


def _no_policy(folder: Path) -> str:
    kind = read_json(folder / PROVENANCE).get("config_type") if _is_run(folder) else None
    if kind == "SFTConfig":
        return (
            f"{folder} is a fine-tuning that is not finished: the same `vla-rl sft` command goes on"
        )
    if kind == "RewardModelConfig":
        return f"{folder} is the run of a reward model and holds no policy: give a run of `vla-rl train` or `sft`"
    return f"{folder} is a run without a checkpoint yet: let it train, or give a policy folder"
