"""Where the time goes: every layer of a model in milliseconds, beside what it computes and how wide it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from onnxprune.coupling.couple import Couplings
from onnxprune.coupling.types import facts_where
from onnxprune.probing.asking import Progress, refuse_parts
from onnxprune.probing.calibration import Calibration
from onnxprune.reading.records import STRICT, json_text
from onnxprune.rules.axes import Dim, width
from onnxprune.rules.facts import Macs
from onnxprune.timing.in_place import times_of_layers
from onnxprune.timing.kernels import numbered, runs_as
from onnxprune.timing.layers import Layer, Layers, layers_at, numbers_of
from onnxprune.timing.setting import Setting
from onnxprune.timing.timing import fast_widths_of
from onnxprune.timing.whole import latency


@dataclass(frozen=True, config=STRICT)
class Position:
    """Where on its stairs a group of `width` channels is: `step` keep fast kernels, `edge` take the same time."""

    group: str
    width: int
    step: int
    edge: int

    @property
    def next_edge(self) -> int:
        """The width that costs as much."""
        return -(-self.width // self.edge) * self.edge


@dataclass(frozen=True, config=STRICT)
class LayerProfile:
    """
    A layer: the node that multiplies, and what follows it up to the next.

    `kernels` are what its nodes run as, `milliseconds` those of a run of the whole model, `macs` all of them in a run,
    `gflops` two of each a nanosecond.
    """

    name: str
    operator: str
    kernels: tuple[str, ...]
    milliseconds: float
    macs: float
    gflops: float
    positions: tuple[Position, ...]


@dataclass(frozen=True, config=STRICT)
class Profile:
    """
    A model layer by layer, as `setting` says.

    `milliseconds` is the median of a run without the profiler, `between` those that it finds between layers: changes of
    layout, shapes.
    """

    setting: str
    batch: int
    milliseconds: float
    macs: float
    between: float
    layers: tuple[LayerProfile, ...]

    def to_json(self) -> str:
        """The profile as JSON text."""
        return json_text(_ADAPTER, self)


_ADAPTER: TypeAdapter[Profile] = TypeAdapter(Profile)


def profile_of(
    couplings: Couplings, calibration: Calibration, setting: Setting, progress: Progress | None = None
) -> Profile:
    """
    The model layer by layer.

    Raises:
        UsageError: it is too large to be run whole.
        ModelError: it does not run at the setting's batch.
    """
    refuse_parts(couplings.graph.model, "a profile")
    layers = layers_at(couplings, setting.batch)
    whole = latency([couplings.graph.model], calibration, setting)
    assert whole is not None
    (times,) = times_of_layers([couplings.graph.model], layers, calibration, setting)
    groups = [group for group in couplings.groups if group.exact]
    stairs = fast_widths_of(couplings, groups, setting, progress)
    operators = runs_as(numbered(couplings.graph.model, numbers_of(couplings)), setting)
    found = []
    for number, layer in enumerate(layers.all):
        milliseconds, macs = times.get(number, 0.0), macs_of(layer, layers, {})
        kernels = tuple(operators[position] for position in layer.positions if position in operators)
        positions = tuple(
            Position(group.name, group.size, stairs[group.name].step, stairs[group.name].edge)
            for group in groups
            if not layer.dims.isdisjoint(group.dims)
        )
        gflops = 2e-6 * macs / milliseconds if milliseconds else 0.0
        found.append(LayerProfile(layer.name, layer.operator, kernels, milliseconds, macs, gflops, positions))
    return Profile(
        setting=setting.words,
        batch=whole.batch,
        milliseconds=whole.milliseconds[0],
        macs=sum(layer.macs for layer in found),
        between=times.get(None, 0.0),
        layers=tuple(found),
    )


def macs_of(layer: Layer, layers: Layers, widths: Mapping[Dim, int]) -> float:
    """The multiply-accumulates of a layer in a run."""
    return sum(macs_in(layer, layers, {**layers.at_batch, **widths}))


def macs_in(layer: Layer, layers: Layers, widths: Mapping[Dim, int]) -> Iterator[float]:
    """Those of each of its nodes."""
    typing, inside = layers.couplings.typing, set(layer.positions)
    for op, fact in facts_where(typing, Macs):
        if layers.couplings.graph.in_main(op.node.position) in inside:
            product = 1.0
            for axis in fact.factors:
                product *= width(typing.solver.resolve(axis), widths)
            yield product
