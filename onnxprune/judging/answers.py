"""Where a model's outputs hold answers: classes to choose from, or class numbers already chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.errors import DataError
from onnxprune.probing.losses import are_probabilities, class_axis, looks_like_logits

NO_ANSWER = -1
"""In place of an answer that rests on numbers that are none."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The output that holds a model's answers, and its axis of classes; None where it holds class numbers."""

    output: str
    axis: int | None

    def of(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The class that each position of each sample is given, `[samples, ...]`."""
        values = outputs[self.output]
        if self.axis is None:
            return values
        chosen: np.ndarray = np.where(np.isnan(values).any(self.axis), NO_ANSWER, values.argmax(self.axis))
        return chosen

    def ranks(self, outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> np.ndarray:
        """
        How many classes come before the right one, `[samples, ...]`; of equal classes the first comes first.

        So rank 0 says that the answer is right, and a model that finds all classes equal knows nothing.
        """
        if self.axis is None:
            wrong: np.ndarray = outputs[self.output] != labels
            return wrong.astype(np.int64)
        values = np.moveaxis(outputs[self.output], self.axis, -1)
        right = np.take_along_axis(values, labels[..., None], -1)
        earlier = np.arange(values.shape[-1]) < labels[..., None]
        before = ((values > right) | ((values == right) & earlier)).sum(-1)
        ranks: np.ndarray = np.where(np.isnan(values).any(-1), values.shape[-1], before)
        return ranks

    def classes(self, outputs: Mapping[str, np.ndarray]) -> int | None:
        """How many classes there are; None where nobody says."""
        return None if self.axis is None else outputs[self.output].shape[self.axis]


def is_float(values: np.ndarray) -> bool:
    return values.dtype.kind == "f" or values.dtype.name == "bfloat16"


def floats_of(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs that hold floats, and at least one of them for each sample."""
    return {name: values for name, values in outputs.items() if is_float(values) and values.size}


def labelled_answers(outputs: Mapping[str, np.ndarray], labels: np.ndarray | None) -> Answers | None:
    """
    The first output whose answers the integer labels are about; None where there is none.

    Raises:
        DataError: labels out of range.
    """
    if labels is None or labels.dtype.kind not in "iu":
        return None
    found = next(fitting(outputs, labels), None)
    classes = found.classes(outputs) if found else None
    if found and classes and not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(
            f"Expected labels from 0 to {classes - 1} for output {found.output!r} of {classes} classes, "
            f"found {labels.min()} to {labels.max()}. Mend the labels."
        )
    return found


def fitting(outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> Iterator[Answers]:
    """Outputs that labels fit: scores of classes before chosen classes."""
    for name, values in floats_of(outputs).items():
        axis = class_axis(values.shape, labels.shape)
        if axis is not None:
            yield Answers(name, axis)
    for name, values in outputs.items():
        if values.dtype.kind in "iu" and values.shape == labels.shape:
            yield Answers(name, None)


def evident_answers(outputs: Mapping[str, np.ndarray]) -> Answers | None:
    """
    The output that holds answers beyond doubt, without labels to compare with.

    That is a single float output of probabilities, of logits by its name, or of one row of numbers for each sample; or,
    where there are no floats at all, integers.
    """
    floats = floats_of(outputs)
    if not floats:
        return next((Answers(name, None) for name, values in outputs.items() if values.dtype.kind in "iu"), None)
    name, values = next(iter(floats.items()))
    if looks_like_logits(floats):
        return Answers(name, values.ndim - 1)
    planes = len(floats) == 1 and values.ndim > 2 and values.shape[1] > 1 and are_probabilities(values, 1)
    return Answers(name, 1) if planes else None


def possible_answers(outputs: Mapping[str, np.ndarray]) -> Answers | None:
    """
    The output that is taken for answers if somebody says that there are some.

    Classes lie along the last axis of rows and of sequences, and along the second of images, unless another axis holds
    probabilities.
    """
    evident = evident_answers(outputs)
    if evident is not None:
        return evident
    for name, values in floats_of(outputs).items():
        usual = 1 if values.ndim > 3 else values.ndim - 1
        if values.ndim > 1 and values.shape[usual] > 1:
            return Answers(name, usual)
    return None
