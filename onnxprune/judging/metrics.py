"""
Metrics: how well a model does on each sample, one small function each.

=============  ======================================================  ================================  ==============
name           says of a sample                                        a drop of 1 % is                  needs
=============  ======================================================  ================================  ==============
``accuracy``   is the answer right (or the share of positions)         98.6 % to 97.6 % right            integer labels
``top-5``      is the right class among the five first; any number     98.6 % to 97.6 % right            integer labels
``agreement``  is the answer the original's (or the share)             99 % of the answers stay          classes
``cosine``     cosine between its outputs and the original's           a mean cosine of 0.99             floats
``mse``        squared error over the mean square of what is right     1 % more of that energy is error  floats
``psnr``       peak signal-to-noise ratio against the labels, in dB    30 dB to 29.7 dB                  float labels
module:name    whatever a function of the user's returns               0.01 of the function's points     the function
=============  ======================================================  ================================  ==============

So a drop is counted in points of the metric, with one exception: decibels have no end at which all is lost, so a drop
of `psnr` is a share of what the original reaches. What is right for `mse` are the labels where they are floats of an
output's shape, else the original's own outputs, which the original meets exactly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.judging.answers import (
    Answers,
    evident_answers,
    floats_of,
    is_float,
    labelled_answers,
    possible_answers,
)
from onnxprune.judging.intervals import Kind
from onnxprune.judging.user_metrics import UserMetric, load_metric, user_values

Outputs = Mapping[str, np.ndarray]

MOST_DECIBELS = 100.0
"""What an error below the rounding of float32 counts as."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the samples: what the original makes of them, and the right answers if there are any."""

    original: Outputs
    labels: np.ndarray | None

    def only(self, samples: np.ndarray) -> Known:
        """The same of only these samples."""
        outputs = {name: values[samples] for name, values in self.original.items()}
        return Known(outputs, None if self.labels is None else self.labels[samples])


Measure = Callable[[Outputs, Known], np.ndarray]


@dataclass(frozen=True)
class Metric:
    """
    A metric made ready for a model and its samples.

    `measure` gives a number for each sample. More is better, unless `less_is_better`. A drop is counted in the metric's
    points, or where it is `relative`, in shares of what the original reaches on average.
    """

    name: str
    kind: Kind
    known: Known
    measure: Measure
    less_is_better: bool = False
    relative: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.known.original.values())))

    def only(self, samples: np.ndarray) -> Metric:
        """The same metric for only these samples."""
        return replace(self, known=self.known.only(samples))

    def values(self, outputs: Outputs) -> np.ndarray:
        """What the metric says of each sample, as people know it, `[samples]`."""
        return np.asarray(self.measure(outputs, self.known), np.float64)

    def original(self) -> np.ndarray:
        """The same of the original."""
        return self.values(self.known.original)

    def losses(self, outputs: Outputs) -> np.ndarray:
        """What each sample lost against the original; below zero where it gained."""
        before, after = self.original(), self.values(outputs)
        unit = max(abs(float(before.mean())), 1e-12) if self.relative else 1.0
        lost: np.ndarray = (after - before if self.less_is_better else before - after) / unit
        return lost


Maker = Callable[[Known], Metric]
METRICS: dict[str, Maker] = {}


def metric(name: str) -> Callable[[Maker], Maker]:
    """Register a metric under a name for the command line."""

    def register(maker: Maker) -> Maker:
        METRICS[name] = maker
        return maker

    return register


def prepare_metric(
    original: Outputs, labels: np.ndarray | None = None, requested: str | UserMetric | None = None
) -> Metric:
    """
    The metric for these samples.

    Args:
        original: the original's outputs, `[samples, ...]` each, as `outputs_of` gives them.
        labels: the right answers `[samples, ...]`, if there are any.
        requested: a name of the table above; or a callable `metric(outputs, labels)` on a dict of arrays that returns a
            number for each sample, the more the better, or its name "module:function". None: accuracy if integer
            labels fit an output; else agreement where the output is classes beyond doubt; else cosine, or mse where
            there is but one number for each sample and so no direction.

    Raises:
        UsageError: no such metric, or it does not suit the outputs and labels.
        DataError: labels out of range.
    """
    return checked(made(Known(original, labels), requested))


def check_metric(requested: str | UserMetric | None) -> None:
    """
    Refuse a name that no metric has; whether a function is there is seen when it is needed.

    Raises:
        UsageError: see above.
    """
    if not isinstance(requested, str) or ":" in requested or requested in METRICS:
        return
    if not re.fullmatch(r"top-([1-9]\d*)", requested):
        names = ", ".join((*METRICS, "top-5 or any other number"))
        raise UsageError(f"Expected a metric among {names}, or MODULE:FUNCTION, found {requested!r}.")


def made(known: Known, requested: str | UserMetric | None) -> Metric:
    """The metric of that name."""
    if callable(requested):
        return users(getattr(requested, "__name__", "custom"), requested, known)
    if requested is None:
        return METRICS[usual(known)](known)
    first = re.fullmatch(r"top-([1-9]\d*)", requested)
    if first:
        return among_first(int(first[1]), known)
    if requested in METRICS:
        return METRICS[requested](known)
    check_metric(requested)
    return users(requested, load_metric(requested), known)


def usual(known: Known) -> str:
    """The name of the metric that suits the outputs if nobody asks for one."""
    if labelled_answers(known.original, known.labels) is not None:
        return "accuracy"
    if evident_answers(known.original) is not None:
        return "agreement"
    return "cosine" if any(values[0].size > 1 for values in floats_of(known.original).values()) else "mse"


@metric("accuracy")
def accuracy(known: Known) -> Metric:
    """Is the class of the highest number the label."""
    return replace(among_first(1, known), name="accuracy")


def among_first(count: int, known: Known) -> Metric:
    """Is the label among the classes of the highest numbers."""
    name = f"top-{count}"
    answers = labelled_answers(known.original, known.labels)
    if answers is None:
        raise UsageError(missing_labels(name, known, "integer labels, one class number per sample, that fit an output"))
    classes = answers.classes(known.original)
    if count > 1 and (classes is None or classes <= count):
        raise UsageError(
            f"Expected for the metric {name} more than {count} classes to choose from, found "
            f"{classes or 'class numbers already chosen'} in output {answers.output!r}. Ask for accuracy."
        )

    def measure(outputs: Outputs, known: Known) -> np.ndarray:
        assert known.labels is not None
        return by_sample(answers.ranks(outputs, known.labels) < count)

    return Metric(name, "answers" if single(answers, known) else "numbers", known, measure)


@metric("agreement")
def agreement(known: Known) -> Metric:
    """Is the answer the same as the original's."""
    answers = labelled_answers(known.original, known.labels) or possible_answers(known.original)
    if answers is None:
        raise UsageError(
            "Expected for the metric agreement an output of at least two classes, found "
            f"{spelled(known.original)}. Ask for cosine or mse."
        )

    def measure(outputs: Outputs, known: Known) -> np.ndarray:
        return by_sample(answers.of(outputs) == answers.of(known.original))

    return Metric("agreement", "losses" if single(answers, known) else "numbers", known, measure)


@metric("cosine")
def cosine(known: Known) -> Metric:
    """Cosine between all outputs of a sample and the original's, each output in units of its own size."""
    require_floats("cosine", known)

    def measure(outputs: Outputs, known: Known) -> np.ndarray:
        one, other = flat(outputs, known.original), flat(known.original, known.original)
        sizes = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        alike = (one == other).all(1)
        return np.where(alike, 1.0, (one * other).sum(1) / np.where(sizes == 0, 1.0, sizes))

    return Metric("cosine", "numbers", known, measure)


@metric("mse")
def mse(known: Known) -> Metric:
    """Squared error of a sample over the mean square of what is right, each output for itself and then on average."""
    require_floats("mse", known)
    labelled = labelled_output(known)

    def measure(outputs: Outputs, known: Known) -> np.ndarray:
        wanted = right(known, labelled)
        errors = [squared_error(outputs[name], values) / energy(values) for name, values in wanted.items()]
        return np.asarray(np.mean(errors, 0))

    return Metric("mse", "numbers", known, measure, less_is_better=True)


@metric("psnr")
def psnr(known: Known) -> Metric:
    """Peak signal-to-noise ratio against the labels; the peak is the range of the labels."""
    name = labelled_output(known)
    if name is None:
        wanted = "float labels of an output's shape"
        raise UsageError(missing_labels("psnr", known, wanted) + " Without labels, ask for mse or cosine.")

    def measure(outputs: Outputs, known: Known) -> np.ndarray:
        (wanted,) = right(known, name).values()
        peak = float(np.ptp(wanted.astype(np.float64))) or 1.0
        noise = squared_error(outputs[name], wanted) / peak**2
        decibels: np.ndarray = -10 * np.log10(np.maximum(noise, 10 ** (-MOST_DECIBELS / 10)))
        return decibels

    return Metric("psnr", "numbers", known, measure, relative=True)


def users(name: str, function: UserMetric, known: Known) -> Metric:
    """What a function of the user's says; zeros and ones are counted as answers."""

    def measure(outputs: Outputs, known: Known) -> np.ndarray:
        return user_values(name, function, outputs, known.labels)

    values = measure(known.original, known)
    return Metric(name, "answers" if np.isin(values, (0, 1)).all() else "numbers", known, measure)


def checked(found: Metric) -> Metric:
    """
    The metric, if it makes something of the original.

    Raises:
        UsageError: its figure is not finite for some sample.
    """
    values = found.original()
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise UsageError(
            f"Expected of the metric {found.name!r} finite numbers for the original, found {values[bad[0]]} for sample "
            f"{bad[0]} and {len(bad) - 1} more. Leave these samples out, or ask for another metric."
        )
    return found


def by_sample(positions: np.ndarray) -> np.ndarray:
    """The share of a sample's positions of which something is true."""
    shares: np.ndarray = positions.reshape(len(positions), -1).mean(1)
    return shares


def single(answers: Answers, known: Known) -> bool:
    """Is there one answer for each sample?"""
    return bool(answers.of(known.original)[0].size == 1)


def flat(outputs: Outputs, original: Outputs) -> np.ndarray:
    """All float outputs of a sample in a row, each in units of its root mean square in the original."""
    floats = floats_of(original)
    rows = [
        outputs[name].astype(np.float64).reshape(len(values), -1) / np.sqrt(energy(values) * values[0].size)
        for name, values in floats.items()
    ]
    return np.concatenate(rows, 1)


def energy(values: np.ndarray) -> float:
    """Mean square."""
    return max(float(np.mean(np.square(values.astype(np.float64)))), 1e-30)


def squared_error(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mean squared difference for each sample."""
    apart = one.astype(np.float64) - other.astype(np.float64)
    errors: np.ndarray = np.square(apart).reshape(len(apart), -1).mean(1)
    return errors


def labelled_output(known: Known) -> str | None:
    """The first output that float labels are of the shape of."""
    labels = known.labels
    if labels is None or not is_float(labels):
        return None
    return next((name for name, values in floats_of(known.original).items() if values.shape == labels.shape), None)


def right(known: Known, labelled: str | None) -> Outputs:
    """What the outputs should be: the labels, or all that the original gives."""
    if labelled is None:
        return floats_of(known.original)
    assert known.labels is not None
    return {labelled: known.labels}


def require_floats(name: str, known: Known) -> None:
    """
    Check that there is something to compute with.

    Raises:
        UsageError: no float outputs.
    """
    if not floats_of(known.original):
        raise UsageError(
            f"Expected for the metric {name} a float output of one size for all samples, found "
            f"{spelled(known.original)}. Ask for agreement, or give a metric of your own: MODULE:FUNCTION."
        )


def missing_labels(name: str, known: Known, wanted: str) -> str:
    """Why a metric that needs labels cannot be computed."""
    labels = known.labels
    found = "no labels" if labels is None else f"labels {labels.dtype} {list(labels.shape)}"
    advice = "Add an array 'labels' to the data, or name it: --labels." if labels is None else "Convert the labels."
    return f"Expected for the metric {name} {wanted} ({spelled(known.original)}), found {found}. {advice}"


def spelled(outputs: Outputs) -> str:
    """Outputs as a user would write them down."""
    return ", ".join(f"{name!r}: {values.dtype} {list(values.shape)}" for name, values in outputs.items()) or "none"
