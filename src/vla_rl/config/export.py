"""Writing a policy for other software."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_rl.config.bounds import Config, Positive
from vla_rl.config.errors import require


@dataclass(frozen=True)
class ExportConfig(Config):
    """Write a policy for other software: merged in OpenVLA's format, or its adapters in PEFT's."""

    checkpoint: str
    """A run folder, one of its checkpoints, a policy folder or a hub id."""
    out: str = "runs/export"
    """Folder to write; must not exist, or be empty."""
    merged: bool = False
    """One checkpoint in OpenVLA's format, adapters merged into the weights (the default)."""
    adapter: bool = False
    """The adapters alone, in PEFT's format."""
    kind: str = ""
    """Class of the policy, openvla or openvla-oft, where the checkpoint does not say it itself."""
    base: str = ""
    """Folder or hub id of the model that the adapters belong to, where it is not the one they name themselves."""
    unnorm_key: str = ""
    """Dataset whose action statistics the policy un-normalises with, where the checkpoint has several."""
    dtype: Literal["stored", "float32", "bfloat16"] = "stored"
    """Precision of merged weights; stored takes that of the base's files, float32 loses nothing of a small update."""
    shard_gigabytes: Positive = 5.0
    """Largest file of weights, in GB (10^9 bytes)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not (self.merged and self.adapter),
            "export: --merged and --adapter are two forms, give one of them",
        )
