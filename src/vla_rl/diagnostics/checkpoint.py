"""Look at a checkpoint before it is loaded: what is in it, whether it is whole, and what this machine can do."""

from __future__ import annotations

from pathlib import Path

from vla_rl.config import PolicyConfig, UserError
from vla_rl.data.demonstrations import load_demonstrations
from vla_rl.diagnostics.machine import Check
from vla_rl.envs.registry import robots
from vla_rl.envs.union import MIXED_ROBOTS
from vla_rl.policies.family import Finding
from vla_rl.policies.openvla.policy import OpenVLAPolicy
from vla_rl.policies.registry import SCRATCH, family_of, load_policy
from vla_rl.runtime.bases import checkpoint_kind
from vla_rl.runtime.locate import locate_policy
from vla_rl.training.likelihood import likelihood_of


def examine_checkpoint(reference: str, dataset: str = "", unnorm_key: str = "") -> list[Check]:
    """The findings about a folder, a run, an adapter or a hub id, in the order in which one would fix them.

    dataset: demonstrations, which are asked what class of policy it is. unnorm_key: see `PolicyConfig`.
    """
    try:
        folder = str(locate_policy(Path(reference))[0])
        findings = family_of(folder).examine(folder)
        if dataset:
            findings.append(which_kind(folder, dataset, unnorm_key))
    except UserError as error:
        remedy = f"give a folder with config.json, a run, or a hub id such as openvla/openvla-7b instead of {reference}"
        return [Check("checkpoint", "fail", str(error), remedy)]
    return [
        Check(finding.name, finding.status, finding.found, finding.remedy) for finding in findings
    ]


def which_kind(folder: str, dataset: str, unnorm_key: str = "") -> Finding:
    """As which class of policy the checkpoint knows the demonstrations, see `training.likelihood`.

    UserError for a checkpoint or a dataset that cannot be read, and where one is of another robot.
    """
    kind = checkpoint_kind(folder) or SCRATCH
    policy = load_policy(folder, PolicyConfig(kind=kind, unnorm_key=unnorm_key))
    if not isinstance(policy, OpenVLAPolicy):
        return Finding("kind", "ok", f"{policy.kind}, which is mistaken for no other")
    demos = load_demonstrations(
        dataset,
        action_size=policy.action_dim,
        image_size=0 if policy.resizes_images else policy.image_size,
        image_fit="pad",
        normalised_robots={*robots(), MIXED_ROBOTS},
        episodes_per_task=1,
    )
    found = likelihood_of(policy, demos)
    if not found.is_known:
        remedy = "take demonstrations of what it was trained on, or other statistics (--unnorm-key)"
        return Finding("kind", "warn", f"it does not know the demonstrations: {found}", remedy)
    status = "warn" if found.doubt else "ok"
    remedy = f"play it with --policy.kind {found.best}" if found.doubt else ""
    return Finding("kind", status, f"{found.best}: of the demonstrations {found}", remedy)
