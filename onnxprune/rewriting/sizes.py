"""
Keep every size that the graph stores or computes true to the new widths.

Two kinds of numbers are looked at: those that a rule says hold a width (a Reshape's shape, a group count), which must
follow it, and those computed from shapes that any other node reads (an attention scale from the head's width), which
must stay what they were. What the rewritten graph would compute is compared with what is demanded, at several settings
of the dynamic sizes; a difference is mended in the constant it came from, or else by a factor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from onnx import ModelProto, ValueInfoProto, helper, numpy_helper

from onnxprune.coupling.constants import Kept
from onnxprune.coupling.couple import Couplings
from onnxprune.coupling.types import facts_where
from onnxprune.errors import ModelError
from onnxprune.reading.graph import Graph, Node, Shape
from onnxprune.reading.observing import observe, session_for
from onnxprune.rewriting.editing import Draft
from onnxprune.rules.axes import Dim, leaves, width
from onnxprune.rules.facts import Copied, Measured, Stores
from onnxprune.rules.operation import Op, Tensor


@dataclass(frozen=True, slots=True)
class Demand:
    """What a node must find at one input: numbers at each setting of the dynamic sizes."""

    node: Node
    index: int
    numbers: tuple[np.ndarray, ...]


class Sizes:
    """The sizes of one rewriting: what they were, what they would become, and what they must be."""

    def __init__(self, couplings: Couplings, kept: Kept) -> None:
        self.couplings = couplings
        self.graph: Graph = couplings.graph
        self.widths: dict[Dim, int] = {dim: len(stay) for dim, stay in kept.items()}
        self.measured = {fact.output.name: fact for _, fact in facts_where(couplings.typing, Measured)}
        self.copied = {fact.output.name: fact for _, fact in facts_where(couplings.typing, Copied)}
        self.computed = frozenset(self._computed())

    def _computed(self) -> Iterator[str]:
        """Tensors computed from constants and shapes alone that lose no positions themselves."""
        for one in self.couplings.typing.stated:
            outputs = [name for name in one.op.node.outputs if name]
            follow = all(name in self.couplings.typing.knowable for name in outputs)
            if follow and not any(self.shrinks(result) for result in one.op.results):
                yield from (name for name in outputs if name not in self.graph.constants)

    def shrinks(self, tensor: Tensor) -> bool:
        """Does the tensor lose positions?"""
        return any(leaf in self.widths for axis in self.couplings.typing.axes(tensor) for leaf in leaves(axis))

    def new_shape(self, name: str) -> tuple[int, ...] | None:
        """The tensor's new shape at the first setting; None where it stays."""
        tensor = self.couplings.typing.tensors.get(name)
        if name in self.graph.constants:
            tensor = self.couplings.constant_uses(name)[0][1]
        if tensor is None or not self.shrinks(tensor):
            return None
        return tuple(width(axis, self.widths) for axis in self.couplings.typing.axes(tensor))

    def factor(self, axis: Dim | object) -> Fraction:
        """New width over old width."""
        resolved = self.couplings.typing.solver.resolve(axis)  # type: ignore[arg-type]  # an Axis
        return Fraction(width(resolved, self.widths), max(resolved.size, 1))


def adjust_sizes(couplings: Couplings, kept: Kept, draft: Draft) -> Sizes:
    """Edit the draft so that every stored and computed size is right."""
    sizes = Sizes(couplings, kept)
    for one in couplings.typing.stated:
        stored = [fact for fact in one.facts if isinstance(fact, Stores)]
        set_stored_attributes(one.op, stored, sizes, draft)
    candidates = list(demanded_inputs(sizes))
    if candidates:
        Mender(sizes, draft, candidates).run()
    return sizes


def set_stored_attributes(op: Op, stored: Sequence[Stores], sizes: Sizes, draft: Draft) -> None:
    """Write new widths into attributes, and into a parameter that was left out while its parts were equal."""
    position = op.node.position
    present = [fact for fact in stored if isinstance(fact.place, str) and fact.place in op.node.attributes]
    for place in dict.fromkeys(str(fact.place) for fact in present):
        old = op.node.attributes[place]
        numbers = list(old) if isinstance(old, list) else [old]
        for fact in present:
            at = fact.element or 0
            if fact.place == place and numbers[at] == fact.sign * fact.size.size:
                numbers[at] = fact.sign * width(sizes.couplings.typing.solver.resolve(fact.size), sizes.widths)
        value = numbers if isinstance(old, list) else numbers[0]
        if value != old:
            draft.set_attribute(position, place, value)
    absent = [fact for fact in stored if is_absent(fact.place, op)]
    widths = [width(sizes.couplings.typing.solver.resolve(fact.size), sizes.widths) for fact in absent]
    if len(set(widths)) > 1 and widths != [fact.size.size for fact in absent]:
        place = absent[0].place
        if isinstance(place, str):
            draft.set_attribute(position, place, widths)
        else:
            name = draft.fresh(f"{op.node.outputs[0]}.{place}")
            draft.add(name, np.array(widths, np.int64))
            draft.read_instead(position, place, name)
            if absent[0].replaces in op.node.attributes:
                draft.drop_attribute(position, absent[0].replaces)


def is_absent(place: str | int, op: Op) -> bool:
    return place not in op.node.attributes if isinstance(place, str) else op.optional(place) is None


@dataclass(frozen=True, slots=True)
class Candidate:
    """An input whose numbers may have to change: a factor for each flat element."""

    node: Node
    index: int
    factors: tuple[Fraction, ...] | None


def demanded_inputs(sizes: Sizes) -> Iterator[Candidate]:
    """Inputs that store a width that changes, and inputs computed from shapes that other nodes read."""
    sized = frozenset(derived_from_shapes(sizes))
    for one in sizes.couplings.typing.stated:
        op = one.op
        if all(name in sizes.computed for name in op.node.outputs if name):
            continue
        for index, tensor in enumerate(op.inputs):
            if tensor is None:
                continue
            factors = factors_at(one.facts, index, tensor, sizes)
            changes = any(factor != 1 for factor in factors or ())
            if changes or tensor.name in sized:
                yield Candidate(op.node, index, factors if changes else None)


def factors_at(facts: Sequence[object], index: int, tensor: Tensor, sizes: Sizes) -> tuple[Fraction, ...] | None:
    """For each element of the input, by how much it must change; None when the input stores no width."""
    stored = [fact for fact in facts if isinstance(fact, Stores) and fact.place == index]
    if not stored or tensor.value is None:
        return None
    old = tensor.value.reshape(-1)
    factors = [Fraction(1)] * old.size
    for fact in stored:
        element = fact.element or 0
        if element < old.size and int(old[element]) == fact.sign * fact.size.size and fact.size.size:
            factors[element] = sizes.factor(fact.size)
    return tuple(factors)


def derived_from_shapes(sizes: Sizes) -> Iterator[str]:
    """Computed tensors that depend on the shape of a tensor that shrinks."""
    found: set[str] = set()
    for one in sizes.couplings.typing.stated:
        for name in one.op.node.outputs:
            if name not in sizes.computed:
                continue
            fact = sizes.measured.get(name)
            if fact is not None:
                if any(sizes.factor(axis) != 1 for axis in fact.sizes):
                    found.add(name)
            elif found.intersection(one.op.node.inputs):
                found.add(name)
    yield from found


class Mender:
    """Compares what inputs would hold with what they must, and mends the difference."""

    def __init__(self, sizes: Sizes, draft: Draft, candidates: Sequence[Candidate]) -> None:
        self.sizes = sizes
        self.graph = sizes.graph
        self.draft = draft
        self.candidates = candidates
        self.shape_graph = ShapeGraph(sizes, [c.node.inputs[c.index] for c in candidates])
        self.settings = self._settings()
        self.before = tuple(self.shape_graph.run(shapes, new=False) for shapes in self.settings)
        self.after = tuple(self.shape_graph.run(shapes, new=True) for shapes in self.settings)
        self.made: dict[tuple[str, bytes], str] = {}

    def _settings(self) -> tuple[Mapping[str, Shape], ...]:
        """Shapes at the setting observed at first and, where sizes are dynamic, at two more."""
        settings = [self.graph.shapes]
        if self.shape_graph.needed and any(port.is_dynamic for port in self.graph.inputs):
            for extra in (1, -1):
                shapes = {
                    port.name: tuple(
                        size + extra if not isinstance(said, int) else size
                        for said, size in zip(port.shape or (), self.graph.input_shapes[port.name], strict=True)
                    )
                    for port in self.graph.inputs
                }
                batch_only = {
                    name: tuple(
                        size if axis == 0 else self.graph.input_shapes[name][axis] for axis, size in enumerate(shape)
                    )
                    for name, shape in shapes.items()
                }
                for attempt in (shapes, batch_only):
                    try:
                        settings.append(observe(self.graph.model, self.graph.inputs, attempt).shapes)
                        break
                    except Exception:  # these sizes do not suit the model; the next may
                        continue
        return tuple(settings)

    def run(self) -> None:
        for candidate in self.candidates:
            name = candidate.node.inputs[candidate.index]
            wanted = tuple(scaled(values[name], candidate.factors) for values in self.before)
            new_name = self.mend(name, wanted, alone=True)
            if new_name != name:
                self.draft.read_instead(candidate.node.position, candidate.index, new_name)

    def mend(self, name: str, wanted: tuple[np.ndarray, ...], *, alone: bool) -> str:
        """
        The name of a tensor that holds the wanted numbers at every setting: `name` itself if it does.

        It may be changed in place when it has one reader and all behind that reader want the change (`alone`).
        """
        found = tuple(values[name] for values in self.after)
        if all(np.array_equal(one, other) for one, other in zip(found, wanted, strict=True)):
            return name
        key = (name, b"|".join(numbers.tobytes() for numbers in wanted))
        if key not in self.made:
            alone = alone and self._has_one_reader(name)
            self.made[key] = self._mended(name, found, wanted, alone=alone)
        return self.made[key]

    def _has_one_reader(self, name: str) -> bool:
        seen_outside = name in self.graph.captured or any(port.name == name for port in self.graph.outputs)
        return len(self.graph.readers.get(name, ())) == 1 and not seen_outside

    def _mended(self, name: str, found: tuple[np.ndarray, ...], wanted: tuple[np.ndarray, ...], *, alone: bool) -> str:
        constant = self.graph.constants.get(name)
        if constant is not None:
            if alone:
                self.draft.change(name, wanted[0])
                return name
            return self._new_constant(name, wanted[0])
        maker = self.graph.makers[name]
        if name in self.sizes.copied:
            return self._mended_copy(name, maker, wanted, alone=alone)
        if all(np.array_equal(numbers, wanted[0]) for numbers in wanted[1:]):
            return self._new_constant(name, wanted[0])
        return self._scaled(name, maker, found, wanted)

    def _new_constant(self, name: str, numbers: np.ndarray) -> str:
        constant = self.graph.constants.get(name)
        new_name = self.draft.fresh(f"{name}.pruned")
        self.draft.add(new_name, numbers, constant.tensor if constant else None)
        return new_name

    def _mended_copy(self, name: str, maker: Node, wanted: tuple[np.ndarray, ...], *, alone: bool) -> str:
        """Mend the inputs that the elements were copied from, and copy from those."""
        sources = self.sizes.copied[name].sources
        inputs: dict[int, str] = {}
        for index in sorted({index for index, _ in sources}):
            source = maker.inputs[index]
            demanded = [np.array(values[source]) for values in self.after]
            for numbers, target in zip(demanded, wanted, strict=True):
                flat = numbers.reshape(-1)
                for element, (from_index, from_element) in enumerate(sources):
                    if from_index == index:
                        flat[from_element] = target.reshape(-1)[element]
            new_source = self.mend(source, tuple(demanded), alone=alone)
            if new_source != source:
                inputs[index] = new_source
        if alone:
            for index, source in inputs.items():
                self.draft.read_instead(maker.position, index, source)
            return name
        new_name = self.draft.fresh(f"{name}.pruned")
        self.draft.copy_behind(maker.position, inputs, maker.outputs.index(name), new_name)
        return new_name

    def _scaled(self, name: str, maker: Node, found: tuple[np.ndarray, ...], wanted: tuple[np.ndarray, ...]) -> str:
        """Multiply and divide by constants: the elements are products in which a factor changed."""
        if found[0].dtype.kind != "i" or any(not numbers.all() for numbers in found):
            raise self._cannot(name)
        ratios = [Fraction(int(w), int(f)) for w, f in zip(wanted[0].reshape(-1), found[0].reshape(-1), strict=True)]
        times = np.array([ratio.numerator for ratio in ratios], found[0].dtype).reshape(found[0].shape)
        over = np.array([ratio.denominator for ratio in ratios], found[0].dtype).reshape(found[0].shape)
        for numbers, target in zip(found, wanted, strict=True):
            if not np.array_equal(numbers * times // over, target):
                raise self._cannot(name)
        result, behind = name, maker.position
        for op_type, numbers in (("Mul", times), ("Div", over)):
            if (numbers != 1).any():
                factor = self.draft.fresh(f"{name}.{op_type.lower()}")
                self.draft.add(factor, numbers)
                target_name = self.draft.fresh(f"{name}.pruned")
                self.draft.new_behind(behind, op_type, [result, factor], target_name)
                result = target_name
        return result

    def _cannot(self, name: str) -> ModelError:
        return ModelError(
            f"The size computed in tensor {name!r} does not follow the new widths by any factor. "
            "Leave out the groups that reach it with --skip."
        )


def scaled(numbers: np.ndarray, factors: tuple[Fraction, ...] | None) -> np.ndarray:
    """The numbers, each times its factor."""
    if factors is None:
        return numbers
    flat = [int(number) * factor for number, factor in zip(numbers.reshape(-1), factors, strict=True)]
    return np.array([int(number) for number in flat], numbers.dtype).reshape(numbers.shape)


class ShapeGraph:
    """The part of the graph that computes with shapes, to be run on given shapes alone."""

    def __init__(self, sizes: Sizes, targets: Sequence[str]) -> None:
        self.sizes = sizes
        self.graph = sizes.graph
        self.needed: dict[str, None] = {}
        self.constants = {name for name in targets if name in self.graph.constants}
        self.sources: dict[str, Measured] = {}
        self._collect(targets)
        self._session = session_for(self._model(), optimized=False) if self.needed else None

    def _collect(self, targets: Sequence[str]) -> None:
        pending = [name for name in targets if name not in self.graph.constants]
        while pending:
            name = pending.pop()
            if name in self.needed:
                continue
            if name in self.graph.constants:
                self.constants.add(name)
                continue
            self.needed[name] = None
            if name in self.sizes.measured:
                self.sources[name] = self.sizes.measured[name]
            else:
                pending.extend(source for source in self.graph.makers[name].inputs if source)

    def _model(self) -> ModelProto:
        old = self.graph.model
        model = ModelProto(ir_version=max(old.ir_version, 4))
        model.opset_import.extend(old.opset_import)
        model.functions.extend(old.functions)
        model.graph.name = "shapes"
        makers = {self.graph.makers[name].position for name in self.needed if name not in self.sources}
        model.graph.node.extend(old.graph.node[position] for position in sorted(makers))
        made = {name for position in makers for name in old.graph.node[position].output}
        for name in sorted(self.constants - made):
            model.graph.initializer.append(numpy_helper.from_array(self.graph.constants[name].array(), name))
        for name, fact in self.sources.items():
            shape = [len(fact.sizes)] if fact.output.rank else []
            model.graph.input.append(helper.make_tensor_value_info(name, 7, shape))
        for name in self.needed:
            if name in self.sources:
                model.graph.node.append(helper.make_node("Identity", [name], [f"{name}.measured"]))
            suffix = ".measured" if name in self.sources else ""
            model.graph.output.append(ValueInfoProto(name=name + suffix))
        return model

    def run(self, shapes: Mapping[str, Shape], *, new: bool) -> dict[str, np.ndarray]:
        """Numbers of the targets and of all they come from, for the old shapes or for the new ones."""
        values = {name: self.graph.constants[name].array() for name in self.constants}
        if self._session is None:
            return values
        feeds = {name: self._measure(name, fact, shapes, new=new) for name, fact in self.sources.items()}
        return values | dict(zip(self.needed, self._session.run(None, feeds), strict=True))

    def _measure(self, name: str, fact: Measured, shapes: Mapping[str, Shape], *, new: bool) -> np.ndarray:
        """The widths that a measuring node reports."""
        maker = self.graph.makers[name]
        op = self.sizes.couplings.typing.stated[maker.position].op
        source = op.input(0)
        size_of = dict(zip(source.axes, shapes[source.name], strict=True))
        numbers = []
        for axis in fact.sizes:
            old = int(np.prod([size_of[dim] for dim in leaves(axis)], dtype=np.int64))
            numbers.append(int(old * self.sizes.factor(axis)) if new else old)
        return np.array(numbers, np.int64).reshape(fact.output.shape)
