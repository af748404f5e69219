"""The measured costs that belong to a run, scaled to it where it was not measured itself; each scaling is said."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vla_rl.config import OPENVLA_7B, SCRATCH_MODELS, ModelConfig, UserError
from vla_rl.planning.costs import Costs, LinkCosts, PolicyCosts, ProcessCosts, SimulatorCosts
from vla_rl.planning.workload import Workload
from vla_rl.policies.openvla.memory import PROMPT_TOKENS
from vla_rl.policies.openvla.work import act_products, learner_products

PEAK_FLOPS = {
    "h200": 989e12,
    "h100": 989e12,
    "h100-pcie": 756e12,
    "a100": 312e12,
    "l40s": 362e12,
    "rtx4090": 165e12,
}
"""bfloat16 products a second, dense, as NVIDIA publishes them: how other kinds of GPU are scaled."""
RECOMPUTED = 4 / 3
"""A pass with activation checkpointing computes the forward pass twice: 4 parts of work instead of 3."""


@dataclass(frozen=True)
class RunCosts:
    """All costs of one run, and what of them is assumed, by phase."""

    simulator: SimulatorCosts
    policy: PolicyCosts
    process: ProcessCosts
    links: dict[str, LinkCosts]
    assumed: dict[str, tuple[str, ...]]


def costs_of(load: Workload, costs: Costs, gpu: str) -> RunCosts:
    """The entries for a run. UserError where there is none to go by."""
    assumed: dict[str, list[str]] = {}
    simulator = _simulator(load, costs, assumed)
    policy = _policy(load, costs, gpu, assumed)
    process = next((p for p in costs.processes if p.benchmark == simulator.benchmark), None)
    process = process or next((p for p in costs.processes if not p.benchmark), None)
    if process is None:
        raise _nothing("what the main process does", "processes")
    if process.source == "assumed":
        _say(assumed, "score", f"bookkeeping: {process.note}")
    links = {link.kind: link for link in costs.links}
    missing = {"processes", "gpus", "nodes", "weights"} - links.keys()
    if missing:
        raise _nothing(f"exchanges between {', '.join(sorted(missing))}", "links")
    said = {phase: tuple(dict.fromkeys(notes)) for phase, notes in assumed.items()}
    return RunCosts(simulator, policy, process, links, said)


def _nothing(what: str, key: str) -> UserError:
    return UserError(f"the costs files say nothing of {what}: expected an entry under {key}")


def _say(assumed: dict[str, list[str]], phase: str, note: str) -> None:
    assumed.setdefault(phase, []).append(note)


def _simulator(load: Workload, costs: Costs, assumed: dict[str, list[str]]) -> SimulatorCosts:
    """Of a union the slowest's."""
    names = load.benchmarks or (load.benchmark,)
    each = [(_simulator_of(name, load, costs), name) for name in names]
    env = load.config.env
    steps = env.action_chunk * env.action_repeat
    (found, notes), slowest = max(each, key=lambda one: steps * one[0][0].step + one[0][0].image)
    if len(each) > 1:
        _say(assumed, "simulate", f"all simulators as slow as {slowest}'s")
    for note in notes:
        _say(assumed, "simulate", note)
    return found


def _simulator_of(
    name: str, load: Workload, costs: Costs
) -> tuple[SimulatorCosts, tuple[str, ...]]:
    env = load.config.env
    known = [entry for entry in costs.simulators if entry.benchmark == name]
    if not known:
        raise _nothing(f"the simulators of {name}", "simulators")

    def distance(entry: SimulatorCosts) -> tuple[bool, int]:
        return entry.mesh_faces != env.mesh_faces, abs(entry.image_size - env.image_size)

    nearest = min(known, key=distance)
    notes: list[str] = []
    if distance(nearest) != (False, 0):
        faces = (
            f", meshes of {nearest.mesh_faces} faces"
            if nearest.mesh_faces != env.mesh_faces
            else ""
        )
        note = f"simulators as measured at {nearest.image_size} px{faces}"
        notes.append(note)
    if nearest.source == "assumed":
        notes.append(f"simulators: {nearest.note}")
    return nearest, tuple(notes)


def _policy(load: Workload, costs: Costs, gpu: str, assumed: dict[str, list[str]]) -> PolicyCosts:
    device = "gpu" if load.on_gpu else "cpu"
    policy = load.config.policy
    known = [entry for entry in costs.policies if entry.device == device]
    if not known:
        raise _nothing(f"policies on a {device}", "policies")

    def distance(entry: PolicyCosts) -> tuple[bool, int, bool, bool]:
        return (
            entry.model != load.model.name,
            abs(entry.image_size - load.model.image_size),
            entry.checkpointing != policy.activation_checkpointing,
            entry.adapters != (policy.lora is not None),
        )

    entry = min(known, key=distance)
    said: list[str] = []
    if entry.source == "assumed":
        said.append(f"policy: {entry.note}")
    if distance(entry)[:2] != (False, 0):
        said.append(f"policy scaled by its products from {entry.model} at {entry.image_size} px")
        entry = _resized(entry, load)
    if load.on_gpu and gpu != "h200":
        said.append(f"{gpu} scaled from the costs' GPU by published peaks")
        slower = PEAK_FLOPS["h200"] / PEAK_FLOPS[gpu]
        entry = replace(
            entry,
            prefill=entry.prefill.times(slower),
            token=entry.token.times(slower),
            learn=entry.learn.times(slower),
        )
    for note in said:
        _say(assumed, "infer", note)
        _say(assumed, "learn", note)
    return _learning_as(load, entry, assumed)


def _learning_as(load: Workload, entry: PolicyCosts, assumed: dict[str, list[str]]) -> PolicyCosts:
    """Passes with or without checkpointing and adapters, and with so many action tokens."""
    policy, learn = load.config.policy, entry.learn
    if entry.checkpointing != policy.activation_checkpointing:
        learn = learn.times(RECOMPUTED if policy.activation_checkpointing else 1 / RECOMPUTED)
        _say(assumed, "learn", "activation checkpointing counted as a third more of a pass")
    adapters = policy.lora is not None
    if entry.adapters != adapters:
        rank = policy.lora.rank if policy.lora else 32
        whole = 3 * act_products(load.model, PROMPT_TOKENS, entry.tokens)
        part = learner_products(load.model, PROMPT_TOKENS, entry.tokens, rank)
        learn = learn.times(part / whole if adapters else whole / part)
        _say(assumed, "learn", "a pass with adapters and one without scaled by their products")
    more = _products(load.model, load.tokens) / _products(load.model, entry.tokens)
    return replace(entry, learn=replace(learn, each=learn.each * more), tokens=load.tokens)


def _products(model: ModelConfig, tokens: int) -> int:
    """Of a forward pass that is taught its tokens: those of `act`."""
    return act_products(model, PROMPT_TOKENS, tokens)


def _resized(entry: PolicyCosts, load: Workload) -> PolicyCosts:
    """The costs of another model: what grows with the samples by its products, the rest as it is."""
    makers = {name: maker for name, maker in SCRATCH_MODELS.items() if name == entry.model}
    if makers:
        measured = makers[entry.model](entry.image_size)
    elif entry.model == OPENVLA_7B.name:
        measured = OPENVLA_7B
    else:
        raise UserError(
            f"the costs of {entry.model} cannot be scaled to {load.model.name}: give costs of {load.model.name} with "
            "--costs, from a run of it"
        )
    factor = _products(load.model, entry.tokens) / _products(measured, entry.tokens)
    deeper = load.model.language.layers / measured.language.layers

    return replace(
        entry,
        prefill=replace(entry.prefill, each=entry.prefill.each * factor),
        token=replace(entry.token.times(deeper), each=entry.token.each * factor),
        learn=replace(entry.learn, each=entry.learn.each * factor),
    )
