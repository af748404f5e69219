"""Finds and loads a process reward model of any kind."""

from __future__ import annotations

from pathlib import Path

from vla_rl.rewards.process.model import JUDGE_FILE, TrainableJudge, read_description


def judge_folder(folder: Path | str) -> Path:
    """`folder` itself, or the judge in it where it is a run folder of `vla-rl reward train`."""
    folder = Path(folder)
    inside = folder / "judge"
    return inside if (inside / JUDGE_FILE).is_file() else folder


def load_judge(folder: Path | str, device: str = "auto") -> TrainableJudge:
    """Load a judge that `save` wrote, of either backbone; no code comes from the folder.

    Raises UserError for what is no judge, is damaged, or needs a package that is not installed.
    """
    folder = judge_folder(folder)
    description = read_description(folder)
    # here, so that neither backbone is imported for the other, and transformers (seconds) only where it is needed
    if description.backbone == "tiny":
        from vla_rl.rewards.process.tiny import TinyJudge

        return TinyJudge.load(folder, device)
    from vla_rl.rewards.process.vlm import VlmJudge

    return VlmJudge.load(folder, device)
