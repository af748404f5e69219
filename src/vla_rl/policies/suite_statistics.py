"""Which of a checkpoint's action statistics each suite is played with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from vla_rl.config.errors import UserError
from vla_rl.config.policy import SuiteActions
from vla_rl.policies.action_tokens import dataset_name

_SUFFIX = "_no_noops"


@runtime_checkable
class HasStatistics(Protocol):
    """What a checkpoint says of its statistics."""

    @property
    def norm_stats(self) -> Mapping[str, Any]: ...

    @property
    def unnorm_key(self) -> str | None: ...

    @property
    def unnorm_keys(self) -> tuple[str, ...]: ...

    @property
    def own(self) -> bool: ...


def datasets_of_suites(
    checkpoint: HasStatistics, wanted: Iterable[SuiteActions], asked: str = ""
) -> dict[SuiteActions, str]:
    """The dataset whose statistics each suite is played with.

    asked: one that the user names, for all. A suite's own are taken where they are there, or its robot's. Otherwise
    those that belong to no suite, if it has no suite's and they are of one dataset: it was fine-tuned on all together.

    UserError, naming what is there and what is missing, where neither is there.
    """
    needed = list(dict.fromkeys(wanted))
    known: Iterable[str] = tuple(checkpoint.norm_stats)
    if asked:
        return dict.fromkeys(needed, asked)
    suites = {name for one in needed for name in one.every_suite}
    if checkpoint.own:  # it says what it was fine-tuned on, whatever else its base knew
        alone = checkpoint.unnorm_key or next(iter(known), "")
        known = checkpoint.unnorm_keys or (alone,)
    joint = [name for name in known if name.removesuffix(_SUFFIX) not in suites]
    found = {one: name for one in needed for name in _names(one) if name in known}
    missing = [one.dataset for one in needed if one not in found]
    if missing and (found or len(joint) != 1):
        raise UserError(
            f"the checkpoint has action statistics of {_listed(known)}, and these suites also need those of "
            f"{_listed(missing)}: take a checkpoint that was fine-tuned on all of them, or name the dataset whose "
            "statistics are for all with policy.unnorm_key"
        )
    return found or dict.fromkeys(needed, joint[0])


def _names(suite: SuiteActions) -> tuple[str, ...]:
    """What its statistics may be called, the likeliest last."""
    return suite.robot, suite.dataset + _SUFFIX, suite.dataset


def _listed(names: Iterable[str] | Sequence[str], most: int = 6) -> str:
    words = [repr(dataset_name(name)) for name in dict.fromkeys(names)]
    if not words:
        return "no dataset"
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
