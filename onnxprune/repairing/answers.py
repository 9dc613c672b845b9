"""
The layer that makes a classifier's answers, fitted to the answers themselves.

Least squares makes every score of a class as near to the original's as it can; what counts are the probabilities. So
after its least squares the last layer is fitted once more, to the least KL divergence from the original's
probabilities. That is convex in its weights, and has no need of labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from onnxprune.coupling.constants import Kept
from onnxprune.coupling.couple import Couplings
from onnxprune.probing.calibration import Calibration
from onnxprune.probing.losses import are_probabilities, looks_like_logits
from onnxprune.reading.observing import session_for
from onnxprune.reading.subgraphs import up_to
from onnxprune.repairing.bias import Bias
from onnxprune.repairing.consumers import consumers
from onnxprune.repairing.layers import Features, as_matrix, from_matrix
from onnxprune.repairing.linear import ConsumerStep
from onnxprune.repairing.places import Place
from onnxprune.repairing.rows import BATCH, HELD_OUT, fed
from onnxprune.repairing.steps import Refit, Repaired

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Ridge penalties that are tried, in units of the features' mean square."""

STEPS = 150
MOST_WORK = 2e11
"""Multiplications that one fit may take; there are fewer steps where each takes many."""


class AnswersStep(ConsumerStep):
    """The last layer of a classifier."""

    def refit(self, model: ModelProto, kept: Kept, samples: Calibration, threads: int) -> Iterator[Refit]:
        """Give the layer the weights whose answers are nearest to the original's."""
        consumer = self.consumer
        weight = Place(model, consumer.output, consumer.weight)
        bias = Bias.of(model, consumer, samples) if weight.can_change else None
        asked = self._asked(model, weight, samples, threads) if bias is not None else None
        if bias is None or asked is None:
            return
        start = np.vstack([as_matrix(weight.array, consumer), np.zeros(asked.scores.shape[1])]).astype(np.float64)
        best, penalty = asked.best(start, constant_is_free=bias.is_free)
        before, after = (asked.held_out.divergence(weights - start) for weights in (start, best))
        changed = []
        if penalty is not None:
            weight.put(from_matrix(best[:-1], weight.array, consumer))
            bias.move(best[-1])
            changed = [weight.name] if bias.place is None else [weight.name, bias.place.name]
        yield Refit(Repaired(f"{consumer.node.name}, KL of answers", before, after, penalty), tuple(changed))

    def _asked(self, model: ModelProto, weight: Place, samples: Calibration, threads: int) -> Answers | None:
        """What the layer reads in the model as it is now, and the original's answers; None if it makes no answers."""
        original, consumer = self.couplings.graph.model, self.consumer
        scores, (output,) = consumer.bias_node.outputs[0], [port.name for port in self.couplings.graph.outputs]
        teacher = session_for(up_to(original, [scores, output]), threads=threads or 1)
        student = session_for(up_to(model, [consumer.input, scores]), threads=threads or 1)
        features = Features(weight.node, model, consumer, weight.array)
        rows, made, wanted = [], [], []
        for batch in samples.batches(BATCH):
            feed = samples.at(samples.filled(batch))
            right, *further = teacher.run(None, fed(teacher, feed))
            told = further[0] if further else right
            data, now = student.run(None, fed(student, feed))
            if not are_answers(right, told, output):
                return None
            rows.append(features.of(data))
            made.append(now.astype(np.float64))
            wanted.append(softmax(right.astype(np.float64)))
        if len(made) < HELD_OUT:
            return None
        held_out = np.concatenate([np.full(len(part), n % HELD_OUT == HELD_OUT - 1) for n, part in enumerate(made)])
        read, scored = np.concatenate(rows).astype(np.float64), np.concatenate(made)
        if not differ_by_a_constant(scored, read @ as_matrix(weight.array, consumer)):
            return None
        inputs = np.concatenate([read, np.ones((len(read), 1))], axis=1)
        return Answers(inputs, scored, np.concatenate(wanted), held_out)


def answer_steps(couplings: Couplings) -> Iterator[AnswersStep]:
    """The layer whose scores are the model's one output, or read by the one node that makes it."""
    outputs = [port.name for port in couplings.graph.outputs]
    for consumer in consumers(couplings):
        scores = consumer.bias_node.outputs[0]
        readers = couplings.graph.readers.get(scores, ())
        ends = [scores] if not readers else [name for node, _ in readers for name in node.outputs]
        if ends == outputs and consumer.made_at == 1 and len(couplings.graph.shapes[scores]) == 2:
            yield AnswersStep(couplings, consumer)


def differ_by_a_constant(scores: np.ndarray, products: np.ndarray) -> bool:
    """Are the scores what the layer's products are, plus one number for each class?"""
    rest = scores - products
    return bool(np.ptp(rest, axis=0).max(initial=0) <= 1e-3 * max(float(np.abs(scores).max(initial=0)), 1e-30))


def are_answers(scores: np.ndarray, output: np.ndarray, name: str) -> bool:
    """Does the output hold scores of classes, or the probabilities that they stand for?"""
    if scores.shape != output.shape or scores.ndim != 2:
        return False
    if are_probabilities(output, 1):
        return bool(np.allclose(softmax(scores.astype(np.float64)), output, atol=1e-3))
    return looks_like_logits({name: output}) and bool(np.array_equal(scores, output))


@dataclass(frozen=True)
class Answers:
    """
    What a last layer reads, `inputs` `[rows, features + 1]` with the constant last; the `scores` `[rows, classes]` that
    it makes of it now, the probabilities that are `wanted`, and which rows are `out` of the fit.
    """

    inputs: np.ndarray
    scores: np.ndarray
    wanted: np.ndarray
    out: np.ndarray

    @property
    def fitted(self) -> Answers:
        """The rows to fit to."""
        return self._only(~self.out)

    @property
    def held_out(self) -> Answers:
        """The rows to choose by."""
        return self._only(self.out)

    def _only(self, rows: np.ndarray) -> Answers:
        return Answers(self.inputs[rows], self.scores[rows], self.wanted[rows], self.out[rows])

    def divergence(self, change: np.ndarray) -> float:
        """Mean KL divergence from what is wanted when the weights change by that."""
        found = softmax(self.scores + self.inputs @ change)
        apart = np.log(np.maximum(self.wanted, 1e-300)) - np.log(np.maximum(found, 1e-300))
        return float((self.wanted * apart).sum(1).mean())

    def best(self, start: np.ndarray, *, constant_is_free: bool) -> tuple[np.ndarray, float | None]:
        """
        Weights `[features + 1, classes]` of less divergence than `start` on the rows held out, and their penalty; else
        `start` and None. The penalty is chosen on these rows; the weights are then fitted to all.
        """
        fitted, held_out = self.fitted, self.held_out
        changes = {penalty: fitted.change(penalty, constant_is_free=constant_is_free) for penalty in PENALTIES}
        found = {penalty: held_out.divergence(change) for penalty, change in changes.items()}
        chosen = min(found, key=lambda penalty: found[penalty])
        if not found[chosen] < held_out.divergence(np.zeros_like(start)):
            return start, None
        return start + self.change(chosen, constant_is_free=constant_is_free), chosen

    def change(self, penalty: float, *, constant_is_free: bool) -> np.ndarray:
        """
        The change of the weights of least mean divergence plus `penalty` times its square.

        Source: Böhning 1992, Multinomial Logistic Regression Algorithm: a fixed bound on the curvature takes the place
        of the Hessian; here with the momentum of Nesterov 1983.
        """
        rows, width = self.inputs.shape
        gram = self.inputs.T @ self.inputs / rows
        ridge = np.full(width, penalty * max(float(np.trace(gram)) - 1, 1e-12) / max(width - 1, 1))
        ridge[-1] = 1e-9 if constant_is_free else 1e12
        curvature = np.linalg.inv(0.5 * gram + np.diag(ridge))
        steps = int(min(STEPS, max(1, MOST_WORK / (2 * self.inputs.size * self.scores.shape[1]))))
        now = before = np.zeros((width, self.scores.shape[1]))
        for step in range(steps):
            ahead = now + (step / (step + 3)) * (now - before)
            wrong = softmax(self.scores + self.inputs @ ahead) - self.wanted
            before, now = now, ahead - curvature @ (self.inputs.T @ wrong / rows + ridge[:, None] * ahead)
        return now


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities of scores `[rows, classes]`."""
    grown = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(grown / grown.sum(1, keepdims=True))
