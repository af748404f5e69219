r"""ACT and a small diffusion policy: LeRobot's own classes, trained on our demonstrations, served to `vla-rl eval`.

    python benchmarks/lerobot_baseline.py train act runs/demos --minutes 20 --out runs/act
    python benchmarks/lerobot_baseline.py serve runs/act --port 8000
    vla-rl eval --policy ws://127.0.0.1:8000 --suite mt5 --light --image-size 64 --action-repeat 5 --replan 5 \
        --horizon 6 --episodes-per-task 30 --json act.json

For LeRobot's environment, not for ours: lerobot 0.4.4 wants an older numpy and another torch. docs/results/baselines.md
says how it was made. Neither policy reads: which task it is, it is told by a one-hot vector (LeRobot's
`observation.environment_state`), beside the image and the robot's state.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch


def with_torchvision() -> None:
    """Import torchvision, also where its operators are compiled for another torch: no policy here uses them."""
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        globals()["_operators"] = library  # they go with it
        import torchvision  # noqa: F401


with_torchvision()

from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature  # noqa: E402
from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata  # noqa: E402
from lerobot.policies.act.configuration_act import ACTConfig  # noqa: E402
from lerobot.policies.act.modeling_act import ACTPolicy  # noqa: E402
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig  # noqa: E402
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy  # noqa: E402
from lerobot.policies.factory import make_pre_post_processors  # noqa: E402

IMAGE, STATE, TASK, ACTION = (
    "observation.images.image", "observation.state", "observation.environment_state", "action",
)  # fmt: skip
CHUNK = 8
"""Turns that are predicted at once."""


def make_policy(
    kind: str, tasks: int, state: int, action: int, side: int
) -> ACTPolicy | DiffusionPolicy:
    """A policy of less than 20 million parameters, from random weights."""
    shared: dict[str, Any] = {
        "n_obs_steps": 1,
        "n_action_steps": CHUNK,
        "device": "cpu",
        "input_features": {
            IMAGE: PolicyFeature(FeatureType.VISUAL, (3, side, side)),
            STATE: PolicyFeature(FeatureType.STATE, (state,)),
            TASK: PolicyFeature(FeatureType.ENV, (tasks,)),
        },
        "output_features": {ACTION: PolicyFeature(FeatureType.ACTION, (action,))},
    }
    if kind == "act":
        return ACTPolicy(
            ACTConfig(
                **shared,
                chunk_size=CHUNK,
                pretrained_backbone_weights=None,
                dim_model=256,
                n_heads=4,
                dim_feedforward=1024,
                n_vae_encoder_layers=2,
            )
        )
    return DiffusionPolicy(
        DiffusionConfig(
            **shared,
            horizon=CHUNK,
            down_dims=(128, 256),
            drop_n_last_frames=0,
            do_mask_loss_for_padding=True,
            noise_scheduler_type="DDIM",
            num_inference_steps=10,
            normalization_mapping={
                "VISUAL": NormalizationMode.MEAN_STD,
                "STATE": NormalizationMode.MIN_MAX,
                "ACTION": NormalizationMode.MIN_MAX,
                "ENV": NormalizationMode.IDENTITY,
            },
        )
    )


def resized(images: torch.Tensor, side: int) -> torch.Tensor:
    """`N 3 H W` in 0..1, as large as the policy wants them: its backbone halves them five times."""
    return torch.nn.functional.interpolate(images, (side, side), mode="bilinear", antialias=True)


def load(folder: Path, side: int) -> tuple[dict[str, torch.Tensor], list[str], dict[str, Any]]:
    """All samples of a dataset, its instructions, and its statistics."""
    meta = LeRobotDatasetMetadata("local/demonstrations", root=folder)
    steps = [index / meta.fps for index in range(CHUNK)]
    dataset = LeRobotDataset("local/demonstrations", root=folder, delta_timestamps={ACTION: steps})
    items = [dataset[index] for index in range(len(dataset))]
    names = (IMAGE, STATE, ACTION, "action_is_pad", "task_index")
    samples = {name: torch.stack([torch.as_tensor(item[name]) for item in items]) for name in names}
    samples[IMAGE] = resized(samples[IMAGE].float(), side)
    instructions = list(meta.tasks.sort_values("task_index").index)
    one_hot = torch.nn.functional.one_hot(samples.pop("task_index").long(), len(instructions))
    samples[TASK] = one_hot.float()
    return samples, instructions, meta.stats


def train(options: argparse.Namespace) -> None:
    """Train for `minutes` of processor time, and save the policy with what it needs to be asked."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    samples, instructions, stats = load(options.dataset, options.side)
    policy = make_policy(
        options.kind,
        len(instructions),
        samples[STATE].shape[-1],
        samples[ACTION].shape[-1],
        options.side,
    )
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    before, after = make_pre_post_processors(policy.config, dataset_stats=stats)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=options.learning_rate, weight_decay=1e-4)
    policy.train()
    began, steps, total, losses = time.process_time(), 0, 60.0 * options.minutes, []
    count = len(samples[STATE])
    while (spent := time.process_time() - began) < total:
        rate = options.learning_rate * 0.5 * (1 + np.cos(np.pi * spent / total))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = torch.randint(count, (options.batch,))
        batch = before({name: values[rows] for name, values in samples.items()})
        if options.kind == "diffusion":
            # an axis for the observations of several turns, of which it gets one
            batch |= {name: batch[name][:, None] for name in (IMAGE, STATE, TASK)}
        loss, _ = policy.forward(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 10.0)
        optimizer.step()
        losses.append(loss.item())
        steps += 1
        if steps % 200 == 0:
            print(
                f"{spent / 60:.1f} min, step {steps}, loss {np.mean(losses[-200:]):.4f}", flush=True
            )
    options.out.mkdir(parents=True, exist_ok=True)
    policy.save_pretrained(options.out)
    before.save_pretrained(options.out)
    after.save_pretrained(options.out)
    facts = {
        "kind": options.kind, "instructions": instructions, "side": options.side, "parameters": parameters,
        "steps": steps, "batch": options.batch, "minutes": options.minutes, "samples": count,
        "loss": float(np.mean(losses[-200:])),
    }  # fmt: skip
    (options.out / "baseline.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
    print(json.dumps(facts))


class Asked:
    """A trained policy as openpi's protocol asks it: an image, a state and a prompt in, a chunk of actions out."""

    def __init__(self, folder: Path) -> None:
        self.facts = json.loads((folder / "baseline.json").read_text(encoding="utf-8"))
        kind = {"act": ACTPolicy, "diffusion": DiffusionPolicy}[self.facts["kind"]]
        self.policy = kind.from_pretrained(folder)
        self.policy.eval()
        self.before, self.after = make_pre_post_processors(
            self.policy.config, pretrained_path=str(folder)
        )

    def infer(self, request: dict[str, Any]) -> dict[str, np.ndarray]:
        """`actions`: (chunk, action dimensions), in the simulator's units."""
        image = (
            torch.tensor(np.asarray(request["observation/image"])).permute(2, 0, 1)[None].float()
        )
        task = torch.zeros(len(self.facts["instructions"]))
        task[self.facts["instructions"].index(request["prompt"])] = 1.0
        batch = self.before(
            {
                IMAGE: resized(image / 255, self.facts["side"]),
                STATE: torch.tensor(np.asarray(request["observation/state"], np.float32))[None],
                TASK: task[None],
            }
        )
        with torch.no_grad():
            if isinstance(self.policy, DiffusionPolicy):
                self.policy.reset()
                actions = [self.policy.select_action(dict(batch))]
                actions += list(self.policy._queues[ACTION])
                chunk = torch.stack(actions, dim=1)
            else:
                chunk = self.policy.predict_action_chunk(batch)
        return {"actions": self.after(chunk)[0].numpy()}


def serve(options: argparse.Namespace) -> None:
    """Answer `vla-rl eval --policy ws://` until Ctrl-C."""
    from vla_rl.serving.openpi import serve_policy

    torch.set_num_threads(options.threads)
    asked = Asked(options.folder)
    serve_policy(asked.infer, port=options.port, metadata=asked.facts)


def main() -> None:
    parser = argparse.ArgumentParser(description="ACT and diffusion by LeRobot, as baselines")
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train")
    training.add_argument("kind", choices=("act", "diffusion"))
    training.add_argument("dataset", type=Path)
    training.add_argument("--out", type=Path, required=True)
    training.add_argument("--minutes", type=float, default=20.0)
    training.add_argument("--batch", type=int, default=32)
    training.add_argument("--side", type=int, default=128, help="pixels; ours are made as large")
    training.add_argument("--learning-rate", type=float, default=1e-4)
    training.add_argument("--seed", type=int, default=0)
    training.set_defaults(run=train)
    serving = commands.add_parser("serve")
    serving.add_argument("folder", type=Path)
    serving.add_argument("--port", type=int, default=8000)
    serving.set_defaults(run=serve)
    for command in (training, serving):
        command.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
