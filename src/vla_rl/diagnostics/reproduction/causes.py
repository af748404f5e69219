"""The known causes of another success rate than the published one, and the other way of playing that would show each.

In the order in which they are looked at; "mujoco" is no setting and has a test of its own, see `scenes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from vla_rl.config.openvla import IMAGE_PREPROCESSING
from vla_rl.diagnostics.reproduction.settings import STORED, Settings

SETTINGS = {
    "horizon": ("horizon",),
    "settle steps": ("settle_steps",),
    "image pipeline": ("images", "turned"),
    "action statistics": ("statistics",),
    "sampling": ("temperature",),
    "gripper": ("gripper",),
    "policy kind": ("kind",),
}
"""Cause -> the settings it is about."""
SEEN_IN_DEMONSTRATIONS = ("image pipeline", "action statistics", "gripper", "policy kind")
"""Causes that the likelihood of demonstrations shows."""
MOST_UNSEEN = 3
"""Other statistics that are tried by playing, where there are no demonstrations."""


@dataclass(frozen=True)
class Alternative:
    """Another way of playing, in one respect."""

    cause: str
    settings: Settings
    words: str
    """What is changed."""
    is_protocols: bool
    """Whether it is what the protocol says, and what is played is not."""


def alternatives(
    played: Settings, protocol: Settings, statistics: Sequence[str], kinds: Sequence[str]
) -> dict[str, list[Alternative]]:
    """For each cause the other ways of playing, the protocol's first where it differs from what is played.

    statistics: names of all that there are of the action's size. kinds: classes that the weights can be of.
    """
    found: dict[str, list[Alternative]] = {}
    for cause, fields in SETTINGS.items():
        right = replace(played, **{name: getattr(protocol, name) for name in fields})
        others = [right, *_others(cause, played, statistics, kinds)]
        unique = [one for one in dict.fromkeys(others) if one != played]
        found[cause] = [
            Alternative(cause, one, in_words(one, played), one == right) for one in unique
        ]
    return found


def _others(
    cause: str, played: Settings, statistics: Sequence[str], kinds: Sequence[str]
) -> Iterator[Settings]:
    if cause == "image pipeline":
        yield replace(played, turned=not played.turned)
        for turned in (played.turned, not played.turned):
            for name in IMAGE_PREPROCESSING:
                yield replace(played, images=name, turned=turned)
    elif cause == "action statistics":
        yield from (replace(played, statistics=name) for name in statistics)
    elif cause == "gripper":
        yield from (replace(played, gripper=name) for name in ("openvla", "as-is"))
    elif cause == "policy kind":
        yield from (replace(played, kind=name) for name in kinds)


def in_words(settings: Settings, other: Settings) -> str:
    """In what `settings` differ from `other`: "horizon 280 instead of 60 turns"."""
    changed = settings.changed_from(other)
    return " and ".join(
        f"{_NAMES[name]} {_value(name, new)} instead of {_value(name, old)}"
        for name, (old, new) in changed.items()
    )


_NAMES = {
    "kind": "policy kind",
    "statistics": "action statistics",
    "images": "images",
    "turned": "frames",
    "gripper": "gripper",
    "temperature": "temperature",
    "horizon": "horizon",
    "settle_steps": "settle steps",
}


def _value(name: str, value: object) -> str:
    if name == "turned":
        return "turned by 180 degrees" if value else "upright"
    if name == "images" and value == STORED:
        return "as the checkpoint says"
    if name == "temperature":
        return f"{value:g}" if value else "0 (greedy)"
    return str(value)
