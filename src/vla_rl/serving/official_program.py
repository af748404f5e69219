"""Answers of OpenVLA's own code. A program for another Python: it imports nothing of this package.

Runs in an environment made for OpenVLA, which may hold an older Python (3.8 or later). `main(folder)` reads there

    request.json     Request of serving/official.py
    pictures.npz     images [N, S, S, 3] uint8, ids [N, L] and lengths [N] integers
    checkpoint/      in the official format

and writes answers.npz (ids [N, K] int64, log_probs [N, K] float32, elsewhere [N, K] bool) and then facts.json, or
error.json with one sentence. OpenVLA's files are used as they are: its image processor, its model, its `generate`.
Source: openvla/openvla@c8f03f4, prismatic/extern/hf.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import threading
import time
import types
from typing import Any

WANTED = {"transformers": ("4.40.1",), "timm": ("0.9.10", "0.9.11", "0.9.12", "0.9.16")}
"""Releases that OpenVLA's code is made for; it refuses other timm by itself, and warns of other transformers."""
CODE = "modeling_prismatic.py"
INSIDE = ("prismatic", "extern", "hf")
OUT_OF_MEMORY = ("outofmemoryerror", "out of memory", "not enough memory", "can't allocate memory")


class Refusal(Exception):  # noqa: N818 - it is what is said, in one sentence
    """Why there are no answers, and what is at fault."""

    def __init__(self, fault: str, why: str) -> None:
        """Take it. fault: environment, code, checkpoint or memory."""
        super().__init__(why)
        self.fault = fault


def main(folder: str) -> int:
    """Answer the request in `folder`. Returns 0, or 1 where error.json says why there are no answers."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        facts = _answer(folder)
    except Refusal as refusal:
        return _refuse(folder, refusal)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        lacks_memory = isinstance(error, MemoryError) or any(
            w in said.lower() for w in OUT_OF_MEMORY
        )
        if not lacks_memory:
            raise
        return _refuse(folder, Refusal("memory", f"it ran out of memory ({said[:300]})"))
    _write(folder, "facts.json", facts)
    return 0


def _end_with(parent: int) -> None:
    """End this process when its parent has gone."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _refuse(folder: str, refusal: Refusal) -> int:
    _write(folder, "error.json", {"fault": refusal.fault, "error": str(refusal)})
    return 1


def _write(folder: str, name: str, content: dict[str, Any]) -> None:
    partial = os.path.join(folder, name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(content, file)
    os.replace(partial, os.path.join(folder, name))


def _answer(folder: str) -> dict[str, Any]:
    with open(os.path.join(folder, "request.json"), encoding="utf-8") as file:
        request = json.load(file)
    versions = _versions()
    code = _code_folder(request["code"])
    modeling, processing = _official(code)
    np, torch = (importlib.import_module(name) for name in ("numpy", "torch"))
    _give_sizes(request["towers"])
    checkpoint = os.path.join(folder, "checkpoint")
    processor = processing.PrismaticImageProcessor.from_pretrained(checkpoint)
    dtype = getattr(torch, request["dtype"])
    model, loading = modeling.OpenVLAForActionPrediction.from_pretrained(
        checkpoint, torch_dtype=dtype, output_loading_info=True, local_files_only=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if loading[kind]:
            raise Refusal(
                "checkpoint",
                f"it does not take this checkpoint: {kind.replace('_', ' ')} "
                + ", ".join(sorted(map(str, loading[kind]))[:3]),
            )
    device = "cuda" if request["cuda"] and torch.cuda.is_available() else "cpu"
    model = model.eval().to(device)
    with np.load(os.path.join(folder, "pictures.npz"), allow_pickle=False) as file:
        given = {name: file[name] for name in ("images", "ids", "lengths")}
    found: dict[str, list[Any]] = {"ids": [], "log_probs": [], "elsewhere": []}
    for image, ids, length in zip(given["images"], given["ids"], given["lengths"]):  # noqa: B905
        pixels = _pixels(processor, image).to(device, dtype)
        row = _decide(
            torch, model, pixels, torch.from_numpy(ids[None, :length]).to(device), request
        )
        for name, values in row.items():
            found[name].append(values.cpu().numpy())
    arrays = {name: np.stack(rows) for name, rows in found.items()}
    np.savez(os.path.join(folder, "answers.npz"), **arrays)
    kind = getattr(model.config, "_attn_implementation", None) or "unknown"
    return {"versions": versions, "code": code, "device": device, "attention": str(kind)}


def _pixels(processor: Any, image: Any) -> Any:
    """What OpenVLA's own image processor makes of one picture, [1, 6, S, S]."""
    picture = importlib.import_module("PIL.Image").fromarray(image)
    return processor.preprocess(picture, return_tensors="pt")["pixel_values"]


def _decide(
    torch: Any, model: Any, pixels: Any, ids: Any, request: dict[str, Any]
) -> dict[str, Any]:
    """One row's greedy ids by the model's own `generate`, [K] each; log-probs over the action ids, temperature 1.

    Only action ids may be chosen, as everywhere in this project. `elsewhere` says where the likeliest id of the whole
    vocabulary is none of them.
    """
    first, end = request["first_action"], request["end_action"]
    actions = list(range(first, end))
    with torch.no_grad():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels,
            do_sample=False,
            max_new_tokens=request["count"],
            min_new_tokens=request["count"],
            eos_token_id=None,
            prefix_allowed_tokens_fn=lambda row, before: actions,
            return_dict_in_generate=True,
            output_logits=True,
        )
    logits = torch.stack([step[0].float() for step in out.logits])  # [K, vocabulary], as computed
    chosen = out.sequences[0, ids.shape[1] :]
    log_probs = torch.log_softmax(logits[:, first:end], -1)
    told = log_probs.gather(-1, (chosen - first)[:, None])[:, 0]
    best = logits.argmax(-1)
    return {"ids": chosen, "log_probs": told, "elsewhere": (best < first) | (best >= end)}


def _versions() -> dict[str, str]:
    """What is installed. Raises Refusal where something is missing or of another release than OpenVLA's code wants."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    faults = []
    for name in ("torch", "numpy", "tokenizers", *WANTED):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
        releases = WANTED.get(name, (found[name],))
        if not found[name] or found[name] not in releases:
            wanted = f" ({' or '.join(releases)} is wanted)" if name in WANTED else ""
            faults.append((f"{name} {found[name]}" if found[name] else f"no {name}") + wanted)
    if faults:
        raise Refusal("environment", "its environment holds " + ", ".join(faults))
    return found


def _code_folder(given: str) -> str:
    """The folder with OpenVLA's three files. Raises Refusal where there is none."""
    if given:
        places = [given, os.path.join(given, *INSIDE), os.path.join(given, *INSIDE[1:])]
    else:
        # found, not imported: the package's own start asks for all that training needs
        spec = importlib.util.find_spec(INSIDE[0])
        roots = list(spec.submodule_search_locations or []) if spec is not None else []
        places = [os.path.join(root, *INSIDE[1:]) for root in roots]
    for place in places:
        if os.path.isfile(os.path.join(place, CODE)):
            return os.path.abspath(place)
    if given:
        raise Refusal("code", f"there is no {CODE} in {given}, nor in its {'/'.join(INSIDE)}")
    raise Refusal("code", "the package prismatic is not installed in its environment")


def _official(code: str) -> tuple[Any, Any]:
    """OpenVLA's modules for model and image processor, from a folder that becomes a package of its own."""
    package: Any = types.ModuleType("openvla_hf")
    package.__path__ = [code]
    sys.modules[package.__name__] = package
    names = ("modeling_prismatic", "processing_prismatic")
    try:
        modeling, processing = (importlib.import_module("openvla_hf." + name) for name in names)
    except ImportError as error:
        raise Refusal("code", f"it does not load in its environment: {error}") from error
    return modeling, processing


def _give_sizes(towers: dict[str, dict[str, Any]]) -> None:
    """Let timm build its models by these names in other sizes: OpenVLA's code knows those of openvla-7b alone."""
    if not towers:
        return
    timm: Any = importlib.import_module("timm")
    create = timm.create_model

    def create_model(name: str, *args: Any, **keywords: Any) -> Any:
        return create(name, *args, **{**keywords, **towers.get(name, {})})

    timm.create_model = create_model


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
