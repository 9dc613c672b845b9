"""
Mend the sizes that a rewritten graph would compute wrongly.

What an input would hold is compared with what it must, at several settings of the dynamic sizes. A difference is mended
in the constant it came from, by a constant factor, or else by doing the arithmetic once more on the old sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from onnxprune.errors import ModelError
from onnxprune.reading.graph import Node
from onnxprune.rewriting.editing import Draft
from onnxprune.rewriting.shape_graph import ShapeGraph
from onnxprune.rewriting.widths import Sizes

Numbers = tuple[np.ndarray, ...]
"""What a tensor holds at each setting of the dynamic sizes."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An input whose numbers may have to change: a factor for each flat element."""

    node: Node
    index: int
    factors: tuple[Fraction, ...] | None


class Mender:
    """Compares what inputs would hold with what they must, and mends the difference."""

    def __init__(self, sizes: Sizes, draft: Draft, candidates: Sequence[Candidate]) -> None:
        self.sizes = sizes
        self.graph = sizes.graph
        self.draft = draft
        self.candidates = candidates
        self.shape_graph = ShapeGraph(sizes, [c.node.inputs[c.index] for c in candidates])
        settings = [self.graph.shapes, *(sizes.couplings.typing.other_shapes if self.shape_graph.needed else ())]
        self.before = tuple(self.shape_graph.run(shapes, new=False) for shapes in settings)
        self.after = tuple(self.shape_graph.run(shapes, new=True) for shapes in settings)
        self.made: dict[tuple[str, bytes], str] = {}

    def mend_all(self) -> None:
        """Let every input find the numbers it must."""
        for candidate in self.candidates:
            name = candidate.node.inputs[candidate.index]
            wanted = tuple(scaled(values[name], candidate.factors) for values in self.before)
            new_name = self.mend(name, wanted, alone=True)
            if new_name != name:
                self.draft.read_instead(candidate.node.position, candidate.index, new_name)

    def mend(self, name: str, wanted: Numbers, *, alone: bool) -> str:
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

    def _mended(self, name: str, found: Numbers, wanted: Numbers, *, alone: bool) -> str:
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
        return self._scaled(name, maker.position, found, wanted) or self._recomputed(name, wanted)

    def _new_constant(self, name: str, numbers: np.ndarray) -> str:
        constant = self.graph.constants.get(name)
        new_name = self.draft.fresh(f"{name}.pruned")
        self.draft.add(new_name, numbers, constant.tensor if constant else None)
        return new_name

    def _mended_copy(self, name: str, maker: Node, wanted: Numbers, *, alone: bool) -> str:
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

    def _scaled(self, name: str, behind: int, found: Numbers, wanted: Numbers) -> str | None:
        """The tensor times constants, where one ratio for each element does it at every setting; else None."""
        if found[0].dtype.kind != "i" or any(not numbers.all() for numbers in found):
            return None
        ratios = [Fraction(int(w), int(f)) for w, f in zip(wanted[0].reshape(-1), found[0].reshape(-1), strict=True)]
        times = np.array([ratio.numerator for ratio in ratios], found[0].dtype).reshape(found[0].shape)
        over = np.array([ratio.denominator for ratio in ratios], found[0].dtype).reshape(found[0].shape)
        if not all(np.array_equal(have * times // over, want) for have, want in zip(found, wanted, strict=True)):
            return None
        result = name
        for op_type, numbers in (("Mul", times), ("Div", over)):
            if (numbers != 1).any():
                factor = self.draft.fresh(f"{name}.{op_type.lower()}")
                self.draft.add(factor, numbers)
                product = self.draft.fresh(f"{name}.pruned")
                self.draft.new_behind(behind, op_type, [result, factor], product)
                result = product
        return result

    def _recomputed(self, name: str, wanted: Numbers) -> str:
        """The arithmetic done once more on the old sizes, times the factor that is wanted of its result."""
        old, behind = self._as_before(name), self.graph.makers[name].position
        before = tuple(values[name] for values in self.before)
        if all(np.array_equal(have, want) for have, want in zip(before, wanted, strict=True)):
            return old
        result = self._scaled(old, behind, before, wanted)
        if result is None:
            raise self._cannot(name)
        return result

    def _as_before(self, name: str) -> str:
        """The name of a tensor that holds what `name` held before pruning, at every setting."""
        found = tuple(values[name] for values in self.after)
        wanted = tuple(values[name] for values in self.before)
        if all(np.array_equal(have, want) for have, want in zip(found, wanted, strict=True)):
            return name
        key = (name, b"before")
        if key not in self.made:
            self.made[key] = self._made_as_before(name, found, wanted)
        return self.made[key]

    def _made_as_before(self, name: str, found: Numbers, wanted: Numbers) -> str:
        maker = self.graph.makers[name]
        if name in self.sizes.measured:
            mended = self._scaled(name, maker.position, found, wanted)
            if mended is None:
                raise self._cannot(name)
            return mended
        inputs = {index: self._as_before(source) for index, source in enumerate(maker.inputs) if source}
        new_name = self.draft.fresh(f"{name}.before")
        self.draft.copy_behind(maker.position, inputs, maker.outputs.index(name), new_name)
        return new_name

    def _cannot(self, name: str) -> ModelError:
        return ModelError(
            f"Expected the size computed in tensor {name!r} to follow the new widths by a factor, found none "
            "that does. Leave out the groups that reach it with --skip."
        )


def scaled(numbers: np.ndarray, factors: tuple[Fraction, ...] | None) -> np.ndarray:
    """The numbers, each times its factor."""
    if factors is None:
        return numbers
    flat = [int(number) * factor for number, factor in zip(numbers.reshape(-1), factors, strict=True)]
    return np.array([int(number) for number in flat], numbers.dtype).reshape(numbers.shape)
