"""The whole state of a Gymnasium environment as plain data, where its unwrapped environment can give it.

Two kinds can, if they have `_get_obs()`: one with `get_state()` and `set_state(state)` (plain data, or a dict of it),
and one of Gymnasium's MuJoCo kind (`model` and `data`). What they give is tried out before it is relied on
(`looking.py`): an environment may keep more in its attributes than its state says.
"""

from __future__ import annotations

import inspect
import json
import sys
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
    """Whether the environment offers a state of either kind, and `_get_obs()` to look at it without a step."""
    base = env.unwrapped
    if not callable(getattr(base, "_get_obs", None)):
        return False
    return _has_hooks(base) or _mujoco(base) is not None


def read_state(env: Any) -> Snapshot:
    """The state after a reset, as arrays, numbers and strings. TypeError where it is something else."""
    base = env.unwrapped
    found: Snapshot = {}
    if _has_hooks(base):
        state = base.get_state()
        parts = dict(state) if isinstance(state, Mapping) else {"": state}
        for name, value in parts.items():
            if not isinstance(name, str) or not isinstance(value, _Plain):
                raise TypeError(
                    f"get_state() holds {type(value).__name__}, expected arrays, numbers and strings"
                )
            kept = value.copy() if isinstance(value, np.ndarray) else value
            found[_PART + name if isinstance(state, Mapping) else _WHOLE] = kept
    else:
        mujoco, kind = sys.modules["mujoco"], _mujoco_kind()
        vector = np.empty(mujoco.mj_stateSize(base.model, kind), np.float64)
        mujoco.mj_getState(base.model, base.data, vector, kind)
        found[_WHOLE] = vector
    rng = getattr(base, "_np_random", None)
    if isinstance(rng, np.random.Generator):
        found[_RNG] = json.dumps(numpy_rng_state(rng))
    return found


def write_state(env: Any, snapshot: Snapshot) -> None:
    """Put the environment, just reset, into a state that `read_state` gave. UserError for one of another kind."""
    base = env.unwrapped
    require_like(snapshot, read_state(env))
    if not _has_hooks(base):
        mujoco = sys.modules["mujoco"]
        vector = np.asarray(snapshot[_WHOLE], np.float64)
        mujoco.mj_setState(base.model, base.data, vector, _mujoco_kind())
        mujoco.mj_forward(base.model, base.data)
    elif _WHOLE in snapshot:
        base.set_state(snapshot[_WHOLE])
    else:
        base.set_state(
            {k.removeprefix(_PART): v for k, v in snapshot.items() if k.startswith(_PART)}
        )
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


def _mujoco(base: Any) -> Any:
    mujoco = sys.modules.get("mujoco")
    model, data = getattr(base, "model", None), getattr(base, "data", None)
    if mujoco is None or not (
        isinstance(model, mujoco.MjModel) and isinstance(data, mujoco.MjData)
    ):
        return None
    return mujoco


def _mujoco_kind() -> int:
    return int(sys.modules["mujoco"].mjtState.mjSTATE_INTEGRATION)
