"""Which simulator, which tasks, and how one turn maps to simulator steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from vla_rl.config.bounds import ActionChunk, Config, Pixels, Whole, Workers
from vla_rl.config.errors import require

ONE_IMAGE = (
    "training and demonstrations keep one image a turn; a second one is for `vla-rl eval --policy`"
)


@dataclass(frozen=True)
class EnvConfig(Config, group="env", saved=("suite",)):
    """Simulators and their vectorisation."""

    suite: str = "mt5"
    """Tasks to play. Meta-World: mt1:<task>, mt5, mt10, mt10-hard or mt50. LIBERO: libero-spatial, -object, -goal,
    -10 or -90; some tasks of one as libero-goal:<numbers, ranges or names, with commas>; LIBERO-PRO's as
    libero-goal-lan, -object, -swap or -task. ManiSkill: maniskill:<task ids, with commas>. Without a simulator: toy, or
    some of its tasks as toy:<names, with commas>. Any Gymnasium environment: gym:<id> or gym:<module>:<id>, with
    options after it (docs/your-simulator.md). Several at once with + between them, as mt10+libero-object:0-2;
    libero-40 is the first four of LIBERO together."""
    image_size: Pixels = 64
    """Height and width of the camera image in pixels."""
    camera: str = ""
    """Camera of the simulator's model. Empty takes the benchmark's own: corner2, moved close to the table as others
    use it, for Meta-World; agentview for LIBERO, which also has `wrist`; base_camera for ManiSkill, which also has
    `render_camera`; wrist for the toy, which also has `table`."""
    wrist_camera: str = ""
    """Camera of a second image of the same size; empty: none. `wrist` is the one at the hand: robot0_eye_in_hand for
    LIBERO, gripperPOV for Meta-World."""
    action_repeat: Annotated[int, Ge(0), Le(10_000)] = 5
    """Simulator steps for which each action is held; 0 takes each suite's own, as a small policy plays it."""
    action_chunk: ActionChunk = 2
    """Actions the policy decides in one turn."""
    horizon: Annotated[int, Ge(0), Le(1_000_000)] = 15
    """Turns after which an episode is cut (a time limit, not a failure). 0 takes as many as each suite's own number of
    simulator steps needs; any other number is for all suites."""
    num_envs: Annotated[int, Ge(1), Le(4096)] = 32
    """Environments played side by side."""
    num_workers: Workers = 0
    """Simulator processes; 0 takes one per CPU core, at most num_envs."""
    initial_states: Annotated[int, Ge(2), Le(1_000_000)] = 1000
    """Numbered initial states per task."""
    held_out: Annotated[int, Ge(1), Le(1_000_000)] = 100
    """The last so many initial states are for evaluation only."""
    mesh_faces: Whole = 150
    """Robot and object meshes are drawn with at most so many faces; 0 draws them whole, as published LIBERO policies
    need it. Physics is untouched."""
    effects: bool = False
    """Meta-World only: shadows, reflections, sky and smooth edges, as MuJoCo's own renderer draws them; with mesh_faces
    0 the pictures that policies of others were trained on. Many times slower without a GPU."""
    settle_steps: Whole = 10
    """LIBERO only: control steps without motion after a reset, in which objects come to rest; never counted."""
    step_timeout: Annotated[float, Gt(0), Le(1_000_000)] = 60.0
    """Seconds after which a silent simulator process counts as hung and is restarted. Each time this happens to one
    that is alive, twice as long is allowed from then on: the machine may only be busy."""
    start_timeout: Annotated[float, Gt(0), Le(1_000_000)] = 300.0
    """Seconds that a simulator process may take to start, and to load a task it has not played yet."""
    max_restarts: Whole = 20
    """Worker restarts in one run after which we give up instead of restarting for ever."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.held_out < self.initial_states,
            f"env.held_out must lie in 1..initial_states-1 = 1..{self.initial_states - 1}, got {self.held_out}",
        )
