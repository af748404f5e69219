"""Giving a policy, a reward model or a dataset to others, and looking at episodes in rerun's viewer."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vla_rl.config.bounds import Config, Whole
from vla_rl.config.errors import require

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True)
class PushConfig(Config):
    """Push a policy, a reward model or a dataset to the Hugging Face hub, with a card written from its run."""

    source: str
    """A run folder, one of its checkpoints, a policy folder, a reward model's folder or a dataset's."""
    repository: str
    """The hub's repository, owner/name. It is made if there is none."""
    to_folder: str = ""
    """Write the repository's files into this folder instead of sending them. It must not exist, or be empty."""
    public: bool = False
    """Make a new repository public. One that exists stays as it is."""
    license: str = ""
    """Licence of what is pushed, as the hub writes it: apache-2.0, mit, cc-by-4.0. Empty says that none was given."""
    base: str = ""
    """Hub id of the model that adapters or a reward model belong to, where they name a folder of this machine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            _HUB_NAME.fullmatch(self.repository) is not None,
            f"push: the repository is owner/name, as lerobot/demos, got {self.repository!r}",
        )
        require(
            not self.base or _HUB_NAME.fullmatch(self.base) is not None,
            f"push: --base is a hub id, owner/name, got {self.base!r}",
        )


@dataclass(frozen=True)
class RerunConfig(Config):
    """Write episodes of a dataset for rerun's viewer: images, state, actions, rewards, instruction, success."""

    dataset: str
    """Folder or hub id of a LeRobotDataset v3: demonstrations, or what `vla-rl reward collect` kept of a policy."""
    out: str = "recordings"
    """Folder to write, an .rrd file for each episode; must not exist, or be empty."""
    episodes: tuple[Whole, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    """Numbers of the episodes; those that the dataset does not have are left out, all of them is an error."""
