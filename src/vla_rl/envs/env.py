"""What the rest of the system asks of simulators: one environment, and many of them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from vla_rl.config.errors import UserError
from vla_rl.types import EpisodeSpec, Observation, StepResult

Snapshot = dict[str, Any]
"""Full simulator state: numpy arrays, numbers and strings only (no pickled objects)."""


class Env(Protocol):
    """One simulator in this process. Rewards are sparse, `terminated` is success."""

    tasks: tuple[str, ...]  # what `reset` accepts, in order
    instructions: tuple[str, ...]  # one per task
    instruction: str  # of the episode being played
    action_dim: int
    proprio_dim: int
    turns: int  # played since the reset

    def reset(self, spec: EpisodeSpec) -> None: ...

    def step(self, actions: Float32[np.ndarray, "C A"]) -> tuple[float, bool, bool, int]:
        """Play one turn (a chunk of actions, each repeated); stop early on success.

        Returns (reward, terminated, truncated, simulator steps taken).
        """
        ...

    def render(self) -> UInt8[np.ndarray, "H W 3"]: ...

    def proprio(self) -> Float32[np.ndarray, " P"]: ...

    def snapshot(self) -> Snapshot: ...

    def restore(self, snapshot: Snapshot) -> None: ...

    def close(self) -> None: ...


@runtime_checkable
class DenselyRewarded(Protocol):
    """An environment whose simulator has a shaped reward of its own. Privileged: it sees objects and goal."""

    def dense_reward(self) -> float:
        """The simulator's shaped reward of the present state, from 0 to about `Benchmark.dense_reward_max`, after at
        least one turn. Asking changes nothing.
        """
        ...


@runtime_checkable
class SeenFromTheWrist(Protocol):
    """An environment that can show what a second camera sees, as `env.wrist_camera` asks for it."""

    def render_wrist(self) -> UInt8[np.ndarray, "H W 3"]:
        """The second camera's image, as large as the first, RGB. Looking changes nothing."""
        ...


class EpisodesLostError(RuntimeError):
    """A simulator process went down while its slots were asked something; their episodes must be put back."""


class VectorEnv(Protocol):
    """N environments ("slots") in worker processes. Slots are driven independently of each other.

    Work is posted with `post_reset` / `post_step` and collected with `wait`, so that a caller can infer
    for one group of slots while another one simulates. Work of one worker is done in the order posted.
    """

    num_envs: int
    action_dim: int
    tasks: tuple[str, ...]  # the suite's tasks, in order; a task id is an index into this
    instructions: tuple[str, ...]  # one per task
    horizon: int  # turns per episode
    infrastructure_errors: int  # crashed or hung workers so far

    def post_reset(self, slots: Sequence[int], specs: Sequence[EpisodeSpec]) -> None: ...

    def post_step(self, slots: Sequence[int], actions: Float32[np.ndarray, "S C A"]) -> None: ...

    def wait(self, slots: Sequence[int]) -> StepResult:
        """Block until the posted work of `slots` is done. After a reset rewards and flags are zero.

        A slot whose worker crashed or hung comes back with `lost` set; the worker has been restarted
        and the slot needs a `post_reset`.
        """
        ...

    def snapshot(self, slots: Sequence[int]) -> list[Snapshot]:
        """The state of each slot, whose work must be done. EpisodesLostError if a worker went down meanwhile."""
        ...

    def post_restore(self, slots: Sequence[int], snapshots: Sequence[Snapshot]) -> None:
        """Continue the episodes of `snapshots`; `wait` then says what they show, as after a reset."""
        ...

    def restore(self, slots: Sequence[int], snapshots: Sequence[Snapshot]) -> Observation:
        """`post_restore` and `wait` in one. EpisodesLostError if a worker went down meanwhile."""
        ...

    def dense_rewards(self, slots: Sequence[int]) -> Float32[np.ndarray, " S"]:
        """The simulator's own shaped reward of each slot's present state, after at least one turn.

        Privileged knowledge, a reference to measure choosers by: nothing that learns or acts may see it. UserError if
        the simulator has none; EpisodesLostError if a worker went down meanwhile.
        """
        ...

    def memory_bytes(self) -> int:
        """Resident memory of all worker processes together."""
        ...

    def close(self) -> None: ...


def require_beginnings(specs: Sequence[EpisodeSpec]) -> None:
    """RuntimeError for an episode that is to start elsewhere than in its initial state, which a reset cannot do."""
    if any(spec.start is not None for spec in specs):
        raise RuntimeError(
            "an episode that starts at a state of a demonstration needs a StartingVectorEnv"
        )


def require_like(snapshot: Snapshot, own: Snapshot) -> None:
    """UserError unless `snapshot` holds all that `own` does, in the same shapes: one of this simulator and task."""
    for name, value in own.items():
        expected = f"{name} of shape {np.shape(value)}"
        if name not in snapshot:
            raise UserError(f"a snapshot of the simulator: expected {expected}, got none. {_AGAIN}")
        found = np.asarray(snapshot[name])
        plain = isinstance(value, np.ndarray | np.generic | bool | int | float | str)
        text = found.dtype.kind in "OSU"
        if found.shape != np.shape(value) or text != isinstance(value, str) or not plain:
            raise UserError(
                f"a snapshot of the simulator: expected {expected}, got {found.dtype} of shape {found.shape}. {_AGAIN}"
            )


_AGAIN = "It is of another task, model or version: collect the demonstrations again"


def split_initial_states(
    total: int, held_out: int
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " h"]]:
    """Number the initial states 0..total-1; the last `held_out` of them are never trained on."""
    if not 0 < held_out < total:
        raise ValueError(
            f"held_out must lie in 1..{total - 1} (initial_states is {total}), got {held_out}"
        )
    ids = np.arange(total, dtype=np.int64)
    return ids[: total - held_out], ids[total - held_out :]
