"""
A layer that runs along time, by itself: its weights, its states, and the sums that its gates do something to.

    W x[t] + Wb + R h[t - 1] + Rb        or, for the gate that reads a state scaled by r,
    W x[t] + Wb + R (r h[t - 1]) + Rb    or    W x[t] + Wb + r (R h[t - 1] + Rb)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from onnxprune.repairing.layers import session_of
from onnxprune.repairing.places import Place
from onnxprune.rules.facts import Recurrence

STATES = "onnxprune.states"


@dataclass(frozen=True)
class Weights:
    """One direction's: `of_input` [rows, inputs], `of_state` [rows, hidden], and `[rows]` that are added to each."""

    of_input: np.ndarray
    of_state: np.ndarray
    input_bias: np.ndarray
    state_bias: np.ndarray

    @property
    def bias(self) -> np.ndarray:
        """What is added in all."""
        return np.asarray(self.input_bias + self.state_bias)


class Stored:
    """The weights of all directions, where they stand in a model."""

    def __init__(self, model: ModelProto, output: str, fact: Recurrence) -> None:
        numbers = (fact.weight, fact.recurrent, *(() if fact.bias is None else (fact.bias,)))
        self.places = tuple(Place(model, output, number) for number in numbers)
        self.numbers, self.node = numbers, self.places[0].node

    @property
    def can_change(self) -> bool:
        """May all of them change, and nothing else with them?"""
        return all(place.can_change for place in self.places)

    def directions(self) -> tuple[Weights, ...]:
        """The weights of each, in float64."""
        inputs, states, *biases = (place.array.astype(np.float64) for place in self.places)
        rows = inputs.shape[1]
        bias = biases[0] if biases else np.zeros((len(inputs), 2 * rows))
        return tuple(Weights(inputs[d], states[d], bias[d, :rows], bias[d, rows:]) for d in range(len(inputs)))

    def arrays(self, directions: Sequence[Weights]) -> tuple[np.ndarray, ...]:
        """These weights in the form and type in which they are stored."""
        found = (
            np.stack([one.of_input for one in directions]),
            np.stack([one.of_state for one in directions]),
            np.stack([np.concatenate([one.input_bias, one.state_bias]) for one in directions]),
        )
        return tuple(array.astype(place.array.dtype) for array, place in zip(found, self.places, strict=False))

    def put(self, directions: Sequence[Weights]) -> tuple[str, ...]:
        """Store these weights; the names of the constants that hold them now."""
        for place, array in zip(self.places, self.arrays(directions), strict=True):
            place.put(array)
        return tuple(place.name for place in self.places)


class Cell:
    """The layer as a session of its own, which takes its inputs and its weights and gives its states."""

    def __init__(self, stored: Stored, model: ModelProto, fact: Recurrence) -> None:
        node = NodeProto()
        node.CopyFrom(stored.node)
        node.input[:] = [name and fed_at(number) for number, name in enumerate(node.input)]
        node.output[:] = [STATES]
        integers = {} if fact.lengths is None else {fed_at(fact.lengths): TensorProto.INT32}
        precise = stored.places[0].array.dtype == np.float64
        self._session = session_of(node, model, TensorProto.DOUBLE if precise else TensorProto.FLOAT, integers)
        self._stored = stored

    def states(self, feed: Mapping[int, np.ndarray], directions: Sequence[Weights]) -> np.ndarray:
        """`[directions, time, batch, hidden]` for inputs by number and for these weights."""
        weights = zip(self._stored.numbers, self._stored.arrays(directions), strict=True)
        feeds = {fed_at(number): array for number, array in (*feed.items(), *weights)}
        (found,) = self._session.run([STATES], feeds)
        return np.moveaxis(found, 1, 0)


class OneStep:
    """One step of the layer, as a session that takes the sums of its gates and the states carried so far."""

    def __init__(self, stored: Stored, model: ModelProto, fact: Recurrence) -> None:
        node = NodeProto()
        node.CopyFrom(stored.node)
        first, last = zip(*fact.carried, strict=True)
        self._first = tuple(fed_at(number) for number in first)
        self._last = tuple(f"{STATES}.{number}" for number in last)
        fed = {fact.x, fact.weight, fact.recurrent, *first}
        node.input[:] = [fed_at(number) if number in fed else "" for number in range(max(fed) + 1)]
        node.output[:] = [f"{STATES}.{number}" if number in last else "" for number in range(max(last) + 1)]
        weights = stored.places[1].array
        directions, rows, units = weights.shape
        self._weights = {
            fed_at(fact.weight): np.broadcast_to(np.eye(rows, dtype=np.float32), (directions, rows, rows)),
            fed_at(fact.recurrent): np.zeros((directions, rows, units), np.float32),
        }
        self._session = session_of(node, model, TensorProto.FLOAT)
        self._x, self._directions = fed_at(fact.x), directions

    def of(self, direction: int, sums: np.ndarray, states: np.ndarray) -> np.ndarray:
        """For sums `[batch, rows]` and states `[carried, batch, hidden]` the states after the step."""
        every = np.broadcast_to(states[:, None], (len(states), self._directions, *states.shape[1:]))
        feeds = dict(zip(self._first, every.astype(np.float32), strict=True))
        found = self._session.run(self._last, {self._x: sums[None].astype(np.float32), **self._weights, **feeds})
        return np.stack([one[direction] for one in found])


def fed_at(number: int) -> str:
    """The name under which input `number` is fed."""
    return f"onnxprune.input.{number}"


def one_before(states: np.ndarray, first: np.ndarray, lengths: np.ndarray, *, backwards: bool) -> np.ndarray:
    """For states `[time, batch, hidden]` of one direction, the state that each step starts from."""
    found = np.zeros_like(states)
    if backwards:
        found[:-1] = states[1:]
        found[np.maximum(lengths, 1) - 1, np.arange(states.shape[1])] = first
    else:
        found[1:], found[:1] = states[:-1], first
    return found


def logistic(sums: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-sums)), for any size of the sums."""
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * sums))


def rows_of(gate: int, fact: Recurrence, rows: int) -> np.ndarray:
    """The rows of the weights that belong to a gate."""
    return np.split(np.arange(rows), fact.gates)[gate]


@dataclass(frozen=True)
class Sums:
    """What input and state add to a cell's sums, `[..., rows]` each; `r` `[..., hidden]` scales what the state adds."""

    of_input: np.ndarray
    of_state: np.ndarray
    r: np.ndarray | None

    @classmethod
    def of(cls, weights: Weights, fact: Recurrence, x: np.ndarray, before: np.ndarray) -> Sums:
        """The sums of a cell with these weights, for inputs and the states before them."""
        of_input = x @ weights.of_input.T + weights.input_bias
        of_state = before @ weights.of_state.T + weights.state_bias
        if fact.reset is None:
            return cls(of_input, of_state, None)
        gate = rows_of(fact.reset.gate, fact, of_input.shape[-1])
        scaled = rows_of(fact.reset.scaled, fact, of_input.shape[-1])
        r = logistic(of_input[..., gate] + of_state[..., gate])
        if not fact.reset.after:
            of_state[..., scaled] = (r * before) @ weights.of_state[scaled].T + weights.state_bias[scaled]
        return cls(of_input, of_state, r)

    def total(self, fact: Recurrence) -> np.ndarray:
        """All that is added up for each row."""
        found = self.of_input + self.of_state
        if self.r is not None and fact.reset is not None and fact.reset.after:
            scaled = rows_of(fact.reset.scaled, fact, found.shape[-1])
            found[..., scaled] = self.of_input[..., scaled] + self.r * self.of_state[..., scaled]
        return np.asarray(found)

    def moved(self, fact: Recurrence, gate: int, by: float) -> Sums:
        """The sums when those of one gate grow by so much."""
        some = rows_of(gate, fact, self.of_input.shape[-1])
        of_input, r = self.of_input.copy(), self.r
        of_input[..., some] += by
        if fact.reset is not None and gate == fact.reset.gate:
            r = logistic(of_input[..., some] + self.of_state[..., some])
        return Sums(of_input, self.of_state, r)

    def only(self, rows: np.ndarray, units: np.ndarray) -> Sums:
        """Those of some rows, and of the units they belong to, in float32."""
        of_input, of_state = (part[..., rows].astype(np.float32) for part in (self.of_input, self.of_state))
        return Sums(of_input, of_state, None if self.r is None else self.r[..., units].astype(np.float32))
