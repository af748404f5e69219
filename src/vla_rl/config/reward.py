"""The process reward model: what it is taught to call progress, how it is trained, and what practice makes of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from vla_rl.config.bounds import (
    Config,
    Count,
    NotNegative,
    PixelsOrStored,
    Positive,
    Seed,
    Share,
    ShareBelowOne,
    Shift,
    TemperatureOrGreedy,
    Whole,
    Workers,
)  # fmt: skip
from vla_rl.config.errors import require
from vla_rl.config.policy import LoraConfig


@dataclass(frozen=True)
class LabelConfig(Config, group="labels"):
    """How trajectories are labelled. Times are seconds of robot time, so that one setting fits every action rate.

    The paper (arXiv 2505.18719, section 3.3) names the ideas and no number; every number here is ours.
    """

    scheme: Literal["keyframe", "segments"] = "keyframe"
    """keyframe (the paper's): milestones are where the gripper changes, key frames where the hand comes to rest, and
    the turns that lead there are positive. segments (a second source's): equal parts in time with rising progress."""
    gripper: Literal["auto", "measured", "commanded"] = "auto"
    """Where the opening of the gripper is read: from proprioception, or from the gripper command in the action. auto
    measures where the robot's layout is known and the trajectory has proprioception."""
    gripper_change: Share = 0.25
    """A milestone is a change of the opening by at least this share of the gripper's full stroke (0..1)."""
    gripper_hysteresis: Annotated[float, Gt(0), Le(1)] = 0.1
    """A reversal smaller than this share of the full stroke does not interrupt a change: noise, or settling fingers."""
    min_segment: NotNegative = 0.375
    """Shortest segment in seconds, the last one apart: a gripper that opens and closes again within it is ignored, and
    so is a change so near to the beginning, where robots put themselves right."""
    near_zero_speed: Share = 0.15
    """The hand is at rest below this share of the trajectory's own speed scale (its 90 % quantile)."""
    leaving_speed: Share = 0.3
    """It is under way again above this share; in between it stays what it was, so that noise makes no key frames."""
    speed_floor: NotNegative = 0.01
    """Speed in m/s below which the hand is at rest however slow the trajectory is as a whole."""
    ends_are_key: bool = True
    """The end of a segment is a key frame too: the gripper has changed there, or the task was solved. Episodes stop at
    success, in mid-motion, so without it the goal itself is no key frame. False is the paper to the letter."""
    window: Positive = 0.25
    """Turns that begin within so many seconds before a key frame, and the key frame's own, are positive; never beyond
    the previous milestone."""
    window_share: Share = 0.5
    """And never more than this share of the way from the previous key frame: fast robots would have no negatives."""
    margin: NotNegative = 0.125
    """Turns so many seconds ahead of a window are neither positive nor negative: they look like both."""
    failure_share: Share = 1.0
    """The last share of a failed trajectory whose turns are negative; those before are left out."""
    num_segments: Annotated[int, Ge(1), Le(10_000)] = 5
    """segments: equal parts into which a trajectory is cut."""
    failure_peak: Share = 0.5
    """segments: progress that a failed trajectory would reach at its end if it rose on as in its first half."""
    failure_end: Share = 0.25
    """segments: progress of a failed trajectory in all parts that end beyond its middle."""
    positive_progress: Share = 0.5
    """segments: turns with more progress than this are positive, the others negative."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.gripper_hysteresis <= self.gripper_change,
            "labels.gripper_hysteresis must be at most labels.gripper_change = "
            f"{self.gripper_change}, got {self.gripper_hysteresis}",
        )
        require(
            self.near_zero_speed <= self.leaving_speed,
            f"labels.leaving_speed must be at least labels.near_zero_speed = {self.near_zero_speed}, got "
            f"{self.leaving_speed}",
        )


@dataclass(frozen=True)
class RewardCollectConfig(Config):
    """Play a policy on the training split and keep whole trajectories, failures among them."""

    checkpoint: str
    """A run folder, one of its checkpoints, a policy folder, or a hub id (owner/name)."""
    out: str = "runs/trajectories"
    """Folder of the LeRobotDataset v3 to write; must not exist yet."""
    suite: str = ""
    """Suite to play; empty takes the one the policy was trained on."""
    episodes_per_task: Count = 20
    """Initial states of the training split to play of every task, each once."""
    temperature: TemperatureOrGreedy = 1.0
    """Sampling temperature; 0 is greedy. Sampled play shows more ways to fail."""
    image_format: Literal["png", "mp4"] = "png"
    """png: every frame as it is. mp4: lossy video, in a fraction of the space."""
    workers: Workers = 0
    """Simulator processes; 0 takes one per CPU core. The result does not depend on it."""
    seed: Seed = 0
    """Chooses the initial states, and fixes the sampling."""


@dataclass(frozen=True)
class RewardLabelConfig(Config):
    """Label the trajectories of a dataset."""

    dataset: str
    """Folder of a LeRobotDataset v3: demonstrations, or what `vla-rl reward collect` wrote."""
    out: str = ""
    """Folder for the labels; empty takes <dataset>/labels. Must not exist yet."""
    action_chunk: Annotated[int, Ge(0), Le(1024)] = 0
    """Actions a turn; 0 takes those stored, one for demonstrations."""
    camera: str = ""
    """Feature that holds the images; empty takes observation.images.image, or the only camera."""
    image_fit: Literal["pad", "crop", "stretch"] = "pad"
    """How frames that are not square become it: black bars, the middle square, or out of proportion."""
    labels: LabelConfig = field(default_factory=LabelConfig)
    """How the turns are labelled."""
    plot: bool = False
    """Draw every trajectory with its labels, into <out>/plots."""
    max_plots: Count = 50
    """At most so many of them, spread evenly over tasks and outcomes."""


PROGRESS_PROMPT = (
    "Task: {instruction}\nRate the progress toward completing the task (0-1):"  # the article's
)
"""What head regression asks; the steps so far and the present observation stand between its two lines."""


@dataclass(frozen=True)
class RewardModelConfig(Config, saved=("datasets", "labels")):
    """Train a process reward model: a vision-language model that says whether the robot gets on with its task."""

    datasets: tuple[str, ...] = ("runs/demos",)
    """Folders of LeRobotDatasets v3: demonstrations, and the policy's own play with its failures."""
    out: str = "runs/reward"
    """Run folder; the reward model is written to <out>/reward_model."""
    labels: LabelConfig = field(default_factory=LabelConfig)
    """How the turns are labelled."""
    backbone: str = "tiny"
    """tiny: this project's own model class, trained from scratch on a CPU. Else a folder or hub id of an image-text
    model (Qwen/Qwen2-VL-2B-Instruct is the paper's authors')."""
    start: str = ""
    """Folder of a reward model to train further, instead of starting from the backbone. It keeps its own prompt,
    answers, history and size, and those given here must be the same. Its split is kept too: what it learned from
    never measures the new one."""
    head: Literal["next-token", "regression"] = "next-token"
    """next-token (the paper's): the next token is the answer. regression (the article's): a small network on the last
    token's hidden state gives progress, 0 to 1, from the images and the actions of the steps so far; it learns the
    progress of labels.scheme segments."""
    prompt: str = "The task is {instruction}, is it completed?"
    """What the model is asked about the image (the authors' question). Its next token is the answer."""
    positive_answer: str = "1"
    """The answer for progress; must be a single token of the model's tokenizer."""
    negative_answer: str = "0"
    """The answer for none; must be another single token."""
    sees_actions: bool = False
    """The proposed actions of the turn are part of the prompt: R(o, a) as in the paper's algorithm 1."""
    action_chunk: Annotated[int, Ge(0), Le(1024)] = 0
    """Actions a turn; 0 takes those stored, one for demonstrations. Matters where the model sees actions."""
    history: Annotated[int, Ge(0), Le(64)] = 0
    """Images the model sees: the turn's own and those of the turns before it. Head regression sees the actions between
    them, too. 0: 1 for head next-token, 5 for regression (the last four steps)."""
    camera: str = ""
    """Feature that holds the images; empty takes observation.images.image, or the only camera."""
    image_size: PixelsOrStored = 0
    """Height and width to which the images are resized; 0 keeps them as stored."""
    image_fit: Literal["pad", "crop", "stretch"] = "pad"
    """How frames that are not square become it: black bars, the middle square, or out of proportion."""
    held_out_tasks: tuple[str, ...] = ()
    """Tasks (by name or instruction) never trained on, to measure what the model makes of new ones."""
    validation_fraction: ShareBelowOne = 0.2
    """Share of each task's episodes that are held out, whole; episodes from the same initial state stay together."""
    mismatched_share: ShareBelowOne = 0.3
    """Share of the training examples that are images under another task's instruction. They are all negative, so only
    images are taken that cannot be positive there (rewards/process/mismatched.py)."""
    action_coef: NotNegative = 1.0
    """tiny only: weight of a second task, to name the action that was taken (as token after token, like a policy). It
    teaches a model that starts from nothing where hand and objects are; 0 is off."""
    epochs: Whole = 0
    """Passes over the labelled turns; 0: 25 for the tiny backbone, 10 for any other (the authors')."""
    batch_size: Whole = 0
    """Examples per optimizer step; 0: 64 for the tiny backbone, 8 for any other."""
    micro_batch: Whole = 0
    """Examples per forward pass, gradients being accumulated over a batch; 0 takes the whole batch."""
    learning_rate: Annotated[float, Ge(0), Le(1e30)] = 0.0
    """Peak learning rate of AdamW; 0: 1e-3 for the tiny backbone, 1e-4 for any other (the authors'), 1e-5 for any other
    with head regression (the article's)."""
    weight_decay: Annotated[float, Ge(-1), Le(1)] = -1.0
    """Decoupled weight decay of AdamW; -1: 0.05 for head next-token, 0.01 for regression (the article's)."""
    warmup_steps: Whole = 20
    """Steps over which the learning rate rises; it then falls along a cosine."""
    max_grad_norm: Positive = 1.0
    """Gradients with a larger Euclidean norm are scaled down to it."""
    random_shift: Shift = 3
    """Images are shifted by up to so many pixels each way; all images of one example alike."""
    lora: LoraConfig | None = None
    """Adapters on a backbone that is not the tiny one; without them rank 32, alpha 16."""
    all_weights: bool = False
    """Train all weights of such a backbone instead of adapters."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the frozen weights of such a backbone. auto: bfloat16 on a GPU, else float32."""
    device: str = "auto"
    """auto takes CUDA where there is a GPU, else the CPU."""
    threads: Workers = 0
    """CPU shares into which a batch is split, one thread each; 0 takes one per core."""
    seed: Seed = 0
    """Seeds the weights that start from nothing, the split of episodes, the order and the shifts of the images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.datasets), "datasets is empty: give at least one folder of episodes")
        require(
            "{instruction}" in self.prompt
            and not set("{}") & set(self.prompt.replace("{instruction}", "")),
            f"prompt must contain {{instruction}} and no other braces, got {self.prompt!r}",
        )
        require(
            bool(self.positive_answer.strip()) and bool(self.negative_answer.strip())
            and self.positive_answer.strip() != self.negative_answer.strip(),
            "positive_answer and negative_answer must be two different words, got "
            f"{self.positive_answer!r} and {self.negative_answer!r}",
        )  # fmt: skip
        require(
            not (self.is_tiny and (self.lora is not None or self.all_weights)),
            "lora and all_weights are for pretrained backbones: the tiny one is always trained whole",
        )
        require(
            not (self.lora is not None and self.all_weights),
            "lora and all_weights exclude each other",
        )
        require(
            self.weight_decay >= 0 or self.weight_decay == -1,
            f"weight_decay must be 0 to 1, or -1 for the head's own, got {self.weight_decay:g}",
        )
        self._check_head()

    def _check_head(self) -> None:
        if self.head != "regression":
            return
        require(
            self.history != 1,
            "head regression reads the images and actions of the steps so far, and history 1 leaves none: set history "
            "to 2 or more (5: the last four steps), or take head next-token",
        )
        require(
            not self.sees_actions,
            "head regression reads the actions of the steps so far and gives the progress that they have made; "
            "sees_actions, the action that is only proposed, belongs to head next-token: leave out one of the two",
        )

    @property
    def regresses(self) -> bool:
        """Whether progress itself is learned."""
        return self.head == "regression"

    @property
    def reads_actions(self) -> bool:
        """Whether it reads actions at all, proposed ones or those of the steps so far."""
        return self.sees_actions or self.regresses

    @property
    def is_tiny(self) -> bool:
        """Whether the backbone is the project's own."""
        return self.backbone == "tiny"

    def resolved(self) -> RewardModelConfig:
        """The same with everything that stands for a default of the backbone or the head replaced by it."""
        adapters = self.lora or (None if self.is_tiny or self.all_weights else LoraConfig())
        rate = 1e-3 if self.is_tiny else 1e-5 if self.regresses else 1e-4
        decay = 0.01 if self.regresses else 0.05
        return replace(
            self,
            labels=replace(self.labels, scheme="segments") if self.regresses else self.labels,
            prompt=PROGRESS_PROMPT if self.regresses else self.prompt,
            history=self.history or (5 if self.regresses else 1),
            epochs=self.epochs or (25 if self.is_tiny else 10),
            batch_size=self.batch_size or (64 if self.is_tiny else 8),
            learning_rate=self.learning_rate or rate,
            weight_decay=decay if self.weight_decay == -1 else self.weight_decay,
            lora=adapters,
        )


@dataclass(frozen=True)
class RewardEvalConfig(Config):
    """Measure a process reward model on episodes it was not trained on."""

    reward_model: str
    """A run folder of `vla-rl reward train`, or the reward model in it."""
    datasets: tuple[str, ...] = ()
    """Other datasets to measure on, all of their episodes; empty takes the episodes that training held out."""
    out: str = ""
    """Folder for evaluation.json and reliability.png; empty takes `evaluation` beside the reward model."""
    bins: Annotated[int, Ge(1), Le(1000)] = 10
    """Bins of the reliability plot and of the expected calibration error."""
    resamples: Annotated[int, Ge(0), Le(1_000_000)] = 200
    """Bootstrap resamples of whole episodes behind the 95 % intervals; 0 for none."""
    seed: Seed = 0
    """Of the bootstrap."""


@dataclass(frozen=True)
class RewardScoreConfig(Config):
    """Draw what a process reward model thinks of one episode, over time, above its images."""

    reward_model: str
    """A run folder of `vla-rl reward train`, or the reward model in it."""
    dataset: str
    """Folder of the LeRobotDataset v3 with the episode."""
    episode: Whole = 0
    """Its number in the dataset."""
    instruction: str = ""
    """Score it under this instruction instead of its own."""
    out: str = "reward.png"
    """The image. A name that ends in .mp4 makes a video instead."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.out.endswith((".png", ".mp4")), f"out must end in .png or .mp4, got {self.out!r}"
        )


@dataclass(frozen=True)
class ProcessRewardConfig(Config, group="reward"):
    """A dense reward for each turn, beside the simulator's success."""

    kind: str = "auto"
    """Where the dense reward comes from: one of REWARDS in rewards/registry.py. success: there is none. process: a
    process reward model. simulator: its own dense reward (Meta-World, toy), which sees objects and goal; it is an upper
    bound that shows whether a reward model could help at all. auto: process where a model is given, else success."""
    model: str = ""
    """Folder of a process reward model (`vla-rl reward train`). Giving it is enough to use it."""
    weight: NotNegative = 0.3
    """What an episode that looks like certain success from its first turn on is worth; success itself pays 1."""
    form: Literal["additive", "potential", "progress"] = "additive"
    """additive: each turn is paid its score, divided by the horizon; a success is paid for the turns that it saved, as
    if each of them had the best score. potential: gamma Phi(next) - Phi(now), which leaves the best policy as it is.
    progress: Phi(next) - Phi(now), with Phi = weight once the task is done; it goes into the advantages alone, over the
    next few turns (ppo.gae_lambda), and the critic learns success only."""
    limit: ShareBelowOne = 0.5
    """additive: the most that an episode's dense rewards may add up to. It is below 1, so that success is worth most. A
    weight that could pass it is lowered, with a warning."""
    normalize: bool = False
    """Divide the scores by their running root mean square, so that the reward model's calibration does not set the size
    of the reward."""
    refresh_every: Whole = 0
    """Iterations after which the reward model is trained further, on new episodes of the policy as it is by then; 0 is
    never."""
    refresh_episodes: Count = 8
    """Episodes per task that a refresh plays, on the training split."""
    refresh_epochs: Count = 5
    """Passes of a refresh over all its episodes, old and new."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.model != "simulator",
            "reward.model is the folder of a reward model, got 'simulator': set reward.kind simulator for the "
            "simulator's own reward, or write ./simulator for a folder of that name",
        )
        require(
            self.kind != "process" or bool(self.model),
            "reward.kind process needs the folder of a reward model: set reward.model (from `vla-rl reward train`)",
        )
        require(
            self.kind not in ("success", "simulator") or not self.model,
            f"reward.kind {self.kind} uses no reward model, got reward.model {self.model!r}: set "
            "reward.kind process, or leave reward.model out",
        )
        require(
            not self.asks_simulator or self.refresh_every == 0,
            "reward.refresh_every trains a reward model, the simulator needs no training: leave it at 0, or give "
            "reward.model",
        )

    @property
    def chosen_kind(self) -> str:
        """`kind`, with `auto` decided."""
        if self.kind != "auto":
            return self.kind
        return "process" if self.model else "success"

    @property
    def asks_simulator(self) -> bool:
        """Whether the simulator's own dense reward is needed."""
        return self.chosen_kind == "simulator"
