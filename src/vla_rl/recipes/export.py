"""Write a trained policy for other software.

vla-rl export runs/first --out runs/export             one checkpoint in the model's format, adapters merged
vla-rl export runs/first --out runs/adapter --adapter  the adapters alone, in PEFT's format
"""

from __future__ import annotations

from pathlib import Path

import torch

from vla_rl.config import ExportConfig, PolicyConfig, UserError
from vla_rl.policies.huggingface import exporting as huggingface
from vla_rl.policies.huggingface.description import FAMILY
from vla_rl.policies.huggingface.loading import stored_dtype as huggingface_dtype
from vla_rl.policies.openvla.exporting import Savable, export_adapter, export_merged
from vla_rl.policies.openvla.loading import find_source, stored_dtype
from vla_rl.policies.policy import Policy
from vla_rl.policies.registry import POLICIES, family_of, load_policy
from vla_rl.runtime.files import require_writable, whole_folder
from vla_rl.runtime.locate import locate_policy
from vla_rl.training.epoch_state import require_unused


def export(config: ExportConfig) -> Path:
    """Write `config.out`, whole or not at all, and return it.

    Computes on the CPU, with the weights in the precision they are stored in, so that a 7B model in bfloat16 takes
    15 GB of memory. Raises UserError for a policy that cannot be read, one without adapters where those are asked
    for, and an `out` that is in use or cannot be written.
    """
    out = require_writable(Path(config.out), "folder")
    require_unused(out)
    folder = str(locate_policy(Path(config.checkpoint))[0])
    settings = PolicyConfig(
        checkpoint=folder,
        kind=config.kind,
        base=config.base,
        unnorm_key=config.unnorm_key,
        device="cpu",
    )
    if family_of(folder, config.base, config.kind) is POLICIES[FAMILY]:
        stored = huggingface_dtype(folder, config.base)
    else:
        stored = stored_dtype(find_source(folder, config.base, kind=config.kind))
    policy = load_policy(folder, settings, dtype=stored)
    with whole_folder(out) as partial:
        _write(policy, partial, config)
    return out


def _write(policy: Policy, folder: Path, config: ExportConfig) -> None:
    """In the format of the policy's family."""
    dtype = None if config.dtype == "stored" else getattr(torch, config.dtype)
    shard_bytes = int(config.shard_gigabytes * 1e9)
    if policy.kind == FAMILY and isinstance(policy, huggingface.Savable):
        if config.adapter:
            huggingface.export_adapter(policy, folder)
        else:
            huggingface.export_merged(policy, folder, dtype, shard_bytes)
    elif isinstance(policy, Savable):
        if config.adapter:
            export_adapter(policy, folder)
        else:
            export_merged(policy, folder, dtype, shard_bytes)
    else:
        raise UserError(f"a policy of type {policy.kind!r} cannot be exported")
