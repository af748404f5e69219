"""Limits on the actions that leave a server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from vla_rl.config.bounds import Config
from vla_rl.config.errors import require

Bound = Annotated[float, Ge(-1e6), Le(1e6)]
Change = Annotated[float, Gt(0), Le(1e6)]


@dataclass(frozen=True)
class LimitsConfig(Config, group="limits"):
    """What every action must keep, in the unit in which actions leave the server. Without any of them all may pass."""

    low: tuple[Bound, ...] = ()
    """The least value of each dimension, or one for all of them."""
    high: tuple[Bound, ...] = ()
    """The greatest value of each dimension, or one for all of them."""
    change: tuple[Change, ...] = ()
    """The largest change from one action to the next, of each dimension, or one for all of them."""
    box_low: tuple[Bound, ...] = ()
    """The corner of the workspace with the least x, y and z, where an action's first three numbers are a position."""
    box_high: tuple[Bound, ...] = ()
    """The corner of the workspace with the greatest x, y and z."""
    beyond: Literal["clip", "refuse"] = "clip"
    """What becomes of an answer with an action beyond the limits. clip: the nearest action within them is sent. refuse:
    the client gets the reason instead of actions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("box_low", "box_high"):
            count = len(getattr(self, name))
            require(count in (0, 3), f"limits.{name}: expected 3 numbers, x, y and z, got {count}")
        for low, high in (("low", "high"), ("box_low", "box_high")):
            below, above = getattr(self, low), getattr(self, high)
            if len(below) > 1 and len(above) > 1:
                require(
                    len(below) == len(above),
                    f"limits.{low} has {len(below)} numbers, limits.{high} {len(above)}: give one for each dimension",
                )

    @property
    def any(self) -> bool:
        """Whether there is a limit at all."""
        return bool(self.low or self.high or self.change or self.box_low or self.box_high)
