"""Write a trained policy for other software.

vla-rl export runs/first --out runs/export             one checkpoint in OpenVLA's format, adapters merged
vla-rl export runs/first --out runs/adapter --adapter  the adapters alone, in PEFT's format
"""

from __future__ import annotations

from pathlib import Path

import torch

from vla_rl.config import ExportConfig, PolicyConfig, UserError
from vla_rl.policies.openvla.exporting import Savable, export_adapter, export_merged
from vla_rl.policies.openvla.loading import find_source, stored_dtype
from vla_rl.policies.registry import load_policy
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
    source = find_source(folder, config.base, kind=config.kind)
    settings = PolicyConfig(
        checkpoint=folder,
        kind=config.kind,
        base=config.base,
        unnorm_key=config.unnorm_key,
        device="cpu",
    )
    policy = load_policy(folder, settings, dtype=stored_dtype(source))
    if not isinstance(policy, Savable):
        raise UserError(f"{folder} is a policy of type {policy.kind!r}, expected one of OpenVLA's")
    with whole_folder(out) as partial:
        if config.adapter:
            export_adapter(policy, partial)
        else:
            dtype = None if config.dtype == "stored" else getattr(torch, config.dtype)
            export_merged(policy, partial, dtype, int(config.shard_gigabytes * 1e9))
    return out
