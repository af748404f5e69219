"""What a folder is: finds the policy in a run folder, a checkpoint or a policy folder, and an adapter's base.

Importing this module imports no torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vla_rl.config import EnvConfig, UserError
from vla_rl.config.serialize import from_json
from vla_rl.runtime.bases import ADAPTER_CONFIG_FILE
from vla_rl.runtime.external import fault
from vla_rl.runtime.files import read_json
from vla_rl.runtime.hub import hidden_id, hub_id
from vla_rl.runtime.run_folder import ENVIRONMENT_OF_RUN, training_run
from vla_rl.runtime.run_policy import policy_of_run

OFT_PARTS = ("action_head*", "proprio_projector*", "noisy_action_projector*", "vision_backbone*")
OFT_ADAPTER = "lora_adapter"


def locate_policy(checkpoint: Path) -> tuple[Path, EnvConfig | None]:
    """Find the policy in a run (its newest checkpoint), a checkpoint or a policy folder, and its run's environment.

    Ids of hub repositories are returned as they are. Raises UserError where there is no policy, and where the run's
    own files are damaged.
    """
    if hub_id(checkpoint) is not None:
        return checkpoint, None
    if not os.path.exists(checkpoint):  # not Path.exists, which raises for names that are too long
        raise UserError(
            f"{checkpoint} does not exist: expected a run folder, a checkpoint or a policy folder"
            f"{hidden_id(checkpoint)}"
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
    if any((checkpoint / name).is_file() for name in ("config.json", ADAPTER_CONFIG_FILE)):
        return checkpoint, env
    refuse_oft(checkpoint)
    raise UserError(
        f"{checkpoint} holds no policy: expected config.json with model.safetensors, adapter_config.json, a folder "
        f"`policy`, or a run{hidden_id(checkpoint)}"
    )


def refuse_oft(folder: Path) -> None:
    """Raise UserError for a folder of OpenVLA-OFT, whose parts beside the model this project does not play.

    Without the signs looked for here such a folder is a complete OpenVLA checkpoint, which plays at random.
    Source: moojink/openvla-oft@213c5ff, vla-scripts/finetune.py `save_training_checkpoint`.
    """
    parts = sorted(
        path.name
        for pattern in OFT_PARTS
        for ending in (".pt", ".safetensors")
        for path in folder.glob(f"{pattern}{ending}")
    )
    adapter = folder / OFT_ADAPTER
    has_adapter = (adapter / ADAPTER_CONFIG_FILE).is_file()
    if not parts and not has_adapter:
        return
    signs = ", ".join([*parts, *([f"{OFT_ADAPTER}/"] if has_adapter else [])])
    remedy = (
        f"Its adapter alone, without them, can be loaded as a start for fine-tuning: give {adapter}, and --policy.base "
        "if the model it belongs to is not the one it names"
        if has_adapter
        else "Take a checkpoint of OpenVLA that predicts action tokens, openvla/openvla-7b for example"
    )
    raise UserError(
        f"{folder} is a folder of OpenVLA-OFT ({signs}). Its parallel decoding, and action heads, proprioception and "
        f"FiLM in files of their own, are not supported. {remedy}"
    )


def _env_of_run(folder: Path) -> EnvConfig | None:
    """The environment of the training run or the fine-tuning in `folder`, if it is known."""
    path = folder / ENVIRONMENT_OF_RUN
    if path.is_file():
        return _env(read_json(path), path, "")
    path = folder / "config.json"
    if not (folder / "run.json").is_file() or not path.is_file():
        return None
    kind = read_json(folder / "run.json").get("config_type")
    saved = read_json(path)
    if not saved or (kind == "TrainConfig" and "env" not in saved):
        raise fault(path, "", 'the key "env" of a training run', saved, remedy="")
    return _env(saved["env"], path, "env") if "env" in saved else None


def _env(saved: Any, path: Path, key: str) -> EnvConfig:
    return from_json(EnvConfig, saved, key, source=path)
