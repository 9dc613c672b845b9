"""
What the gates of a layer that runs along time read, as linear layers: their sums are linear in input and state.

    W x[t] + R h[t - 1]        most gates read input and state at once
    W x[t] + R (r h[t - 1])    a gate that reads a state scaled by r, and
    W x[t],   R h[t - 1]       one of which what the state adds is scaled: two layers, each with outputs of its own
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto

from onnxprune.coupling.couple import Group
from onnxprune.probing.calibration import Calibration
from onnxprune.probing.gates import channels_at
from onnxprune.reading.observing import session_for
from onnxprune.reading.subgraphs import up_to
from onnxprune.repairing.cells import Cell, Stored, Sums, Weights, rows_of
from onnxprune.repairing.least_squares import NormalEquations
from onnxprune.repairing.passages import lengths_in, read_besides_weights, run, states_before
from onnxprune.repairing.recurrent import RecurrentStep
from onnxprune.repairing.rows import BATCH, ROWS_A_SAMPLE
from onnxprune.rules.axes import Axis, Sum


@dataclass(frozen=True)
class GateSums:
    """Some gates of one direction: whether they read the input and the state, and whether r scales that state."""

    layer: RecurrentStep
    direction: int
    gates: tuple[int, ...]
    input: bool = True
    state: bool = True
    scaled: bool = False

    @property
    def output(self) -> str:
        """The tensor that the layer makes."""
        return output_of(self.layer)

    @property
    def key(self) -> str:
        """A name of its own."""
        return f"{self.output}, direction {self.direction}, gates {self.gates}, {self.input}, {self.state}"

    @property
    def summed(self) -> Axis:
        """What is summed over."""
        return Sum((self.layer.inputs,) * self.input + (self.layer.units,) * self.state)

    @property
    def rows(self) -> np.ndarray:
        """The rows of the weights."""
        every = self.layer.rows.size
        return np.concatenate([rows_of(gate, self.layer.fact, every) for gate in self.gates])

    def matrix(self, weights: Weights) -> np.ndarray:
        """The weights as `[features + 1, outputs]`; the last is what the bias gains."""
        some = self.rows
        parts = (weights.of_input[some].T,) * self.input + (weights.of_state[some].T,) * self.state
        return np.vstack([*parts, np.zeros(len(some))])

    def put(self, matrix: np.ndarray, weights: Weights) -> Weights:
        """The weights of the direction with those of such a matrix."""
        found = replace(weights, **{name: array.copy() for name, array in vars(weights).items()})
        some, inputs = self.rows, self.input * self.layer.inputs.size
        if self.input:
            found.of_input[some] = matrix[:inputs].T
            found.input_bias[some] += matrix[-1]
        if self.state:
            found.of_state[some] = matrix[inputs:-1].T
        if not self.input:
            found.state_bias[some] += matrix[-1]
        return found

    def blocks(self, group: Group) -> tuple[np.ndarray, ...]:
        """For each channel of the group the features that go with it."""
        return places(channels_at(self.summed, group.dims), group)


def places(standing: Sequence[np.ndarray], group: Group) -> tuple[np.ndarray, ...]:
    """For each channel of the group where it stands."""
    everywhere = np.array(standing)
    return tuple(np.flatnonzero((everywhere == channel).any(0)) for channel in range(group.size))


def output_of(layer: RecurrentStep) -> str:
    """A tensor that the layer makes."""
    return next(name for name in layer.node.outputs if name)


def can_change(layer: RecurrentStep) -> bool:
    """Are its weights constants that may become others?"""
    return Stored(layer.couplings.graph.model, output_of(layer), layer.fact).can_change


def gate_sums(layer: RecurrentStep) -> Iterator[GateSums]:
    """Everything that the layer reads, direction by direction."""
    reset = layer.fact.reset
    plain = tuple(gate for gate in range(layer.fact.gates) if reset is None or gate != reset.scaled)
    for direction in range(len(layer.fact.backwards)):
        yield GateSums(layer, direction, plain)
        if reset is not None and reset.after:
            yield GateSums(layer, direction, (reset.scaled,), state=False)
            yield GateSums(layer, direction, (reset.scaled,), input=False)
        elif reset is not None:
            yield GateSums(layer, direction, (reset.scaled,), scaled=True)


def grams(
    layer: RecurrentStep, model: ModelProto, samples: Calibration, threads: int
) -> tuple[tuple[GateSums, np.ndarray], ...]:
    """The Gram matrix of what each of them reads a row, in the model as it is; the last feature is the constant 1."""
    stored = Stored(model, output_of(layer), layer.fact)
    weights, cell = stored.directions(), Cell(stored, model, layer.fact)
    numbers = read_besides_weights(layer.fact)
    names = [stored.node.input[number] for number in numbers]
    session, rng = session_for(up_to(model, names), threads=threads), np.random.default_rng(0)
    sums = [(one, NormalEquations(one.summed.size, 0)) for one in gate_sums(layer)]
    for batch in samples.batches(BATCH):
        feed = dict(zip(numbers, run(session, names, samples.at(samples.filled(batch))), strict=True))
        x, before = feed[layer.fact.x], states_before(cell.states(feed, weights), feed, layer.fact)
        valid = np.flatnonzero(np.arange(len(x))[:, None] < lengths_in(feed, layer.fact))
        some = rng.permutation(valid)[: ROWS_A_SAMPLE * x.shape[1]]
        for one, equations in sums:
            h = before[one.direction]
            r = Sums.of(weights[one.direction], layer.fact, x, h).r if one.scaled else None
            parts = (x,) * one.input + ((h if r is None else r * h),) * one.state
            rows = np.concatenate([part.reshape(-1, part.shape[-1])[some] for part in parts], axis=1)
            equations.add(rows, np.zeros((len(rows), 0)))
    return tuple((one, equations.gram / max(equations.rows, 1)) for one, equations in sums)
