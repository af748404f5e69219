"""vLLM behind an engine's socket. Runs in vLLM's own virtual environment (`make setup-vllm`).

What makes its answers ours (vLLM 0.32; each line was found by comparing):

- it is given pixel values that our processing has normalised: its own rounds ImageNet's constants to bfloat16;
- log-probs are those of the tempered distribution over action ids alone: `processed_logprobs`, `allowed_token_ids`;
- after new weights its caches of images and prompts are emptied;
- the vision towers have the checkpoint's sizes, not always those of openvla-7b.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from vla_rl.config.errors import UserError
from vla_rl.config.openvla import OPENVLA_7B, ModelConfig, VisionTowerConfig
from vla_rl.policies.openvla.official_config import OFFICIAL_TOWERS
from vla_rl.policies.openvla.processing import pixel_values
from vla_rl.serving.backend import Question
from vla_rl.serving.messages import Facts
from vla_rl.serving.server import count_numbers
from vla_rl.serving.staging import Staged, action_ids

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # what is mended below is mended in this process
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the learner and the simulators are on the same cores
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
}
TOO_TALKATIVE = (
    "vllm.v1.worker.cpu_worker",  # for every batch: that its threads are bound already
    # for every update: which layers it does not hold, as those that are not trained
    "vllm.model_executor.model_loader.reload.layerwise",
    "vllm.model_executor.model_loader.reload.inplace",
)
MOST_ROWS_AT_ONCE = 64
"""Rows that are decoded together; more wait for their turn."""
TOKENS_AT_ONCE = {True: 4096, False: 16384}
"""Of prompts that are read together, on a CPU and on a GPU; vLLM keeps memory for so many."""


class VllmBackend:
    """vLLM's `LLM` as a `Backend`."""

    def __init__(self, checkpoint: Path, scratch: Path, dtype: str, memory: float) -> None:
        """Load a whole checkpoint.

        scratch: a folder that may be filled. dtype: auto takes the one that the checkpoint is stored in. memory: share
        of a GPU's memory. Raises UserError for what vLLM does not serve, and where it is not installed.
        """
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        vllm = _import_vllm()
        on_cpu = vllm.platforms.current_platform.is_cpu()
        self.staged = Staged(checkpoint, on_cpu)
        self.model, self.shapes = self.staged.model, self.staged.shapes
        if dtype == "auto":
            dtype = str(self.staged.stored).removeprefix("torch.")
        _set_tower_sizes(self.model)
        _take_pixel_values()
        folder = str(self.staged.write(scratch / "for-vllm"))
        language = self.model.language
        self.llm = vllm.LLM(
            model=folder,
            tokenizer=folder,
            dtype=dtype,
            enforce_eager=on_cpu,
            max_model_len=language.max_positions,
            max_num_seqs=MOST_ROWS_AT_ONCE,
            # a prompt that is read in parts draws for each, and takes it back: not so on a CPU
            enable_chunked_prefill=False,
            max_num_batched_tokens=max(language.max_positions, TOKENS_AT_ONCE[on_cpu]),
            max_logprobs=1,
            logprobs_mode="processed_logprobs",
            enable_prefix_caching=False,
            mm_processor_cache_gb=0,
            limit_mm_per_prompt={"image": 1},
            generation_config="vllm",
            gpu_memory_utilization=memory,
            disable_log_stats=True,
            seed=0,
        )
        self._vllm = vllm
        for name in TOO_TALKATIVE:
            logging.getLogger(name).setLevel(logging.ERROR)
        patches = (self.model.image_size // self.model.dino.patch_size) ** 2
        self.facts = Facts(
            engine="vllm",
            library=f"vLLM {vllm.__version__}",
            dtype=dtype,  # type: ignore[arg-type]
            device="cpu" if on_cpu else "cuda",
            image_size=self.model.image_size,
            bos_token=language.bos_token,
            first_action=language.text_vocab - self.model.action_bins,
            action_bins=self.model.action_bins,
            longest=language.max_positions - patches,
            weight_count=count_numbers(self.shapes),
        )

    def act(self, question: Question) -> tuple[Int64[Tensor, "N K"], Float32[Tensor, "N K"]]:
        pixels = pixel_values(question.images.float().contiguous(), self.model).numpy()
        prompts = [
            {"prompt_token_ids": list(ids), "multi_modal_data": {"image": [image]}}
            for ids, image in zip(question.prompts, pixels, strict=True)
        ]
        settings = [self._sampling(question, seed) for seed in question.seeds]
        outputs = [o.outputs[0] for o in self.llm.generate(prompts, settings, use_tqdm=False)]
        tokens = [list(o.token_ids) for o in outputs]
        log_probs = [
            [steps[token].logprob for token, steps in zip(o.token_ids, o.logprobs, strict=True)]
            for o in outputs
        ]
        return torch.tensor(tokens), torch.tensor(log_probs, dtype=torch.float32)

    def _sampling(self, question: Question, seed: int) -> Any:
        return self._vllm.SamplingParams(
            temperature=question.temperature,
            top_p=1.0,
            top_k=0,
            min_p=0.0,
            seed=seed,
            max_tokens=question.count,
            min_tokens=question.count,
            ignore_eos=True,
            allowed_token_ids=action_ids(self.model),
            logprobs=0,
            detokenize=False,
        )

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        fitted = list(self.staged.fitted(tensors).items())
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": fitted})
        self.llm.llm_engine.reset_encoder_cache()
        self.llm.llm_engine.reset_mm_cache()
        self.llm.reset_prefix_cache()


def _import_vllm() -> Any:
    try:
        import_module("vllm.platforms")
        return import_module("vllm")
    except ImportError as error:
        raise UserError(
            f"vLLM does not load in this Python ({error}): `make setup-vllm` makes an environment for it"
        ) from error


def _take_pixel_values() -> None:
    """Let vLLM's processor pass on pixel values; pictures, with which it tries itself out, go its own way."""
    processing: Any = import_module("vllm.transformers_utils.processors.openvla")

    own = processing.preprocess_openvla_image

    def preprocess(image: Any, image_size: int) -> Tensor:
        if isinstance(image, np.ndarray) and image.shape == (6, image_size, image_size):
            return torch.from_numpy(image)
        return own(image, image_size)

    processing.preprocess_openvla_image = preprocess


def _set_tower_sizes(model: ModelConfig) -> None:
    """Let vLLM's class build vision towers of the checkpoint's sizes."""
    towers: dict[str, VisionTowerConfig] = dict(
        zip(OFFICIAL_TOWERS, (model.dino, model.siglip), strict=True)
    )
    if (_sizes(model.dino), _sizes(model.siglip)) == (
        _sizes(OPENVLA_7B.dino),
        _sizes(OPENVLA_7B.siglip),
    ):
        return
    timm: Any = import_module("timm")
    backbone: Any = import_module("vllm.model_executor.models.openvla").PrismaticVisionBackbone
    create = timm.create_model
    build = backbone.__init__

    def create_in_size(name: str, **settings: Any) -> Any:
        return create(name, **settings, **_sizes(towers[name]))

    def build_in_size(self: Any, **settings: Any) -> None:
        build(self, **settings)
        self.embed_dim = sum(tower.width for tower in towers.values())

    timm.create_model = create_in_size
    backbone.__init__ = build_in_size


def _sizes(tower: VisionTowerConfig) -> dict[str, Any]:
    """In timm's words, which rounds the width of the feed-forward layers down."""
    ratio = (tower.mlp_width + 0.5) / tower.width
    return {
        "embed_dim": tower.width,
        "depth": tower.depth,
        "num_heads": tower.heads,
        "mlp_ratio": ratio,
    }
