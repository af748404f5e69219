"""What a folder is: finds the policy in a run folder, a checkpoint or a policy folder, and an adapter's base.

Importing this module imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
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

OFT_PARTS = {
    "action_head": "actions come from an L1 or diffusion head, and the language model's own head is untrained",
    "noisy_action_projector": "actions come from a diffusion head",
    "proprio_projector": "it reads proprioception (use_proprio)",
    "vision_backbone": "its vision towers are conditioned on the instruction (FiLM, use_film)",
}
"""What OpenVLA-OFT writes beside a model that does more than predict action tokens, by how the file's name begins."""
OFT_ENDINGS = (".pt", ".safetensors")
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


def refuse_oft(folder: Path, kind: str = "", listed: Sequence[str] = ()) -> None:
    """Raise UserError for a folder of OpenVLA-OFT that is not played: one with parts beside the model.

    kind: what class of policy the user says it is. listed: names of files that were not fetched.

    One that predicts action tokens has `lora_adapter` at most for a sign, and otherwise is a complete OpenVLA
    checkpoint, which plays at random as one: the user has to say it.
    Source: moojink/openvla-oft@213c5ff, vla-scripts/finetune.py `save_training_checkpoint`.
    """
    names = {*listed, *(path.name for path in folder.glob("*.*"))}
    parts = sorted(
        name for name in names if name.startswith(tuple(OFT_PARTS)) and name.endswith(OFT_ENDINGS)
    )
    adapter = folder / OFT_ADAPTER
    has_adapter = (adapter / ADAPTER_CONFIG_FILE).is_file()
    signs = ", ".join([*parts, *([f"{OFT_ADAPTER}/"] if has_adapter else [])])
    start = (
        f"Its adapter alone, without them, can be loaded as a start for fine-tuning: give {adapter}, and --policy.base "
        "if the model it belongs to is not the one it names"
    )
    if parts:
        why = "; ".join(dict.fromkeys(_reason(name) for name in parts))
        remedy = (
            "Take a checkpoint that was trained on action tokens (use_l1_regression, use_diffusion, use_proprio and "
            "use_film all False), with --policy.kind openvla-oft, or one of plain OpenVLA"
        )
        raise UserError(
            f"{folder} is a folder of OpenVLA-OFT ({signs}), which is not supported: {why}. {remedy}."
            f"{' ' + start if has_adapter else ''}"
        )
    if has_adapter and not kind:
        raise UserError(
            f"{folder} is a folder of OpenVLA-OFT ({signs}), and is not supported as plain OpenVLA: give --policy.kind "
            f"openvla-oft if it was trained on action tokens (without L1 or diffusion head). {start}"
        )


def _reason(name: str) -> str:
    return next(why for part, why in OFT_PARTS.items() if name.startswith(part))


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
