"""
Set single weights of a model to zero, layer by layer, and let those that stay take over.

Each layer is fitted from what it reads in the model as it is by then to what it made in the model before, as in a
repair. How many weights a layer loses follows from what it loses by that, or from how small its weights are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from onnx import ModelProto

from onnxprune.coupling.couple import Couplings
from onnxprune.errors import DataError, UsageError
from onnxprune.probing.calibration import Calibration
from onnxprune.repairing.layers import as_matrix, from_matrix
from onnxprune.repairing.places import Place
from onnxprune.repairing.rows import HELD_OUT, REPAIR_SAMPLES
from onnxprune.sparsifying.layers import Layer, Patient, layers_of
from onnxprune.sparsifying.sharing import Curve, shared_by_curves, shared_by_size
from onnxprune.sparsifying.sparsity import Sparsity, sparsity
from onnxprune.sparsifying.surgery import PENALTY, cubic, lowest, quadratic, settled, surgery

Criterion = Literal["obs", "magnitude"]

CURVE_SAMPLES = 128
"""Samples that the layers' curves are measured on, the first ones."""

CURVE_OUTPUTS = 64
"""Outputs of a layer that its curve is measured on, drawn at random."""

CURVE_POINTS = tuple(1 - 0.75**step for step in range(1, 17))
"""Shares of zeros at which curves are measured, up to 99 %."""


@dataclass(frozen=True, slots=True)
class SparseLayer:
    """
    What became of one layer: `zeros` of the `size` numbers of its `weight` went.

    `axis` of the weight is the one that `pattern` runs along, None where there is none. `before` and `after` are the
    squared error over the energy of the layer's outputs, on samples held out: with the zeros alone, and with the other
    weights fitted anew. They are None, as is the `penalty` of that fit, where nothing was fitted.
    """

    layer: str
    weight: str
    size: int
    zeros: int
    axis: int
    pattern: tuple[int, int] | None
    before: float | None
    after: float | None
    penalty: float | None


@dataclass(frozen=True)
class Sparsified:
    """The model with its zeros, what became of each layer, and the constants that have new numbers."""

    model: ModelProto
    layers: tuple[SparseLayer, ...]
    constants: tuple[str, ...]

    @property
    def share(self) -> float:
        """Of the weights of these layers, those that went."""
        return sum(layer.zeros for layer in self.layers) / max(1, sum(layer.size for layer in self.layers))


@dataclass(frozen=True)
class Operation:
    """What is to be done, the same for every layer."""

    wanted: Sparsity
    criterion: Criterion
    calibration: Calibration
    refit: bool
    threads: int


def sparsify(
    couplings: Couplings,
    calibration: Calibration,
    wanted: Sparsity | str | float,
    *,
    criterion: Criterion = "obs",
    refit: bool = True,
    threads: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Sparsified:
    """
    The couplings' model with so many of its weights zero, exactly, and no other tensor touched but biases.

    A share is met over all layers together, each losing as much as suits it; a pattern holds in every layer.

    Args:
        couplings: of the model whose weights are to go; one that was pruned before is read and coupled anew.
        calibration: samples. Made-up ones do for "magnitude", which then refits nothing.
        wanted: "50%", 0.5, "2:4", or what `sparsity` made of it.
        criterion: "obs": the weights whose going costs least when the others are fitted anew. "magnitude": the smallest
            numbers, of all layers together.
        refit: with "magnitude": fit the weights that stay anew.
        threads: of ONNX Runtime.
        progress: called as `progress(what, done, total)`.

    Raises:
        UsageError: no layer's weights can go, or a criterion or sparsity that means nothing.
        DataError: the samples are made up, or too few, and weights should be fitted on them.
    """
    wanted = sparsity(wanted)
    check(criterion, calibration, refit)
    layers = layers_of(couplings)
    if not layers:
        raise UsageError(
            "Expected a layer whose weights could become zero (a matrix product, a convolution; in floats, and not "
            "in a body of control flow), found none. Prune channels instead: leave out --weights."
        )
    operation = Operation(wanted, criterion, calibration, refit and not calibration.synthetic, threads)
    tell = progress or (lambda what, done, total: None)
    model = ModelProto()
    model.CopyFrom(couplings.graph.model)
    counts = counts_for(operation, layers, tell)
    done, constants = [], dict[str, None]()
    for number, (layer, count) in enumerate(zip(layers, counts, strict=True)):
        if count:
            made, changed = operated(operation, layer, count, model)
            constants.update(dict.fromkeys(changed))
        else:
            made = record(operation, layer, 0)
        done.append(made)
        tell("remove weights", number + 1, len(layers))
    return Sparsified(model, tuple(done), tuple(constants))


def check(criterion: str, calibration: Calibration, refit: bool) -> None:
    """Refuse what cannot work."""
    if criterion not in get_args(Criterion):
        raise UsageError(
            f"Expected a criterion for weights among {', '.join(get_args(Criterion))}, found {criterion!r}."
        )
    if calibration.synthetic and criterion == "obs":
        raise DataError(
            "Expected calibration data for the criterion obs, which removes the weights that they miss least, found "
            "none. Pass data with --data, or take the criterion magnitude."
        )
    if len(calibration) < HELD_OUT and not calibration.synthetic and (refit or criterion == "obs"):
        raise DataError(
            f"Expected at least {HELD_OUT} samples to fit weights on, found {len(calibration)}. Pass more with --data."
        )


def counts_for(operation: Operation, layers: Sequence[Layer], tell: Callable[[str, int, int], None]) -> tuple[int, ...]:
    """How many weights go from each layer."""
    if operation.wanted.pattern is not None:
        return tuple(layer.zeros_in_pattern(operation.wanted) for layer in layers)
    total = math.ceil(operation.wanted.share * sum(layer.size for layer in layers) - 1e-9)
    if not total:
        return (0,) * len(layers)
    if operation.criterion == "magnitude":
        return shared_by_size([np.abs(layer.weight) for layer in layers], total)
    curves = []
    for number, layer in enumerate(layers):
        curves.append(curve_of(operation, layer))
        tell("weigh layers", number + 1, len(layers))
    return shared_by_curves(curves, total)


def curve_of(operation: Operation, layer: Layer) -> Curve:
    """What the layer loses at shares of zeros up to all, in the model before anything went."""
    samples = layer.samples(operation.calibration, CURVE_SAMPLES)
    outputs = layer.shape[layer.consumer.made]
    some = np.sort(np.random.default_rng(0).permutation(outputs)[:CURVE_OUTPUTS])
    zeros, errors = [0], [0.0]
    for patient in Patient.of(layer, layer.couplings.graph.model, samples, operation.threads, some):
        size = layer.size * len(some) // outputs
        counts = tuple(
            dict.fromkeys(math.ceil(share * size) for share in CURVE_POINTS if math.ceil(share * size) < size)
        )
        error = quadratic(patient.fitted, patient.start, PENALTY, constant_is_free=patient.bias.is_free)
        held_out = patient.held_out
        variance = held_out.energy - float(np.square(held_out.cross[-1]).sum()) / held_out.rows
        for count, (weights, _) in zip(counts, surgery(error, counts, layer.candidates(operation.wanted)), strict=True):
            zeros.append(count * outputs // len(some))
            errors.append(max(errors[-1], held_out.error(weights) * held_out.energy / max(variance, 1e-30)))
    return Curve((*zeros, layer.size), (*errors, max(errors[-1], 1.0)))


def operated(operation: Operation, layer: Layer, count: int, model: ModelProto) -> tuple[SparseLayer, tuple[str, ...]]:
    """Remove `count` weights from the layer, in place in `model`: what became of it, and which constants changed."""
    for patient in examined(operation, layer, model):
        weights, stays = chosen(operation, patient, count)
        plain = np.where(stays, patient.start, 0.0)
        best, penalty = (
            settled(
                patient.fitted,
                patient.held_out,
                patient.start,
                weights,
                stays,
                constant_is_free=patient.bias.is_free,
            )
            if operation.refit
            else (plain, None)
        )
        errors = patient.held_out.error(plain), patient.held_out.error(best)
        return record(operation, layer, count, errors, penalty), patient.put(best)
    place = Place(model, layer.consumer.output, layer.consumer.weight)
    matrix = as_matrix(place.array, layer.consumer)
    gone = lowest(np.abs(matrix), count, layer.candidates(operation.wanted))
    place.put(from_matrix(np.where(gone, 0.0, matrix), place.array, layer.consumer))
    return record(operation, layer, count), (place.name,)


def examined(operation: Operation, layer: Layer, model: ModelProto) -> Iterator[Patient]:
    """The layer with what it reads now, if any sample tells."""
    if operation.refit or operation.criterion == "obs":
        samples = layer.samples(operation.calibration, REPAIR_SAMPLES)
        yield from Patient.of(layer, model, samples, operation.threads)


def chosen(operation: Operation, patient: Patient, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights to go on from, and which of them stay, when `count` go."""
    candidates = patient.layer.candidates(operation.wanted)
    if operation.criterion == "magnitude":
        stays = np.ones(patient.start.shape, bool)
        stays[:-1] = ~lowest(np.abs(patient.start[:-1]), count, candidates)
        return patient.start, stays
    error = quadratic(patient.fitted, patient.start, PENALTY, constant_is_free=patient.bias.is_free)
    *_, last = surgery(error, cubic(count), candidates)
    return last


def record(
    operation: Operation,
    layer: Layer,
    zeros: int,
    errors: tuple[float | None, float | None] = (None, None),
    penalty: float | None = None,
) -> SparseLayer:
    """What became of the layer."""
    consumer = layer.consumer
    weight = consumer.node.inputs[consumer.weight]
    pattern = operation.wanted.pattern
    return SparseLayer(consumer.node.name, weight, layer.size, zeros, consumer.summed, pattern, *errors, penalty)
