"""The commands: what each is for, how it is called, and the recipe it runs."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple, TypeVar, cast

from vla_rl.cli import arguments, calls, comparing, door_arguments
from vla_rl.cli.arguments import (
    CertifyArguments,
    ConvertArguments,
    DoctorArguments,
    EngineServeArguments,
    EvalArguments,
    FilmArguments,
    LearningCurveArguments,
    PlanArguments,
    ReportArguments,
)
from vla_rl.cli.door_arguments import CheckEnvArguments, RemoteEvalArguments, ServeArguments
from vla_rl.cli.needs import require_extras
from vla_rl.cli.options import PRINT_CONFIG, ParseCommand, parse, say
from vla_rl.config import (
    AblationConfig,
    DemosConfig,
    ExportConfig,
    RewardCollectConfig,
    RewardEvalConfig,
    RewardLabelConfig,
    RewardModelConfig,
    RewardScoreConfig,
    SFTConfig,
    TrainConfig,
)
from vla_rl.config.agreement import AgreementConfig
from vla_rl.config.analysis import AnalysisConfig
from vla_rl.config.comparison import CompareConfig, CompareDataConfig
from vla_rl.config.preference import PreferConfig
from vla_rl.config.push import PushConfig, RerunConfig
from vla_rl.config.quickstart import QuickstartConfig
from vla_rl.config.reproduce import ReproduceConfig
from vla_rl.config.search import ScalingConfig

C = TypeVar("C")

WITH_PRESET = ("train", "ablate", "plan", "compare data")
"""Commands whose first word may be a preset."""


def parse_command(
    cls: type[C], words: list[str], command: str, default: C | None = None, notes: str = ""
) -> C:
    """The options in `words` of the command called `command`; its help has its summary and examples.

    UserError, one line, for options that do not fit and for packages that are not installed.
    """
    entry = COMMANDS[command]
    examples = "Examples:\n" + "\n".join(f"  {example}" for example in entry.examples)
    summary = f"{entry.summary[0].upper()}{entry.summary[1:]}."
    parts = [summary, notes, f"{PRINT_CONFIG} prints all settings as JSON, and ends.", examples]
    config = parse(
        cls,
        words,
        command=command,
        description="\n\n".join(part for part in parts if part),
        default=default,
        usage=" [PRESET]" if command in WITH_PRESET else "",
        flat=cls in (EvalArguments, RemoteEvalArguments),
    )
    require_extras(command, config)
    return config


class Recipe(NamedTuple):
    """A command that parses a `config`, gives it to `function` in `module`, and says what that returned.

    The module is imported when the command runs, so that no command waits for another's libraries.
    """

    config: type[Any]
    """Given as it is, or field by field if it is one of `cli.arguments`."""
    module: str
    function: str
    says: str

    def __call__(self, words: list[str], parse_command: ParseCommand) -> int:
        command = next(name for name, entry in COMMANDS.items() if entry.run is self)
        config = parse_command(self.config, words, command)
        result = self.call(config)
        say(f"{self.says}: {result}")
        return 0

    def call(self, config: Any) -> Any:
        """What the function returns for a parsed `config`."""
        function = getattr(import_module(f"vla_rl.{self.module}"), self.function)
        by_field = self.config.__module__ in (arguments.__name__, door_arguments.__name__)
        return function(**vars(config)) if by_field else function(config)


class Command(NamedTuple):
    """What a command does, in a line, how it is called, and the function that does it."""

    summary: str
    examples: tuple[str, ...]
    run: Callable[[list[str], ParseCommand], int]
    settings: type[Any] | None = None

    @property
    def config(self) -> type[Any]:
        """The dataclass of its options; a `Recipe` knows its own."""
        return self.settings or cast(Recipe, self.run).config


COMMANDS: dict[str, Command] = {
    "quickstart": Command(
        "the whole job: demonstrations, fine-tuning, PPO, evaluation, report",
        (
            "vla-rl quickstart",
            "vla-rl quickstart --preset toy --out runs/toy",
            "vla-rl quickstart --preset metaworld-mt10 --episodes 40000 --out runs/mt10",
        ),
        calls.quickstart,
        QuickstartConfig,
    ),
    "demos": Command(
        "collect expert demonstrations as a LeRobotDataset v3",
        (
            "vla-rl demos --env.suite mt5 --episodes-per-task 5 --out runs/demos",
            "vla-rl demos --env.suite libero-object --episodes-per-task 10 --out runs/libero-demos",
            "vla-rl demos --env.suite mt5 --episodes-per-task 50 --snapshots --out runs/starts",
        ),
        calls.demos,
        DemosConfig,
    ),
    "convert": Command(
        "convert LIBERO's official demonstrations into a LeRobotDataset v3",
        ("vla-rl convert datasets/libero_spatial --out runs/libero-spatial --image-size 224",),
        Recipe(ConvertArguments, "data.libero_hdf5", "convert_libero_hdf5", "Demonstrations"),
    ),
    "sft": Command(
        "fine-tune a policy on demonstrations",
        ("vla-rl sft --dataset runs/demos --out runs/sft",),
        calls.sft,
        SFTConfig,
    ),
    "train": Command(
        "improve a policy by practice: PPO, GRPO or TPO",
        (
            "vla-rl train toy",
            "vla-rl train metaworld-mt5 --policy.checkpoint runs/sft/policy --run.name first",
            "vla-rl train metaworld-mt5 --policy.checkpoint runs/sft/policy --optimizer.learning-rate 1e-4",
            "vla-rl train --resume runs/first --schedule.iterations 120",
        ),
        calls.train,
        TrainConfig,
    ),
    "prefer": Command(
        "improve a policy by logged successes and failures, without a simulator (TPO)",
        (
            "vla-rl prefer --dataset runs/play --policy.checkpoint runs/sft --out runs/prefer",
        ),
        calls.prefer,
        PreferConfig,
    ),
    "plan": Command(
        "say beforehand what fits on a machine, how fast it will be, and how to start it",
        (
            "vla-rl plan metaworld-mt5",
            "vla-rl plan libero-spatial-openvla-7b --gpus 8 --gpu-memory 80 --cpus 96 --env.num-envs 80",
            "vla-rl plan libero-spatial-openvla-7b --gpus 8 --nodes 4 --episodes 50000 --json plan.json",
            "vla-rl plan metaworld-mt5 --calibrate runs/first --parallel.ranks 2",
        ),
        calls.plan,
        PlanArguments,
    ),
    "eval": Command(
        "evaluate a policy on held-out initial states",
        (
            "vla-rl eval runs/first --suite mt5 --episodes-per-task 30 --json result.json",
            "vla-rl eval runs/sft/policy --temperature 1 --videos 2",
            "vla-rl eval openvla/openvla-7b-finetuned-libero-spatial --suite libero-spatial",
            "vla-rl eval runs/first --best-of 8 --reward-model runs/reward",
            "vla-rl eval runs/sft --starts runs/demos --fractions 0 0.1 0.2 0.4 --json starts.json",
            "vla-rl eval --policy ws://127.0.0.1:8000 --suite libero-object",
        ),
        calls.evaluate,
        EvalArguments,
    ),
    "reproduce": Command(
        "reach a published figure with its checkpoint, or find out why not",
        (
            "vla-rl reproduce libero-spatial",
            "vla-rl reproduce libero-object --episodes-per-task 5 --demos datasets/libero_object",
            "vla-rl reproduce libero-goal --checkpoint checkpoints/goal --practice-iterations 0",
            "vla-rl reproduce toy --checkpoint runs/sft/policy --publish",
        ),
        calls.reproduce,
        ReproduceConfig,
    ),
    "reward collect": Command(
        "keep whole episodes of a policy, failures among them, for a process reward model",
        ("vla-rl reward collect runs/sft --episodes-per-task 20 --out runs/play",),
        Recipe(RewardCollectConfig, "recipes.label_trajectories", "collect_trajectories", "Trajectories"),
    ),
    "reward label": Command(
        "label the turns of trajectories, and draw them",
        ("vla-rl reward label runs/demos --plot",),
        Recipe(RewardLabelConfig, "recipes.label_trajectories", "label_dataset", "Labels"),
    ),
    "reward train": Command(
        "train a process reward model: what the robot is doing, scored from images",
        ("vla-rl reward train --datasets runs/demos runs/play --out runs/reward",),
        calls.reward_train,
        RewardModelConfig,
    ),
    "reward eval": Command(
        "measure a process reward model on episodes it was not trained on",
        ("vla-rl reward eval runs/reward",),
        calls.reward_eval,
        RewardEvalConfig,
    ),
    "reward score": Command(
        "draw what a process reward model thinks of an episode, over time",
        ("vla-rl reward score runs/reward runs/play --episode 3 --out episode.png",),
        Recipe(RewardScoreConfig, "recipes.evaluate_reward", "score_reward", "Image"),
    ),
    "test-time": Command(
        "success against the number of candidates at test time",
        ("vla-rl test-time runs/sft/policy --search.reward-model runs/reward --out runs/scaling",),
        Recipe(ScalingConfig, "recipes.test_time_scaling", "scaling_study", "Table"),
    ),
    "learning-curve": Command(
        "success against the updates of PPO, of a run that was evaluated on its way",
        ("vla-rl learning-curve runs/first",),
        Recipe(LearningCurveArguments, "recipes.learning_curve", "training_curve", "Image"),
    ),
    "ablate": Command(
        "train a preset whole and without each of its parts (or part by part), and compare",
        (
            "vla-rl ablate metaworld-mt5 --checkpoint runs/sft/policy --reward-model runs/reward --minutes 8",
            "vla-rl ablate metaworld-mt5 --build-up --checkpoint runs/sft/policy --reward-model runs/reward",
        ),
        comparing.ablate,
        AblationConfig,
    ),
    "compare": Command(
        "compare training runs: by episodes and by minutes, over seeds and held-out states",
        (
            "vla-rl compare runs/a-seed-* runs/b-seed-*",
            "vla-rl compare ppo=runs/a-* grpo=runs/b-* --out runs/comparison",
        ),
        comparing.compare,
        CompareConfig,
    ),
    "compare data": Command(
        "practice against more demonstrations: fine-tuning on many, practice from few",
        ("vla-rl compare data metaworld-mt5 --seeds 3 --jobs 2",),
        comparing.compare_data,
        CompareDataConfig,
    ),
    "export": Command(
        "write a policy for other software: merged, or its adapters",
        (
            "vla-rl export runs/first --out runs/export",
            "vla-rl export runs/first --out runs/adapter --adapter",
        ),
        Recipe(ExportConfig, "recipes.export", "export", "Exported"),
    ),
    "push": Command(
        "send a policy, a reward model or a dataset to the Hugging Face hub, with its card",
        (
            "vla-rl push runs/first owner/name",
            "vla-rl push runs/first owner/name --to-folder runs/first-on-the-hub",
            "vla-rl push runs/demos owner/demos --public --license cc-by-4.0",
        ),
        Recipe(PushConfig, "recipes.push", "push", "Pushed"),
    ),
    "rerun": Command(
        "write episodes of a dataset for rerun's viewer",
        (
            "vla-rl rerun runs/demos --out recordings",
            "vla-rl rerun runs/play --episodes 3 14 --out failures",
        ),
        Recipe(RerunConfig, "recipes.rerun_episodes", "write_rerun", "Recordings"),
    ),
    "report": Command(
        "write a run's report as one HTML file, or serve it while the run trains",
        ("vla-rl report runs/first", "vla-rl report runs/first --live"),
        calls.report,
        ReportArguments,
    ),
    "analyse": Command(
        "say what practice changed: action coverage, episode length, kinds of failures",
        (
            "vla-rl analyse runs/first",
            "vla-rl analyse runs/first --against runs/sft --episodes-per-task 20",
            "vla-rl analyse runs/first --strips 50 --labels labels.csv",
        ),
        calls.analyse,
        AnalysisConfig,
    ),
    "film": Command(
        "show one task before and after practice, as a short animated image",
        ("vla-rl film runs/quickstart --task drawer-open --out film.gif",),
        Recipe(FilmArguments, "report.figures.film", "write_film", "Film"),
    ),
    "certify": Command(
        "compare what engines decide with our own model's log-probs",
        (
            "vla-rl certify runs/sft/policy",
            "vla-rl certify runs/first --engines own,vllm --observations 32 --json certificate.json",
        ),
        calls.certify,
        CertifyArguments,
    ),
    "agree": Command(
        "compare a policy with logged episodes: how far apart, how likely, where they part",
        (
            "vla-rl agree runs/sft --dataset datasets/robot",
            "vla-rl agree runs/sft --dataset datasets/robot --outcome success --json agreement.json",
        ),
        calls.agree,
        AgreementConfig,
    ),
    "serve": Command(
        "serve a policy over WebSocket, to robots and to the evaluations of others",
        (
            "vla-rl serve runs/first --port 8000",
            "vla-rl serve runs/first --protocol vla-eval",
            "vla-rl serve runs/first --host 0.0.0.0 --key-file ~/.vla-rl-key",
            "vla-rl serve runs/sft --robot --limits.low -1 --limits.high 1 --limits.change 0.1",
        ),
        Recipe(ServeArguments, "recipes.serve", "serve", "Server"),
    ),
    "check-env": Command(
        "check that a simulator keeps what training relies on, and say what it is like",
        (
            "vla-rl check-env toy",
            "vla-rl check-env 'gym:my_module:MyEnv-v0,instruction=push the block'",
        ),
        calls.check_env,
        CheckEnvArguments,
    ),
    "engine serve": Command(
        "serve a policy's actions to training runs on this machine",
        (
            "vla-rl engine serve runs/export --backend own --socket runs/engine.socket",
            ".venv-vllm/bin/vla-rl engine serve runs/export --port 5005",
        ),
        Recipe(EngineServeArguments, "recipes.serve_engine", "serve_engine", "Engine"),
    ),
    "doctor": Command(
        "check this machine and say how to mend what is wrong",
        ("vla-rl doctor", "vla-rl doctor --json", "vla-rl doctor --checkpoint openvla/openvla-7b"),
        calls.doctor,
        DoctorArguments,
    ),
}  # fmt: skip
