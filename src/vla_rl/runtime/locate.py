"""Finds the policy in a run folder, a checkpoint or a policy folder."""

from __future__ import annotations

import json
from pathlib import Path

from vla_rl.config import EnvConfig, UserError
from vla_rl.config.serialize import from_json
from vla_rl.runtime.files import read_json
from vla_rl.runtime.hub import hub_id
from vla_rl.runtime.run_folder import ENVIRONMENT_OF_RUN, training_run
from vla_rl.runtime.run_policy import policy_of_run


def locate_policy(checkpoint: Path) -> tuple[Path, EnvConfig | None]:
    """Find the policy in a run (its newest checkpoint), a checkpoint or a policy folder, and its run's environment.

    Ids of hub repositories are returned as they are.
    """
    if hub_id(checkpoint) is not None:
        return checkpoint, None
    if not checkpoint.exists():
        raise UserError(
            f"{checkpoint} does not exist: expected a run folder, a checkpoint or a policy folder"
        )
    if not checkpoint.is_dir():
        raise UserError(
            f"{checkpoint} is a file: expected a run folder, a checkpoint or a policy folder"
        )
    checkpoint = training_run(checkpoint)
    env = next(
        (found for f in (checkpoint, *checkpoint.parents[:3]) if (found := _env_of_run(f))), None
    )
    found = policy_of_run(checkpoint)
    if found is not None:
        return found, env
    if any((checkpoint / name).is_file() for name in ("config.json", "adapter_config.json")):
        return checkpoint, env
    raise UserError(
        f"{checkpoint} holds no policy: expected config.json with model.safetensors, adapter_config.json, a folder "
        "`policy`, or a run"
    )


def _env_of_run(folder: Path) -> EnvConfig | None:
    """The environment of the training run or the fine-tuning in `folder`, if it is known."""
    if (folder / ENVIRONMENT_OF_RUN).is_file():
        return from_json(EnvConfig, read_json(folder / ENVIRONMENT_OF_RUN))
    if not (folder / "run.json").is_file() or not (folder / "config.json").is_file():
        return None
    saved = json.loads((folder / "config.json").read_text())
    return from_json(EnvConfig, saved["env"]) if "env" in saved else None
