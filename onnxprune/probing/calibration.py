"""Calibration data: samples for every input of the model, checked at the door, or made up from a seed."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from onnxprune.errors import DataError, UsageError
from onnxprune.reading.graph import Graph, Port
from onnxprune.reading.observing import BATCH, session_for

SYNTHETIC_SAMPLES = 32


@runtime_checkable
class DataReader(Protocol):
    """What ONNX Runtime's `CalibrationDataReader` offers: feeds one by one, None at the end."""

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        """The next feed."""


Data = str | os.PathLike[str] | np.ndarray | Mapping[str, np.ndarray] | DataReader | Iterable[Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Calibration:
    """
    Samples to measure on.

    `arrays` holds `[samples, ...]` for each input, `labels` the right answers `[samples, ...]` if there are any.
    `outputs` are the model outputs that are measured: those that count samples along their first axis, as the inputs
    do. Where there are none, each sample is `stacked`: a whole feed, run alone.
    """

    arrays: Mapping[str, np.ndarray]
    labels: np.ndarray | None
    synthetic: bool
    batch: int | None
    """How many samples the model takes at a time; None when any number will do."""

    outputs: tuple[str, ...]
    stacked: bool

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def first(self, count: int) -> Calibration:
        """Only the first `count` samples."""
        return self.only(np.arange(min(count, len(self))))

    def only(self, samples: np.ndarray) -> Calibration:
        """Only these samples."""
        arrays = {name: array[samples] for name, array in self.arrays.items()}
        return replace(self, arrays=arrays, labels=None if self.labels is None else self.labels[samples])

    def at(self, samples: np.ndarray) -> dict[str, np.ndarray]:
        """What to feed for these samples."""
        if self.stacked:
            (sample,) = samples
            return {name: np.ascontiguousarray(array[sample]) for name, array in self.arrays.items()}
        return {name: np.ascontiguousarray(array[samples]) for name, array in self.arrays.items()}

    def together(self, count: int) -> dict[str, np.ndarray]:
        """A feed of `count` samples, the first ones over and over, for a model whose batch is dynamic."""
        samples = np.resize(np.arange(len(self)), count)
        if self.stacked:
            return {name: np.concatenate(array[samples]) for name, array in self.arrays.items()}
        return self.at(samples)

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """Sample numbers, batch by batch; stacked samples come alone, and a fixed batch axis decides the size."""
        step = 1 if self.stacked else self.batch or size
        for start in range(0, len(self), step):
            yield np.arange(start, min(start + step, len(self)))

    def filled(self, samples: np.ndarray) -> np.ndarray:
        """The sample numbers, the last one repeated until a fixed batch axis is full."""
        missing = 0 if self.batch is None else self.batch - len(samples)
        return np.concatenate([samples, np.repeat(samples[-1:], missing)]) if missing > 0 else samples


def gather(graph: Graph, data: Data | Calibration | None, *, labels: str = "labels", seed: int = 0) -> Calibration:
    """
    The calibration data in the form the model takes.

    Args:
        graph: the model.
        data: an `.npz` file whose arrays are named like the inputs; an array, for a model of one input; a dict of
            arrays; an iterable of feeds, or an object with `get_next()`, whose batches are joined; None for seeded
            random inputs.
        labels: name of the array with the right answers, if there is one.
        seed: of the random inputs.

    Raises:
        DataError: names, shapes, dtypes or numbers do not fit; the message lists all of them.
    """
    if isinstance(data, Calibration):
        return data
    if seed < 0:
        raise UsageError(f"Expected a seed of 0 or more, found {seed}.")
    if data is None:
        return synthetic(graph, seed)
    arrays = named(graph, data)
    answers = None if labels in graph.input_shapes else arrays.pop(labels, None)
    outputs = outputs_by_sample(graph)
    ranks = {port.name: len(port.shape) for port in graph.inputs if port.shape is not None}
    stacked = not outputs or any(arrays[name].ndim == rank + 1 for name, rank in ranks.items() if name in arrays)
    if stacked:
        arrays |= {port.name: whole_feeds(port, arrays[port.name]) for port in graph.inputs if port.name in arrays}
    problems = [*mismatches(graph, arrays, stacked), *label_mismatches(arrays, answers, labels)]
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        wanted = ", ".join(describe(port) for port in graph.inputs)
        raise DataError(f"Calibration data do not fit the model, which takes {wanted}:\n{listed}\nMend the data.")
    return calibration_of(graph, arrays, answers, stacked=stacked, synthetic=False)


def calibration_of(
    graph: Graph, arrays: Mapping[str, np.ndarray], labels: np.ndarray | None, *, stacked: bool, synthetic: bool
) -> Calibration:
    """Arrays that fit, with what the model says about samples."""
    if stacked:
        everything = tuple(port.name for port in graph.outputs if port.name in graph.shapes)
        return Calibration(arrays, labels, synthetic, None, everything, True)
    fixed = [port.shape[0] for port in graph.inputs if port.shape and isinstance(port.shape[0], int)]
    batches = {shape[0] for shape in graph.input_shapes.values() if shape}
    if graph.has_batch and len(batches) == 1 and BATCH not in batches:
        fixed = [*batches]  # the batch is dynamic by name only: no other ran when the model was read
    return Calibration(arrays, labels, synthetic, fixed[0] if fixed else None, outputs_by_sample(graph), False)


def outputs_by_sample(graph: Graph) -> tuple[str, ...]:
    """The outputs that count samples along their first axis, as all inputs do; none if the inputs do not."""
    firsts = {shape[:1] for shape in graph.input_shapes.values()}
    if len(firsts) != 1 or () in firsts:
        return ()
    return tuple(
        port.name
        for port in graph.outputs
        if graph.shapes.get(port.name, ())[:1] in firsts
        and not (graph.has_batch and port.shape and isinstance(port.shape[0], int))
    )


def whole_feeds(port: Port, array: np.ndarray) -> np.ndarray:
    """The array with one more axis in front, so that each sample is a whole feed; as it is if it cannot be cut so."""
    if not port.shape or array.ndim != len(port.shape):
        return array
    rows = port.shape[0] if isinstance(port.shape[0], int) else 1
    return array if len(array) % rows else array.reshape(-1, rows, *array.shape[1:])


def collected(data: Data | None) -> np.ndarray | dict[str, np.ndarray] | None:
    """The data as one array or as arrays by name; an iterable is read to its end here, once."""
    if data is None or isinstance(data, np.ndarray):
        return data
    if isinstance(data, str | os.PathLike):
        return from_file(data)
    if isinstance(data, Mapping):
        return {name: np.asarray(array) for name, array in data.items()}
    if isinstance(data, DataReader):
        return joined(iter(data.get_next, None))
    if not isinstance(data, Iterable):
        raise UsageError(f"Expected data as a file, arrays or an iterable of feeds, found {data!r}.")
    return joined(iter(data))


def given_shapes(arrays: np.ndarray | Mapping[str, np.ndarray] | None) -> dict[str, tuple[int, ...]]:
    """Shapes of named arrays, for a model that runs only at certain sizes."""
    return {name: array.shape for name, array in arrays.items()} if isinstance(arrays, Mapping) else {}


def named(graph: Graph, data: Data) -> dict[str, np.ndarray]:
    """Arrays by name, whatever form they came in."""
    arrays = collected(data)
    if isinstance(arrays, dict):
        return arrays
    assert arrays is not None
    if len(graph.inputs) != 1:
        names = ", ".join(repr(port.name) for port in graph.inputs)
        raise DataError(f"Expected a dict of arrays for the inputs {names}, found one array. Name the arrays.")
    return {graph.inputs[0].name: arrays}


def from_file(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of an .npz file."""
    expected = f"Expected an .npz archive of arrays at {str(path)!r}"
    advice = "Write one with numpy.savez(FILE, **arrays), with an array for each input of the model."
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):
                raise DataError(f"{expected}, found something else or only a part of one. {advice}")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
    except OSError as failure:
        raise DataError(f"{expected}: {failure.strerror or failure}. Check the path.") from None
    except DataError:
        raise
    except Exception as failure:  # numpy and zipfile raise many kinds, for pickles and for damaged files
        raise DataError(f"{expected}: {failure}. {advice}") from None
    strange = ", ".join(repr(name) for name, array in arrays.items() if not isinstance(array, np.ndarray))
    if strange:
        raise DataError(f"{expected}, found files in it that are none: {strange}. {advice}")
    return arrays


def joined(feeds: Iterator[Mapping[str, np.ndarray] | None]) -> dict[str, np.ndarray]:
    """Feeds, batch by batch, as one array per name."""
    parts: dict[str, list[np.ndarray]] = {}
    for feed in feeds:
        if not isinstance(feed, Mapping):
            kind = type(feed).__name__
            raise DataError(f"Expected feeds that map input names to arrays, found {kind}. Yield dicts.")
        for name, array in feed.items():
            parts.setdefault(name, []).append(np.atleast_1d(array))
    if not parts:
        raise DataError("Expected calibration samples, found an empty iterable. An iterator can be read only once.")
    for name, arrays in parts.items():
        shapes = list(dict.fromkeys(array.shape[1:] for array in arrays))
        if len(shapes) > 1:
            found = " and ".join(spelled(("batch", *shape)) for shape in shapes[:2])
            raise DataError(f"Expected feeds of one shape for {name!r}, found {found}. Pad them to one size.")
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def mismatches(graph: Graph, arrays: Mapping[str, np.ndarray], stacked: bool) -> Iterator[str]:
    """Everything about the arrays that does not fit the model."""
    wanted = {port.name: port for port in graph.inputs}
    for name in wanted:
        if name not in arrays:
            yield f"input {name!r}: no array of that name"
    for name in arrays:
        if name not in wanted:
            yield f"array {name!r}: the model has no such input"
    counts = {name: len(array) for name, array in arrays.items() if array.ndim}
    if len(set(counts.values())) > 1:
        yield f"the arrays hold different numbers of samples: {counts}"
    for name, array in arrays.items():
        if name in wanted:
            yield from misfit(wanted[name], array, stacked)


def label_mismatches(arrays: Mapping[str, np.ndarray], answers: np.ndarray | None, labels: str) -> Iterator[str]:
    """Everything about the labels that does not fit the arrays."""
    if answers is None:
        if labels != "labels":
            yield f"labels {labels!r}: no array of that name"
        return
    counts = {len(array) for array in arrays.values() if array.ndim}
    if not answers.ndim:
        yield f"labels {labels!r}: expected one for each sample, found a single {answers.dtype}"
    elif counts and len(answers) not in counts:
        yield f"labels {labels!r}: {len(answers)} of them for {min(counts)} samples"
    yield from not_finite(f"labels {labels!r}", answers)


def misfit(port: Port, array: np.ndarray, stacked: bool) -> Iterator[str]:
    """What is wrong with one array."""
    if array.dtype != port.dtype:
        yield f"input {port.name!r}: expected dtype {port.dtype}, found {array.dtype}; convert with .astype"
    if array.size == 0:
        yield f"input {port.name!r}: no samples"
    if port.shape is not None:
        expected = ("samples", *port.shape) if stacked else ("samples", *port.shape[1:])
        if not fits(expected, array.shape):
            yield f"input {port.name!r}: expected shape {spelled(expected)}, found {spelled(array.shape)}"
    yield from not_finite(f"input {port.name!r}", array)


def not_finite(where: str, array: np.ndarray) -> Iterator[str]:
    """A complaint about numbers that are none."""
    bad = int((~np.isfinite(array)).sum()) if array.dtype.kind == "f" else 0
    if bad:
        yield f"{where}: NaN or infinite in {bad:,} of {array.size:,} places"


def fits(declared: tuple[int | str | None, ...], shape: tuple[int, ...]) -> bool:
    return len(declared) == len(shape) and all(
        not isinstance(size, int) or size == found for size, found in zip(declared, shape, strict=True)
    )


def spelled(shape: tuple[int | str | None, ...]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def describe(port: Port) -> str:
    """An input as a user would write it down."""
    return f"{port.name}: {port.dtype} {spelled(port.shape) if port.shape is not None else 'of any shape'}"


def synthetic(graph: Graph, seed: int) -> Calibration:
    """Seeded random samples: normal for floats, small non-negative numbers for integers, both truths for booleans."""
    if not graph.inputs:
        raise DataError("Expected a model with inputs, found one without: there is nothing to measure it on.")
    stacked = not outputs_by_sample(graph)
    session = session_for(graph.model)
    for highest in (1000, 100, 10, 2, 1):
        rng = np.random.default_rng(seed)
        arrays = {
            port.name: random_array(port, sample_shape(graph, port, stacked), highest, rng) for port in graph.inputs
        }
        made = calibration_of(graph, arrays, None, stacked=stacked, synthetic=True)
        try:
            session.run(None, made.at(made.filled(next(made.batches(2)))))
        except Exception as failure:  # these integers are out of the model's range; try smaller ones
            reason = first_line(failure)
            continue
        return made
    raise DataError(f"The model does not run on made-up inputs: {reason} Pass calibration data with --data.")


def first_line(failure: Exception) -> str:
    """What went wrong, in one line."""
    return (str(failure) or type(failure).__name__).splitlines()[0]


def sample_shape(graph: Graph, port: Port, stacked: bool) -> tuple[int, ...]:
    """The shape of one sample of an input: a whole feed if stacked."""
    shape = graph.input_shapes[port.name]
    if not stacked:
        return shape[1:]
    batch = {other.shape[0] for other in graph.inputs if other.shape and isinstance(other.shape[0], str)}
    said = port.shape or ()
    return tuple(
        1 if size == BATCH and (says in batch or (says is None and axis == 0)) else size
        for axis, (says, size) in enumerate(zip(said, shape, strict=True))
    )


def random_array(port: Port, shape: tuple[int, ...], highest: int, rng: np.random.Generator) -> np.ndarray:
    """`SYNTHETIC_SAMPLES` random samples for one input."""
    full = (SYNTHETIC_SAMPLES, *shape)
    dtype: np.dtype[Any] = port.dtype
    if dtype.kind == "b":
        return rng.random(full) < 0.5
    if dtype.kind in "iu":
        return rng.integers(0, highest, full).astype(dtype)
    if dtype.kind == "f" or dtype.name == "bfloat16":
        return rng.standard_normal(full).astype(dtype)
    raise UsageError(f"Input {port.name!r} has dtype {dtype}, for which no samples can be made up. Pass --data.")
