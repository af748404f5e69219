"""Look at a checkpoint before it is loaded: what is in it, whether it is whole, and what this machine can do."""

from __future__ import annotations

from pathlib import Path

from vla_rl.config import UserError
from vla_rl.diagnostics.machine import Check
from vla_rl.policies.registry import family_of
from vla_rl.runtime.locate import locate_policy


def examine_checkpoint(reference: str) -> list[Check]:
    """The findings about a folder, a run, an adapter or a hub id, in the order in which one would fix them."""
    try:
        folder = str(locate_policy(Path(reference))[0])
        findings = family_of(folder).examine(folder)
    except UserError as error:
        remedy = f"give a folder with config.json, a run, or a hub id such as openvla/openvla-7b instead of {reference}"
        return [Check("checkpoint", "fail", str(error), remedy)]
    return [
        Check(finding.name, finding.status, finding.found, finding.remedy) for finding in findings
    ]
