"""The whole state of a Gymnasium environment as plain data, where its unwrapped environment gives it.

That is one with `get_state()` and `set_state(state)`, for plain data or a dict of it, and with `_get_obs()`. What it
gives is tried out before it is relied on (`looking.py`): an environment may keep more in its attributes than its state
says. Gymnasium's MuJoCo environments are not among them: what they show lags behind what MuJoCo calls the state.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from vla_rl.config.errors import UserError
from vla_rl.envs.env import Snapshot, require_like
from vla_rl.runtime.seeding import numpy_rng_state, restore_numpy_rng

_PART = "state:"
_WHOLE = "state"
_RNG = "random"
_Plain = np.ndarray | np.generic | bool | int | float | str


def gives_state(env: Any) -> bool:
    """Whether the environment offers its state, and a way to look at it without a step."""
    base = env.unwrapped
    return callable(getattr(base, "_get_obs", None)) and _has_hooks(base)


def read_state(env: Any) -> Snapshot:
    """The state after a reset, as arrays, numbers and strings. TypeError where it is something else."""
    base = env.unwrapped
    found: Snapshot = {}
    state = base.get_state()
    named = isinstance(state, Mapping)
    for name, value in (dict(state) if named else {"": state}).items():
        if not isinstance(name, str) or not isinstance(value, _Plain):
            raise TypeError(
                f"get_state() holds {type(value).__name__}, expected arrays, numbers and strings"
            )
        kept = value.copy() if isinstance(value, np.ndarray) else value
        found[_PART + name if named else _WHOLE] = kept
    rng = getattr(base, "_np_random", None)
    if isinstance(rng, np.random.Generator):
        found[_RNG] = json.dumps(numpy_rng_state(rng))
    return found


def write_state(env: Any, snapshot: Snapshot) -> None:
    """Put the environment, just reset, into a state that `read_state` gave. UserError for one of another kind."""
    base = env.unwrapped
    require_like(snapshot, read_state(env))
    if _WHOLE in snapshot:
        base.set_state(snapshot[_WHOLE])
    else:
        parts = {k.removeprefix(_PART): v for k, v in snapshot.items() if k.startswith(_PART)}
        base.set_state(parts)
    rng = getattr(base, "_np_random", None)
    if isinstance(rng, np.random.Generator) and _RNG in snapshot:
        try:
            restore_numpy_rng(rng, json.loads(str(snapshot[_RNG])))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"a snapshot's random state cannot be read: {error}") from error


def _has_hooks(base: Any) -> bool:
    get, put = getattr(base, "get_state", None), getattr(base, "set_state", None)
    if not (callable(get) and callable(put)):
        return False
    try:
        needed = [
            p
            for p in inspect.signature(put).parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):
        return False
    return len(needed) == 1
