"""What a rule can say about one node; everything downstream reads these facts and no operator names."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.rules.axes import Axis
from onnxprune.rules.operation import Tensor


@dataclass(frozen=True, slots=True)
class Equal:
    """Both axes have the same positions: what goes from one goes from the other."""

    left: Axis
    right: Axis


@dataclass(frozen=True, slots=True)
class Frozen:
    """No position of the axis may go. `by_nature`: nobody would expect it to (space, time, kernels, batch)."""

    axis: Axis
    reason: str
    by_nature: bool = False


@dataclass(frozen=True, slots=True)
class Inexact:
    """A removed position would change what the others compute, in a way that has no masked form."""

    axis: Axis
    reason: str


@dataclass(frozen=True, slots=True)
class Averaged:
    """
    All that the node does along axis number `axis` of its input `tensor` is to take a mean over it.

    So it computes the same from the mean itself, an axis of one position. The mean depends on how many positions there
    are: a removal is inexact.
    """

    tensor: Tensor
    axis: int


@dataclass(frozen=True, slots=True)
class Normalized:
    """
    The node takes off means and divides by deviations, then scales and shifts::

        scale · (x - mean) / sqrt(mean of (x - mean)² + epsilon) + shift

    x is the sum of the inputs `added`. A mean runs over the axes `over`: a removal there is inexact. Without `centred`
    no mean is taken off. `scale` and `shift` broadcast to x; but with `within` they belong to axis 1, which is blocks
    of so many channels laid end to end, and a mean runs over those of one block. Inputs are given by their numbers.

    Output 0 is the result, 1 the mean, 2 one over the deviation, 3 is x.
    """

    added: tuple[int, ...]
    over: tuple[int, ...]
    scale: int | None
    shift: int | None
    epsilon: float
    centred: bool = True
    within: Axis | None = None


@dataclass(frozen=True, slots=True)
class Contracted:
    """
    A sink: the node sums over axis number `axis` of its input `tensor`, each term a product of the `by` operands.

    `affine`: its output is nothing but that sum and what does not depend on `tensor`.
    """

    tensor: Tensor
    axis: int
    by: tuple[Tensor, ...]
    affine: bool = False

    @property
    def sums(self) -> Axis:
        """The axis that is summed over, as the node has it."""
        return self.tensor[self.axis]


@dataclass(frozen=True, slots=True)
class Stores:
    """
    An attribute (`place` is its name) or an input (`place` is its index) holds the width of `size` at `element`.

    `element` is None for a scalar attribute. The stored number is `sign` times the width. A stored value that is
    something else already (0, -1, "to the end") stays as it is. Where nothing is stored, equal widths are meant; as
    soon as they differ they are written down, in place of the attribute `replaces`.
    """

    place: str | int
    element: int | None
    size: Axis
    sign: int = 1
    replaces: str = ""


@dataclass(frozen=True, slots=True)
class Implied:
    """
    What the node does without the attribute `name` follows from the width of `size`: `value` at present.

    As soon as that width changes, the attribute is written down.
    """

    name: str
    value: float
    size: Axis


@dataclass(frozen=True, slots=True)
class Lookup:
    """
    Position k of `found` is position `positions[k]` of `whole`.

    The constant input number `place` has these numbers, in any layout, and counts anew when positions go. Where no
    input has them (None) the node does nothing else than look up along axis number `axis` of its first input, and
    becomes one that has such an input.
    """

    whole: Axis
    found: Axis
    axis: int
    positions: tuple[int, ...]
    place: int | None


@dataclass(frozen=True, slots=True)
class AnyOf:
    """A position is zero when it is zero in one of these."""

    terms: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class AllOf:
    """A position is zero when it is zero in all of these; of nothing: always."""

    terms: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class HoldersOf:
    """
    A position is zero when it is zero in each of these tensors that has it; one that none has is zero.

    Where one that has it does not fill the output, the rest are numbers `filler`.
    """

    terms: tuple[Tensor, ...]
    filler: float | None = None


@dataclass(frozen=True, slots=True)
class Unsummed:
    """A position is zero when it is zero in this tensor along an axis that is not `summed` over."""

    tensor: Tensor
    summed: tuple[int, ...]


Condition = Tensor | AnyOf | AllOf | HoldersOf | Unsummed


@dataclass(frozen=True, slots=True)
class Zero:
    """
    `output` is zero in a position when the condition holds there. Nothing said: it is zero nowhere.

    `moved`: its numbers are those of the condition's tensors, so that whatever stands for zero there does so here.
    """

    output: Tensor
    when: Condition
    moved: bool = False


@dataclass(frozen=True, slots=True)
class Quantized:
    """
    The numbers of `tensor`, as the node reads or writes it, stand for `scale` · (number - `point`).

    Both hold one number for all, one for each position of axis number `axis`, or, where they have as many axes as the
    tensor, one for each block of positions there. Without a `point` zero stands for zero; without a `scale` it is told
    elsewhere. Where numbers of few `bits` are packed into bytes, a removed position has the scale zero instead.
    """

    tensor: Tensor
    scale: Tensor | None
    point: Tensor | None
    axis: int
    bits: int | None = None


@dataclass(frozen=True, slots=True)
class Pointwise:
    """Every number of an output is made of those at its own place in the inputs, which broadcast, and of no others."""


@dataclass(frozen=True, slots=True)
class MayAdd:
    """The node has no bias and could have one: input number `place`, one number for each position of `axis`."""

    place: int
    axis: int


@dataclass(frozen=True, slots=True)
class Divisor:
    """
    The input divides (a denominator, a variance) or has otherwise no business being zero.

    Zeroing leaves its numbers alone where they are a constant's; where they are computed and would be zero, a removal
    cannot be judged by zeroing.
    """

    tensor: Tensor


@dataclass(frozen=True, slots=True)
class Macs:
    """The node multiplies and adds as many times as the product of these axes' widths."""

    factors: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class SideBySide:
    """
    The node is `blocks` layers side by side: each sums over `summed` channels of its own block of the input `data` and
    makes its own block of the output's axis 1.

    The first axis of the input `weight` has a block for each, in which axis number `made` counts what it makes and
    all others are summed over. `bias` is the input with one number for each output. All three are input numbers.
    """

    data: int
    weight: int
    bias: int | None
    blocks: Axis
    summed: Axis
    made: int


@dataclass(frozen=True, slots=True)
class Standardized:
    """
    The node scales and shifts each channel, axis 1 of its input `data`, by constants of one number for each::

        scale · (x - mean) / sqrt(variance + epsilon) + shift

    All but `epsilon` are numbers of inputs.
    """

    data: int
    scale: int
    shift: int
    mean: int
    variance: int
    epsilon: float


@dataclass(frozen=True, slots=True)
class Reset:
    """
    A gate of a cell, by its number, whose logistic function r scales the state as the gate `scaled` reads it.

    `after`: what is scaled is the product, r (R h + b), and not the state that goes into it, R (r h) + b.
    """

    gate: int
    scaled: int
    after: bool


@dataclass(frozen=True, slots=True)
class Recurrence:
    """
    A cell runs along time, in every direction by itself. In each step its gates do something to sums of products::

        W x[t] + Wb + R h[t - 1] + Rb        W [d, g·h, i]   R [d, g·h, h]   (Wb, Rb) [d, 2·g·h]

    `x` [t, n, i] and these constants are inputs of the node, by their numbers; `lengths` [n] is the input that says
    where sequences end, `start` [d, n, h] that of the first h, `others` are the inputs that have no part in the sums.
    The first output is h [t, d, n, h]. `backwards` tells for each direction whether it runs from the end. `carried` are
    the states [d, n, h] that a step takes from the one before, h first: for each the number of the input that holds the
    first one, given or not, and that of the output with the last one.
    """

    x: int
    weight: int
    recurrent: int
    bias: int | None
    lengths: int | None
    start: int | None
    others: tuple[int, ...]
    gates: int
    backwards: tuple[bool, ...]
    carried: tuple[tuple[int, int], ...]
    reset: Reset | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """Element i of `output` is the width of `sizes[i]`."""

    output: Tensor
    sizes: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class Copied:
    """Flat element k of `output` is a copy of flat element `sources[k][1]` of input number `sources[k][0]`."""

    output: Tensor
    sources: tuple[tuple[int, int], ...]


Fact = (
    Equal
    | Frozen
    | Inexact
    | Averaged
    | Normalized
    | Contracted
    | Stores
    | Implied
    | Lookup
    | Zero
    | Quantized
    | Pointwise
    | MayAdd
    | Divisor
    | Macs
    | SideBySide
    | Standardized
    | Recurrence
    | Measured
    | Copied
)
