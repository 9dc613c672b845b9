"""
Fitting a layer, or many side by side in one node: each is a least squares problem of its own.

    y[block] = x[block] · W[block] + b[block]

Blocks that fit no better on samples held out stay as they were, whatever becomes of the others. Where something stands
behind the layer that works place by place, the weights are then fitted to what is felt there.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np
from onnx import ModelProto

from onnxprune.coupling.constants import Kept
from onnxprune.coupling.couple import Couplings
from onnxprune.probing.calibration import Calibration
from onnxprune.repairing.behind import Felt, behind
from onnxprune.repairing.bias import Bias
from onnxprune.repairing.consumers import Consumer
from onnxprune.repairing.felt import STEPS, Noted, Rows
from onnxprune.repairing.least_squares import Blocks, refitted
from onnxprune.repairing.places import Place
from onnxprune.repairing.steps import Refit, Repaired
from onnxprune.repairing.wanted import Wanted, rows_a_sample
from onnxprune.rules.axes import kept_positions

MOST_NUMBERS = 2**26
"""Of rows that are kept to fit a layer to what is felt of it."""

MOST_WORK = 1e12
"""Multiplications that this may take, about."""

ENOUGH, ENOUGH_A_FEATURE = 2**15, 200
"""Rows, in all and for each feature: more tell little and cost much."""

LEAST_ROWS = 2
"""For each feature: on fewer it is not tried."""


class Form(Protocol):
    """A layer's weight, as a matrix for each of its blocks."""

    @property
    def place(self) -> Place:
        """Where it is."""

    @property
    def matrices(self) -> np.ndarray:
        """`[blocks, features, outputs]`."""

    def weight(self, matrices: np.ndarray) -> np.ndarray:
        """Such matrices in the form and type of the weight."""

    def features(self, data: np.ndarray) -> np.ndarray:
        """What the layer multiplies its weights with, `[rows, blocks, features]`, for a batch that it reads."""


class FittedStep(ABC):
    """A step about a layer that is a least squares problem, or many side by side."""

    couplings: Couplings
    consumer: Consumer

    @abstractmethod
    def form(self, model: ModelProto, weight: Place, kept: Kept) -> Form:
        """The layer's weight in the pruned model."""

    def refit(self, model: ModelProto, kept: Kept, samples: Calibration, threads: int) -> Iterator[Refit]:
        """Give the layer the weights that fit best; nothing is said of one that cannot change."""
        typing, graph, consumer = self.couplings.typing, self.couplings.graph, self.consumer
        weight = Place(model, consumer.output, consumer.weight)
        positions = kept_positions(typing.axes(typing.tensors[consumer.output])[consumer.made_at], kept)
        bias = Bias.of(model, consumer, samples, len(positions)) if weight.can_change else None
        if bias is None:
            return
        rows, felt = rows_a_sample(consumer, graph), behind(self.couplings, consumer)
        wanted = Wanted(graph.model, consumer, positions, samples, threads, rows, felt)
        yield from refit(model, self.form(model, weight, kept), bias, wanted)


def refit(model: ModelProto, form: Form, bias: Bias, wanted: Wanted) -> Iterator[Refit]:
    """Give each block of a layer the weights that fit best: what that brought in all, and which constants changed."""
    matrices = form.matrices
    fitted, held_out, noted = equations(model, form, wanted)
    if not fitted.rows or not held_out.rows:
        return
    constant = bias.constant(matrices.shape[0] * matrices.shape[2]).reshape(len(matrices), 1, -1)
    start = np.concatenate([matrices, constant], axis=1, dtype=np.float64)
    best, penalties = start.copy(), list[float | None]()
    errors = np.zeros(3)
    for block, weights in enumerate(start):
        unseen = held_out.of(block)
        best[block], penalty = refitted(fitted.of(block), unseen, weights, constant_is_free=bias.is_free)
        penalties.append(penalty)
        errors += unseen.energy * np.array([unseen.error(weights), unseen.error(best[block]), 1.0])
    felt = noted and noted.better((fitted, held_out), start, penalties, constant_is_free=bias.is_free)
    if felt:
        best, errors = felt
    changed: list[str] = []
    if not np.array_equal(best, start):
        form.place.put(form.weight(best[:, :-1]))
        bias.move((best[:, -1] - start[:, -1]).ravel())
        changed = [form.place.name] if bias.place is None else [form.place.name, bias.place.name]
    before, after = (float(error) for error in errors[:2] / max(errors[2], 1e-30))
    most = max((penalty for penalty in penalties if penalty is not None), default=0.0)
    yield Refit(Repaired(wanted.consumer.node.name, before, after, most if changed else None), tuple(changed))


def equations(model: ModelProto, form: Form, wanted: Wanted) -> tuple[Blocks, Blocks, Noted | None]:
    """
    Normal equations of all blocks in the model as it is now, on most samples and on those held out; and rows to fit
    them to what is felt of, where something stands behind the layer.
    """
    blocks, width, outputs = form.matrices.shape
    fitted, held_out = (Blocks(blocks, width, outputs) for _ in range(2))
    noted = noted_for(model, form, wanted)
    if noted is None:
        wanted = replace(wanted, behind=None)
    rng = np.random.default_rng(0)
    for part in wanted.batches(model, blocks * width):
        rows = form.features(part.data)
        some = rng.permutation(len(rows))[: part.most_rows]
        (held_out if part.held_out else fitted).add(rows[some], part.wanted[some].reshape(len(some), blocks, outputs))
        if noted is not None:
            few = some[: noted.most_a_sample * part.samples]
            read = np.concatenate([rows[few], np.ones_like(rows[few, :, :1])], axis=2).transpose(1, 0, 2)
            given = tuple(one[few] for one in part.given)
            noted.add(Rows(read, part.wanted[few], part.felt[few], given), held_out=part.held_out)
    return fitted, held_out, noted


def noted_for(model: ModelProto, form: Form, wanted: Wanted) -> Noted | None:
    """Where rows are kept to fit the layer to what is felt; None if nothing is behind it, or there would be too few."""
    if wanted.behind is None:
        return None
    blocks, width, outputs = form.matrices.shape
    numbers = blocks * (width + 1) + blocks * outputs * (8 + len(wanted.behind.given))
    work = 8 * STEPS * blocks * (width + 1) * outputs
    rows = min(MOST_NUMBERS / numbers, MOST_WORK / work, max(ENOUGH, ENOUGH_A_FEATURE * width))
    most = math.ceil(rows / len(wanted.samples)) if rows >= len(wanted.samples) else 0
    enough = min(most, wanted.rows_a_sample) * len(wanted.samples) >= LEAST_ROWS * width
    return Noted(Felt(model, wanted.behind, wanted.consumer), most) if enough else None
