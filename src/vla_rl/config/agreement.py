"""How a policy is compared with a log."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le

from vla_rl.config.bounds import Config, Count, PixelsOrStored, Whole


@dataclass(frozen=True)
class AgreementConfig(Config):
    """Compare a policy with logged episodes, without a simulator."""

    checkpoint: Path
    """A run folder, one of its checkpoints, a policy folder, or a hub id."""
    dataset: str = "runs/demos"
    """Folder of a LeRobotDataset v3: demonstrations, or episodes of a policy."""
    outcome: Literal["all", "success", "failure"] = "all"
    """Which episodes; other than all needs a dataset with the feature next.success."""
    camera: str = ""
    """Feature that holds the images; empty takes observation.images.image, or the only camera."""
    image_size: PixelsOrStored = 0
    """Height and width to which the images are resized; 0 takes what the policy looks at."""
    image_fit: Literal["pad", "crop", "stretch"] = "pad"
    """How frames that are not square become it, as when the policy was fine-tuned."""
    episodes_per_task: Whole = 0
    """The first so many episodes of each task; 0 takes all."""
    tolerance: Annotated[float, Ge(0), Le(1)] = 0.02
    """Two actions agree where no number differs by more than this share of what its dimension spans. 0.02 is about two
    of 256 bins and a half."""
    parts: Annotated[int, Ge(1), Le(1000)] = 10
    """Equal parts of an episode for which agreement is told apart."""
    batch_size: Count = 16
    """Frames in a forward pass."""
    kind: str = ""
    """Class of the policy, openvla or openvla-oft, where the checkpoint does not say it itself."""
    unnorm_key: str = ""
    """Dataset whose action statistics the policy is read by, if it has several."""
    base: str = ""
    """Folder or hub id of the model that adapters belong to, where it is not the one they name themselves."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the weights."""
    json: Path | None = None
    """File for the whole result."""
