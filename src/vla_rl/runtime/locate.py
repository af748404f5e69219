"""Finds the policy in a run folder, a checkpoint or a policy folder."""

from __future__ import annotations

from pathlib import Path

from vla_rl.config import EnvConfig, TrainConfig, UserError
from vla_rl.config.serialize import from_json
from vla_rl.runtime.external import fault
from vla_rl.runtime.files import read_json
from vla_rl.runtime.hub import hub_id
from vla_rl.runtime.run_folder import ENVIRONMENT_OF_RUN, training_run


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
    if (checkpoint / "checkpoints").is_dir():
        saved = sorted((checkpoint / "checkpoints").glob("iteration-*/policy"))
        if not saved:
            raise UserError(
                f"{checkpoint} is a run without a checkpoint yet: let it train, or give a policy folder"
            )
        return saved[-1], env
    if (checkpoint / "policy" / "config.json").is_file():
        return checkpoint / "policy", env
    if any((checkpoint / name).is_file() for name in ("config.json", "adapter_config.json")):
        return checkpoint, env
    raise UserError(
        f"{checkpoint} holds no policy: expected config.json with model.safetensors, adapter_config.json, a folder "
        "`policy`, or a run"
    )


def _env_of_run(folder: Path) -> EnvConfig | None:
    """The environment of the training run or the fine-tuning in `folder`, if it is known."""
    if (folder / ENVIRONMENT_OF_RUN).is_file():
        path = folder / ENVIRONMENT_OF_RUN
        return from_json(EnvConfig, read_json(path), source=path)
    if not (folder / "run.json").is_file() or not (folder / "config.json").is_file():
        return None
    path = folder / "config.json"
    saved, kind = read_json(path), read_json(folder / "run.json").get("config_type")
    if "env" in saved:
        return from_json(EnvConfig, saved["env"], "env", source=path)
    if not saved or kind == TrainConfig.__name__:
        raise fault(
            path, "", "the configuration of a run", saved, "Fix the file, or take another run"
        )
    return None
