"""The costs file: what simulators, policies and links were measured to cost, on which machine, and when.

    {"format": 1, "machine": "2 cores of an AMD EPYC", "date": "2026-11-28", "simulators": [...], "policies": [...],
     "processes": [...], "links": [...]}

Times are seconds, sizes bytes. Each entry says of itself whether it was measured or is assumed; whatever rests on an
assumption is marked in the plan. Several files are laid over each other: of two entries for the same thing the later
file's counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, MaxLen

from vla_rl.config.errors import UserError
from vla_rl.runtime.external import fault, read_json

FORMAT = 1
REMEDY = "Write it again with benchmarks/envs.py or gpu_openvla.py and --costs, or take a run folder instead."
MAX_BYTES = 2**20
PACKAGED = Path(__file__).parent / "measured"
Seconds = Annotated[float, Ge(0), Le(1e6)]
Bytes = Annotated[float, Ge(0), Le(1e15)]
Share = Annotated[float, Ge(0), Le(1)]
Size = Annotated[int, Ge(0), Le(1_000_000)]
Text = Annotated[str, MaxLen(400)]
Source = Literal["measured", "assumed"]


@dataclass(frozen=True)
class Line:
    """Seconds of one call on n samples: fixed + each * n."""

    fixed: Seconds
    each: Seconds

    def at(self, samples: float) -> float:
        """Seconds of a call on so many samples; none for none."""
        return self.fixed + self.each * samples if samples > 0 else 0.0

    def times(self, factor: float) -> Line:
        """The same, `factor` times as slow."""
        return Line(self.fixed * factor, self.each * factor)


@dataclass(frozen=True)
class SimulatorCosts:
    """One environment of a benchmark, in seconds of one core."""

    benchmark: Text
    """As in `envs.registry.BENCHMARKS`."""
    image_size: Size
    mesh_faces: Size
    step: Seconds
    """Of each simulator step."""
    image: Seconds
    reset: Seconds
    """With its image."""
    source: Source
    worker_bytes: Bytes = 0.0
    """Host memory of a simulator process."""
    gpu_bytes: Bytes = 0.0
    """Memory of a simulator process on a GPU that draws."""
    steps_share: Share = 1.0
    """Simulator steps taken of those that a turn may take: a success ends a turn early."""
    episode_turns: Annotated[float, Ge(0), Le(1e6)] = 0.0
    """Mean length of an episode in practice; 0: not known."""
    note: Text = ""

    @property
    def key(self) -> tuple[Any, ...]:
        return self.benchmark, self.image_size, self.mesh_faces


@dataclass(frozen=True)
class PolicyCosts:
    """One policy on one device. On the CPU in seconds of one core, a pass being one thread's."""

    model: Text
    """Its `ModelConfig.name`."""
    device: Literal["cpu", "gpu"]
    image_size: Size
    tokens: Annotated[int, Ge(1), Le(100_000)]
    """Action tokens of a turn when this was measured."""
    prefill: Line
    """`act` up to the first token, of n observations."""
    token: Line
    """Each action token after that."""
    learn: Line
    """Forward and backward pass of a micro-batch of n turns."""
    source: Source
    critic: Line = Line(0.0, 0.0)
    """The same of a separate critic."""
    step: Seconds = 0.0
    """Of every minibatch beside its passes: adding up, clipping, Adam."""
    overlap: Share = 1.0
    """Of a pass what threads of one process can do at the same time; the rest waits for the interpreter."""
    adapters: bool = False
    checkpointing: bool = False
    note: Text = ""

    @property
    def key(self) -> tuple[Any, ...]:
        return self.model, self.device, self.image_size, self.adapters, self.checkpointing


@dataclass(frozen=True)
class ProcessCosts:
    """The main process of a rank, in seconds of one core."""

    benchmark: Text
    """Empty: of any."""
    turn: Line
    """Of each turn of a group of n environments: sending actions, keeping what came."""
    window: Line
    """Of each window of n turns of all environments: scoring, advantages, metrics."""
    values: Line
    """Valuing n observations that follow the window, or at which an episode was cut."""
    source: Source
    main_bytes: Bytes = 0.0
    """Host memory without policy and window."""
    note: Text = ""

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.benchmark,)


@dataclass(frozen=True)
class LinkCosts:
    """An exchange between two processes: latency + bytes received / bandwidth; of more, see `timing`."""

    kind: Literal["processes", "gpus", "nodes", "weights"]
    """processes: of one machine. gpus: of one node. nodes: for each GPU. weights: to engines on other GPUs."""
    latency: Seconds
    bandwidth: Annotated[float, Ge(1), Le(1e15)]
    """Bytes a second."""
    source: Source
    note: Text = ""

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.kind,)

    def at(self, received: float) -> float:
        """Seconds until so many bytes have come."""
        return self.latency + received / self.bandwidth


Entry = SimulatorCosts | PolicyCosts | ProcessCosts | LinkCosts


@dataclass(frozen=True)
class Costs:
    """What a costs file holds."""

    format: int
    machine: Text
    date: Text
    """ISO 8601."""
    simulators: tuple[SimulatorCosts, ...] = ()
    policies: tuple[PolicyCosts, ...] = ()
    processes: tuple[ProcessCosts, ...] = ()
    links: tuple[LinkCosts, ...] = ()
    note: Text = ""
    names: tuple[str, ...] = field(default=(), compare=False)
    """Where it all came from, for the plan to say; not in the file."""

    def over(self, base: Costs) -> Costs:
        """These laid over `base`."""
        return replace(
            self,
            simulators=_merged(base.simulators, self.simulators),
            policies=_merged(base.policies, self.policies),
            processes=_merged(base.processes, self.processes),
            links=_merged(base.links, self.links),
            names=(*base.names, *self.names),
        )


def _merged(base: Iterable[Any], over: Iterable[Any]) -> tuple[Any, ...]:
    return tuple({entry.key: entry for entry in (*base, *over)}.values())


@dataclass(frozen=True)
class _Versioned:
    """What every version of the file has."""

    format: int


def read_costs(path: Path) -> Costs:
    """A costs file. UserError where it is missing, damaged or of another version."""
    version = read_json(path, _Versioned, max_bytes=MAX_BYTES, remedy=REMEDY)
    if version.format != FORMAT:
        raise fault(path, "format", f"version {FORMAT} of the costs file", version.format, REMEDY)
    costs = read_json(path, Costs, max_bytes=MAX_BYTES, remedy=REMEDY)
    if not (costs.simulators or costs.policies or costs.processes or costs.links):
        raise UserError(
            f"{path} holds no costs: expected simulators, policies, processes or links. {REMEDY}"
        )
    return replace(costs, names=(f"{path.name}: {costs.machine}, {costs.date}",))


def packaged(name: Literal["laptop", "h200"]) -> Costs:
    """The costs that come with the package."""
    return read_costs(PACKAGED / f"{name}.json")


def to_json(costs: Costs) -> dict[str, Any]:
    """What `read_costs` reads."""
    found = asdict(costs)
    del found["names"]
    return found
