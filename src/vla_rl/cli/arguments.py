"""Options of the commands that have no configuration of their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from vla_rl.config import EvalConfig, TrainConfig
from vla_rl.config.bounds import (
    Candidates,
    Config,
    NotNegative,
    PixelsOrStored,
    Seed,
    ShareBelowOne,
    Temperature,
    Whole,
    Workers,
)


@dataclass(frozen=True)
class EvalArguments(Config):
    """Evaluate a policy: each (task, initial state) exactly once, with a confidence interval."""

    checkpoint: Path
    """A run folder, one of its checkpoints, a policy folder, or a hub id (owner/name)."""
    protocol: EvalConfig = field(default_factory=EvalConfig)
    """What is evaluated."""
    horizon: Annotated[int, Ge(0), Le(1_000_000)] = 0
    """Turns after which an episode is cut; 0 takes the training run's, or the benchmark's protocol."""
    unnorm_key: str = ""
    """Dataset whose action statistics un-normalise actions; empty takes the checkpoint's own, or the suite's."""
    kind: str = ""
    """Class of the policy, openvla or openvla-oft, where the checkpoint does not say it itself."""
    base: str = ""
    """Folder or hub id of the model that adapters belong to, where it is not the one they name themselves."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the weights."""
    best_of: Candidates = 1
    """Best of N: candidates of each decision (of `refine`: rounds), from which a chooser picks. 1 is plain play."""
    mode: Literal["action", "lookahead", "trajectory", "refine"] = "lookahead"
    """action: N actions are sampled. lookahead: N continuations from a snapshot of the simulator. trajectory: N whole
    trajectories, and the one with the best mean score. refine: the episode again from a turn with a low score on."""
    chooser: Literal["reward-model", "simulator", "success", "random"] = "reward-model"
    """reward-model: a process reward model. The others are references: the simulator's own dense reward, success seen
    ahead, or chance."""
    reward_model: str = ""
    """Folder of the process reward model that chooses (`vla-rl reward train`)."""
    success_ahead: bool = True
    """lookahead: a continuation in which the simulator reports success is taken without asking the chooser."""
    lookahead: Annotated[int, Ge(1), Le(1_000_000)] = 4
    """Turns that a continuation is played before it is scored."""
    trajectory_turns: Annotated[int, Ge(1), Le(1_000_000)] = 50
    """trajectory: turns that each trajectory is played at most before the next choice."""
    refine_from: Literal["worst", "fall"] = "worst"
    """refine: the rest is sampled anew from the worst-scored turn on, or from the first at which the score falls."""
    temperatures: tuple[Temperature, ...] = ()
    """refine: sampling temperatures of the first trajectory, the first round and so on; the last one goes on."""
    turn_budget: Whole = 0
    """trajectory and refine: turns that an episode may simulate, discarded ones included; 0 is no limit."""
    starts: str = ""
    """Folder of demonstrations with snapshots: play from states on their way instead, and say how success depends on
    the share of the way that is behind. No evaluation of the policy on its own."""
    fractions: tuple[ShareBelowOne, ...] = (
        0.0,
        0.1,
        0.2,
        0.3,
        0.45,
        0.6,
        0.8,
    )
    """starts: shares of a demonstration's length from which to play; 0 is its initial state."""
    json: Path | None = None
    """File for the whole result."""
    videos_out: Path | None = None
    """Folder for the videos; by default `videos` beside the JSON file."""
    workers: Workers = 0
    """Simulator processes; 0 takes one per CPU core. The result does not depend on it."""


@dataclass(frozen=True)
class ConvertArguments(Config):
    """Convert LIBERO's official HDF5 demonstrations into a LeRobotDataset v3."""

    source: Path
    """An HDF5 file, or a folder of them; subfolders are searched too."""
    out: Path = Path("runs/demos")
    """Folder of the dataset to write; must not exist yet."""
    drop_noops: bool = True
    """Leave out frames in which nothing is moved, as OpenVLA does."""
    image_size: PixelsOrStored = 0
    """Height and width of the images; 0 keeps those stored (128)."""
    wrist: bool = False
    """Also write the wrist camera."""
    image_format: Literal["png", "mp4"] = "png"
    """png: every frame as it is. mp4: lossy video, in a fraction of the space."""


@dataclass(frozen=True)
class ReportArguments(Config):
    """Write a run's report: one HTML file that opens offline."""

    run: Path
    """A run folder."""
    out: Path | None = None
    """The file; by default report.html in the run folder."""
    live: bool = False
    """Instead of a file, serve the report of a run that is training, on this machine alone, and keep it up to date."""
    port: Annotated[int, Ge(0), Le(65535)] = 8123
    """With live: where a browser finds it; 0 takes a free port."""
    pause: Annotated[float, Ge(0.5), Le(3600)] = 5.0
    """With live: seconds at least between two writings of the page."""


@dataclass(frozen=True)
class FilmArguments(Config):
    """Write a short animated image of one task: the same initial state before and after practice."""

    run: Path
    """A run folder that was evaluated with videos, as a quickstart's."""
    out: Path | None = None
    """The animated image, .gif or .webp; by default film.gif in the run folder."""
    task: str = ""
    """The task to show; empty takes the first one that failed before practice and succeeded after it."""
    size: Annotated[int, Ge(16), Le(1024)] = 224
    """Height and width of each half in pixels."""


@dataclass(frozen=True)
class LearningCurveArguments(Config):
    """Draw a run's evaluated success against the updates of PPO."""

    run: Path
    """A run folder; train with run.eval_every for more points than before and after."""
    out: Path | None = None
    """The image (PNG); by default curve.png in the run folder."""


@dataclass(frozen=True)
class DoctorArguments(Config):
    """Look for what would keep VLA-RL from running here, and say how to mend it."""

    json: bool = False
    """Print the findings as JSON."""
    checkpoint: str = ""
    """Look at this checkpoint (a folder, a run or a hub id) instead: what is in it, whether it is whole, and whether
    this machine can run and train it."""
    dataset: str = ""
    """Demonstrations (a LeRobotDataset v3) that say of which class a checkpoint in OpenVLA's format is: how likely they
    are to it as openvla and as openvla-oft (policy.kind)."""
    unnorm_key: str = ""
    """Dataset whose action statistics the checkpoint reads them by, if it has several."""


@dataclass(frozen=True)
class PlanArguments(TrainConfig):
    """A training run as `vla-rl train` takes it, and the machine on which it is planned."""

    gpus: Annotated[int, Ge(0), Le(64)] = 0
    """GPUs of each node."""
    gpu_memory: Annotated[float, Gt(0), Le(10_000)] = 80.0
    """Memory of each GPU in GB (1e9 bytes)."""
    gpu: Literal["h200", "h100", "h100-pcie", "a100", "l40s", "rtx4090"] = "h200"
    """Kind of GPU. Others than the one whose costs are known are scaled by their published peaks, and marked."""
    cpus: Annotated[int, Ge(0), Le(4096)] = 0
    """CPU cores of each node; 0 takes this machine's, with GPUs 12 for each of them."""
    ram: Annotated[float, Ge(0), Le(1_000_000)] = 0.0
    """Host memory of each node in GB; 0 takes this machine's, with GPUs it is not looked at."""
    nodes: Annotated[int, Ge(1), Le(4096)] = 1
    """Nodes, all alike."""
    episodes: Whole = 0
    """Episodes to which hours are counted; 0 takes schedule.episodes, or 10,000."""
    episode_turns: NotNegative = 0.0
    """Mean length of an episode in turns; 0 takes the costs', or env.horizon."""
    costs: tuple[Path, ...] = ()
    """Costs files, or run folders to take costs from, laid over those that come with the program."""
    calibrate: Path | None = None
    """A run folder to take costs from: a run of this machine of four iterations or more, whatever its size."""
    json: Path | None = None
    """File for the whole plan."""
    save_costs: Path | None = None
    """File for the costs that were taken, to be given to --costs."""


@dataclass(frozen=True)
class EngineServeArguments(Config):
    """Serve a policy's actions to training runs on this machine, until it is stopped."""

    checkpoint: Path
    """A whole checkpoint: a policy folder, a run whose policy has no adapters, or a hub id."""
    backend: Literal["vllm", "own"] = "vllm"
    """vllm: to be run with vLLM's environment. own: this project's own decoding."""
    socket: Path | None = None
    """The socket's file to listen on; only its user can open it."""
    port: Annotated[int, Ge(0), Le(65535)] = 0
    """A port of 127.0.0.1 to listen on instead; the password is VLA_RL_ENGINE_TOKEN."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the weights; auto takes the one they are stored in."""
    memory: Annotated[float, Gt(0), Le(1)] = 0.4
    """Share of a GPU's memory that vLLM takes."""


@dataclass(frozen=True)
class CertifyArguments(Config):
    """Compare what engines decide for the same observations: tokens and log-probs."""

    checkpoint: Path
    """A run folder, one of its checkpoints, a policy folder, or a hub id."""
    engines: str = "own,vllm"
    """What is compared with the teacher-forced pass of our own model, by commas: own (cached decoding), vllm, official
    (OpenVLA's own code in its own environment; without one, its recorded answers in the file of observations)."""
    observations: str = "8"
    """How many observations: pictures of noise with a suite's instructions. Or an .npz file of recorded ones."""
    suite: str = ""
    """Whose instructions; empty takes the run's own suite, or libero-spatial."""
    temperature: Temperature = 1.0
    """At which actions are sampled."""
    tolerance: Annotated[float, Ge(0), Le(10)] = 0.0
    """By how much log-probs may differ; 0 takes 1e-4 in float32 and 0.1 in bfloat16 (0.5 for OpenVLA's own code)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the weights."""
    unnorm_key: str = ""
    """Dataset whose action statistics un-normalise actions; they do not matter here, but an action's size does."""
    base: str = ""
    """Folder or hub id of the model that adapters belong to, where it is not the one they name themselves."""
    engine_python: str = ""
    """Python of vLLM's environment, or the environment's folder; empty takes VLA_RL_ENGINE_PYTHON, or .venv-vllm."""
    official_python: str = ""
    """Python of an environment with OpenVLA's releases, or the environment's folder; empty takes
    VLA_RL_OFFICIAL_PYTHON."""
    official_code: Path | None = None
    """Folder with OpenVLA's code: its repository, or a folder with its modeling_prismatic.py. Empty takes
    VLA_RL_OFFICIAL_CODE, or the package prismatic of that environment."""
    timeout: Annotated[float, Gt(0), Le(86400)] = 1800.0
    """Seconds that vLLM may take to start and to answer, and OpenVLA's own code altogether."""
    seed: Seed = 0
    """Of pictures and sampling."""
    json: Path | None = None
    """File for the whole result."""
