"""The data that crosses layers, and the axis legend used in every shape of the project.

    N  environments (slots of the vector environment), or observations of one batch
    L  those of them that this process plays, where several train together
    M  turns of one rollout window          T  turns of one episode
    C  actions in one turn (the chunk)      A  dimensions of one action
    K  action tokens of one turn, K = C * A, ordered action by action; or the most, where turns have an end token
    B  flattened samples of a minibatch     H W  image height and width     P  proprioception

A trajectory is a conversation. In turn t the user says [image o_t, instruction v] and the assistant
answers K action tokens; the simulator's next image opens the next turn (VLA-RL, arXiv 2505.18719,
section 3.1). `Episode` is that conversation, `Rollout` is a window of N of them side by side.

numpy only: simulator processes import this module and must stay small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

Message = dict[str, Any]
"""One chat message, `{"role": ..., "content": [{"type": "image"|"text", ...}]}`."""


class Start(NamedTuple):
    """A state on the way of a demonstration, in which an episode starts instead of in its initial state."""

    demonstration: int  # number of its episode in the dataset that holds the snapshots
    frame: int  # of the demonstration: so many of its actions had been played
    stage: int = 0  # of the curriculum of starts, when the episode was drawn


class EpisodeSpec(NamedTuple):
    """Which episode to play: a task by name and one of its numbered initial states.

    With `start` the episode begins further on, where a demonstration from that initial state has been. Such an episode
    is assisted, by a privileged reset: its success says nothing of the policy's on its own, and is counted apart.
    """

    task: str
    initial_state: int
    start: Start | None = None


@dataclass(frozen=True)
class Observation:
    """What the policy may see, for N environments at once."""

    images: UInt8[np.ndarray, "N H W 3"]  # RGB, upright, 0..255
    instructions: tuple[str, ...]  # N natural-language instructions
    proprio: Float32[np.ndarray, "N P"]  # end effector (m) and gripper opening, simulator units
    time_fraction: Float32[
        np.ndarray, " N"
    ]  # turns played / horizon, 0..1; only a critic may use it
    wrist: UInt8[np.ndarray, "N H W 3"] | None = None
    """What the camera at the hand sees, RGB; None unless asked for (`env.wrist_camera`)."""

    def __len__(self) -> int:
        return len(self.instructions)

    def select(self, indices: Sequence[int] | Int64[np.ndarray, " B"]) -> Observation:
        """Return the rows `indices`, in that order."""
        rows = np.asarray(indices, dtype=np.int64)
        return Observation(
            self.images[rows],
            tuple(self.instructions[int(i)] for i in rows.tolist()),
            self.proprio[rows],
            self.time_fraction[rows],
            None if self.wrist is None else self.wrist[rows],
        )

    def blank(self) -> Observation:
        """One observation of nothing, as large as these are."""
        return Observation(
            np.zeros((1, *self.images.shape[1:]), np.uint8),
            self.instructions[:1] or ("",),
            np.zeros((1, *self.proprio.shape[1:]), np.float32),
            np.zeros(1, np.float32),
            None if self.wrist is None else np.zeros((1, *self.wrist.shape[1:]), np.uint8),
        )

    @staticmethod
    def concatenate(parts: Sequence[Observation]) -> Observation:
        """Stack batches of observations along N. ValueError where some of them have a second image and some do not."""
        wrists = [p.wrist for p in parts if p.wrist is not None]
        if 0 < len(wrists) < len(parts):
            raise ValueError(
                "some observations have an image of the wrist camera, others have none"
            )
        return Observation(
            np.concatenate([p.images for p in parts]),
            tuple(text for p in parts for text in p.instructions),
            np.concatenate([p.proprio for p in parts]),
            np.concatenate([p.time_fraction for p in parts]),
            np.concatenate(wrists) if wrists else None,
        )


@dataclass(frozen=True)
class StepResult:
    """What the vector environment returns for the slots that were stepped (S of them).

    `terminated` is success, `truncated` the time limit; at most one of them is true. Where either is,
    `observation` is the true final one: no reset has happened yet, and the slot waits for the
    caller to start another episode in it.
    """

    slots: Int64[np.ndarray, " S"]
    observation: Observation
    rewards: Float32[np.ndarray, " S"]  # sparse: 1 on the turn that succeeds
    terminated: Bool[np.ndarray, " S"]
    truncated: Bool[np.ndarray, " S"]
    simulator_steps: Int64[np.ndarray, " S"]  # simulator steps this turn took
    lost: Bool[
        np.ndarray, " S"
    ]  # the worker crashed or hung: the episode must be retried, not counted


@dataclass(frozen=True)
class Turn:
    """One turn of the conversation: image and instruction in, action tokens out."""

    image: UInt8[np.ndarray, "H W 3"]
    instruction: str
    action_tokens: Int64[np.ndarray, " K"]  # action bins 0..bins-1
    log_probs: Float32[np.ndarray, " K"]  # of the distribution sampled from
    value: float  # V(o_t) when the turn was played
    reward: float  # sparse reward received for it

    def messages(self, *, action_text: str | None = None) -> list[Message]:
        """The turn as chat messages for any VLM processor with a chat template.

        `action_text` is what the assistant says; by default the bins, separated by blanks.
        """
        answer = action_text or " ".join(str(int(token)) for token in self.action_tokens)
        return [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": self.image},
                    {"type": "text", "text": self.instruction},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]


@dataclass
class Episode:
    """One conversation between the simulator and the policy, from an initial state to its end."""

    spec: EpisodeSpec
    turns: list[Turn] = field(default_factory=list[Turn])
    terminated: bool = False  # success
    truncated: bool = False  # the time limit
    final_image: UInt8[np.ndarray, "H W 3"] | None = None  # after the last turn, before any reset
    simulator_steps: int = 0

    @property
    def success(self) -> bool:
        return self.terminated

    def __len__(self) -> int:
        return len(self.turns)

    def messages(self) -> list[Message]:
        """The whole episode as one multi-turn chat; the instruction is said in every turn."""
        return [message for turn in self.turns for message in turn.messages()]

    def frames(self) -> list[UInt8[np.ndarray, "H W 3"]]:
        """The images in order, the final one included where it was kept."""
        last = [] if self.final_image is None else [self.final_image]
        return [turn.image for turn in self.turns] + last


@dataclass(frozen=True)
class Rollout:
    """A window of M turns in N environments, as the learner needs it.

    Episodes run across window edges: the next window goes on where this one stopped. Or every episode is played
    to its end; an environment without another one to play is then idle for the rest of the window.

    `final_values` is V of the true final observation where a turn ended its episode by the time limit, 0 elsewhere;
    `next_values` is V of the observation that follows the window.
    """

    images: UInt8[np.ndarray, "M L H W 3"]  # of this process's environments
    task_ids: Int64[np.ndarray, "M N"]  # index into `instructions`
    tasks: tuple[str, ...]  # the suite's tasks, in order
    instructions: tuple[str, ...]  # one per task of the suite
    initial_states: Int64[np.ndarray, "M N"]
    episode_ids: Int64[np.ndarray, "M N"]
    """Which episode the turn belongs to: its number in the run, -1 where the environment was idle. An episode that
    was lost with its simulator and is played again has another number then."""
    group_ids: Int64[np.ndarray, "M N"]
    """Which group the episode belongs to: those drawn together from one initial state, to be compared with each other.
    An episode drawn alone is a group of its own. -1 where the environment was idle."""
    proprio: Float32[np.ndarray, "M N P"]
    time_fraction: Float32[np.ndarray, "M N"]
    tokens: Int64[np.ndarray, "M N K"]
    log_probs: Float32[np.ndarray, "M N K"]
    values: Float32[np.ndarray, "M N"]
    rewards: Float32[np.ndarray, "M N"]
    terminated: Bool[np.ndarray, "M N"]
    truncated: Bool[np.ndarray, "M N"]
    final_values: Float32[np.ndarray, "M N"]
    next_values: Float32[np.ndarray, " N"]
    next_images: UInt8[np.ndarray, "L H W 3"]  # what follows the window
    succeeded: Bool[np.ndarray, "M N"]  # of an episode that succeeded in this window
    valid: Bool[np.ndarray, "M N"]
    """False where a crashed simulator left a turn without an outcome, and where an environment was idle."""
    temperature: float  # the sampler's
    simulator_rewards: Float32[np.ndarray, "M N"] | None = None
    """The simulator's own dense reward after each turn, 0..1, NaN where it could not be had; None unless asked for."""
    first: int = 0
    """The first of this process's environments among the N. Where several processes train together, each knows all of
    the window but the images of the others."""
    versions: Int64[np.ndarray, "M N"] | None = None
    """After how many windows of learning the weights were that decided the turn; None: not recorded."""
    shards: Int64[np.ndarray, " N"] | None = None
    """Shard of each environment; None: all are of shard 0."""
    assisted: Bool[np.ndarray, "M N"] | None = None
    """The turn's episode started at a state of a demonstration (`EpisodeSpec.start`); None: not recorded."""

    @property
    def own(self) -> slice:
        """Which of the N environments are this process's: those whose images are here."""
        return slice(self.first, self.first + self.images.shape[1])

    @property
    def ended(self) -> Bool[np.ndarray, "M N"]:
        """The turn was its episode's last: success, the time limit, or no outcome."""
        return self.terminated | self.truncated | ~self.valid

    @property
    def num_turns(self) -> int:
        """Turns that were played."""
        return int((self.episode_ids >= 0).sum())

    def flat_observation(self) -> Observation:
        """All turns of this process's environments as one batch, window-major: sample b = m * L + l."""
        flat = self.task_ids[:, self.own].reshape(-1)
        return Observation(
            self.images.reshape(-1, *self.images.shape[2:]),
            tuple(self.instructions[int(i)] for i in flat.tolist()),
            self.proprio[:, self.own].reshape(len(flat), -1),
            self.time_fraction[:, self.own].reshape(-1),
        )
