"""Whether an exception of a simulator comes again when its episode is played again: then no restart would help."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
from jaxtyping import Float32

from vla_rl.config.errors import UserError
from vla_rl.envs.env import Env
from vla_rl.envs.faults import fault, same
from vla_rl.types import EpisodeSpec


class PlayedAgain:
    """Remembers what each slot has played since its reset, and plays it once more where that raises."""

    def __init__(self, suite: str, make: Callable[[], Env]) -> None:
        """make: a simulator beside those that play."""
        self._suite, self._make = suite, make
        self._played: dict[int, tuple[EpisodeSpec, list[Float32[np.ndarray, "C A"]]]] = {}

    def starts(self, slot: int, spec: EpisodeSpec) -> None:
        self._played[slot] = (spec, [])

    def plays(self, slot: int, actions: Float32[np.ndarray, "C A"]) -> None:
        if slot in self._played:
            self._played[slot][1].append(actions.copy())

    def goes_elsewhere(self, slot: int) -> None:
        """Its episode goes on from a snapshot, which does not say what led there."""
        self._played.pop(slot, None)

    @contextmanager
    def told(self, slot: int) -> Iterator[None]:
        """Around the work of a slot: UserError for an exception that comes again, the exception itself for others."""
        try:
            yield
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            if same(error, self._again(slot)):
                spec = self._played[slot][0]
                doing = (
                    f"an episode of {spec.task!r} from initial state {spec.initial_state}, twice"
                )
                raise fault(self._suite, doing, error) from error
            raise

    def _again(self, slot: int) -> BaseException | None:
        if slot not in self._played:
            return None
        spec, turns = self._played[slot]
        try:
            env = self._make()
        except Exception:
            return None  # there may be no room for another one
        try:
            env.reset(spec)
            env.render()
            for actions in turns:
                env.step(actions)
            env.render()
            env.proprio()
        except (Exception, SystemExit) as error:
            return error
        finally:
            with suppress(Exception):
                env.close()
        return None
