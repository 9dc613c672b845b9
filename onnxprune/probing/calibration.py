"""Calibration data: samples for every input of the model, checked at the door, or made up from a seed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from onnxprune.errors import DataError, UsageError
from onnxprune.reading.graph import Graph, Port
from onnxprune.reading.observing import session_for

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
    `stacked` says that the model itself has no axis for samples, so that each is fed alone.
    """

    arrays: Mapping[str, np.ndarray]
    labels: np.ndarray | None
    synthetic: bool
    batch: int | None
    """The size of the model's batch axis; None when it is dynamic."""

    stacked: bool

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def first(self, count: int) -> Calibration:
        """Only the first `count` samples."""
        arrays = {name: array[:count] for name, array in self.arrays.items()}
        labels = None if self.labels is None else self.labels[:count]
        return Calibration(arrays, labels, self.synthetic, self.batch, self.stacked)

    def at(self, samples: np.ndarray) -> dict[str, np.ndarray]:
        """What to feed for these samples."""
        if self.stacked:
            (sample,) = samples
            return {name: np.ascontiguousarray(array[sample]) for name, array in self.arrays.items()}
        return {name: np.ascontiguousarray(array[samples]) for name, array in self.arrays.items()}

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """Sample numbers, batch by batch; a fixed batch axis decides the size, and the last batch is filled up."""
        if self.stacked:
            size = 1
        step = size if self.batch is None else self.batch
        for start in range(0, len(self), step):
            yield np.arange(start, min(start + step, len(self)))

    def filled(self, samples: np.ndarray) -> np.ndarray:
        """The sample numbers, the last one repeated until a fixed batch axis is full."""
        missing = 0 if self.batch is None or self.stacked else self.batch - len(samples)
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
    if data is None:
        return synthetic(graph, seed)
    arrays = named(graph, data)
    answers = arrays.pop(labels, None)
    problems = list(mismatches(graph, arrays, answers, labels))
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        wanted = ", ".join(describe(port) for port in graph.inputs)
        raise DataError(f"Calibration data do not fit the model, which takes {wanted}:\n{listed}\nMend the data file.")
    fixed, stacked = batch_axis(graph, arrays)
    return Calibration(arrays, answers, False, fixed, stacked)


def collected(data: Data | None) -> np.ndarray | dict[str, np.ndarray] | None:
    """The data as one array or as arrays by name; an iterable is read to its end here, once."""
    if data is None or isinstance(data, np.ndarray):
        return data
    if isinstance(data, str | os.PathLike):
        return from_file(data)
    if isinstance(data, Mapping):
        return {name: np.asarray(array) for name, array in data.items()}
    return joined(iter(data.get_next, None) if isinstance(data, DataReader) else iter(data))


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
    try:
        with np.load(path, allow_pickle=False) as archive:
            if isinstance(archive, np.ndarray):
                raise DataError(f"Expected an .npz archive at {str(path)!r}, found a single array. Use numpy.savez.")
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise DataError(f"Expected calibration data at {str(path)!r}, found no such file. Check the path.") from None
    except (OSError, ValueError, EOFError) as failure:
        raise DataError(
            f"Expected an .npz archive of plain arrays at {str(path)!r}: {failure}. Write it with numpy.savez."
        ) from None


def joined(feeds: Iterator[Mapping[str, np.ndarray] | None]) -> dict[str, np.ndarray]:
    """Feeds, batch by batch, as one array per name."""
    parts: dict[str, list[np.ndarray]] = {}
    for feed in feeds:
        if not isinstance(feed, Mapping):
            kind = type(feed).__name__
            raise DataError(f"Expected feeds that map input names to arrays, found {kind}. Yield dicts.")
        for name, array in feed.items():
            parts.setdefault(name, []).append(np.asarray(array))
    if not parts:
        raise DataError("Expected calibration samples, found an empty iterable. An iterator can be read only once.")
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def mismatches(
    graph: Graph, arrays: Mapping[str, np.ndarray], answers: np.ndarray | None, labels: str
) -> Iterator[str]:
    """Everything about the data that does not fit the model."""
    wanted = {port.name: port for port in graph.inputs}
    for name in wanted.keys() - arrays.keys():
        yield f"input {name!r}: no array of that name"
    for name in sorted(arrays.keys() - wanted.keys()):
        yield f"array {name!r}: the model has no such input"
    counts = {name: len(array) for name, array in arrays.items() if array.ndim}
    if len(set(counts.values())) > 1:
        yield f"the arrays hold different numbers of samples: {counts}"
    for name, array in arrays.items():
        if name in wanted:
            yield from misfit(wanted[name], array)
    if answers is not None and counts and len(answers) != next(iter(counts.values())):
        yield f"labels {labels!r}: {len(answers)} of them for {next(iter(counts.values()))} samples"


def misfit(port: Port, array: np.ndarray) -> Iterator[str]:
    """What is wrong with one array."""
    if array.dtype != port.dtype:
        yield f"input {port.name!r}: expected dtype {port.dtype}, found {array.dtype}; convert with .astype"
    if array.size == 0:
        yield f"input {port.name!r}: no samples"
    if port.shape is not None and not any(fits(port.shape, shape) for shape in sample_shapes(port, array)):
        yield f"input {port.name!r}: expected shape {spelled(port.shape)}, found {list(array.shape)}"
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        yield f"input {port.name!r}: {bad} numbers are NaN or infinite"


def sample_shapes(port: Port, array: np.ndarray) -> Iterator[tuple[int, ...]]:
    """The shapes in which the array's samples could be fed: as a batch, or one by one without a batch axis."""
    if port.shape and array.ndim == len(port.shape):
        first = port.shape[0]
        yield (first if isinstance(first, int) else array.shape[0], *array.shape[1:])
    elif port.shape is not None and array.ndim == len(port.shape) + 1:
        yield array.shape[1:]


def fits(declared: tuple[int | str | None, ...], shape: tuple[int, ...]) -> bool:
    return len(declared) == len(shape) and all(
        not isinstance(size, int) or size == found for size, found in zip(declared, shape, strict=True)
    )


def spelled(shape: tuple[int | str | None, ...]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def describe(port: Port) -> str:
    """An input as a user would write it down."""
    return f"{port.name}: {port.dtype} {spelled(port.shape) if port.shape is not None else 'of any shape'}"


def batch_axis(graph: Graph, arrays: Mapping[str, np.ndarray]) -> tuple[int | None, bool]:
    """The fixed size of the batch axis if it has one, and whether samples are fed one by one without such an axis."""
    port = graph.inputs[0]
    if port.shape is not None and arrays[port.name].ndim == len(port.shape) + 1:
        return 1, True
    fixed = [p.shape[0] for p in graph.inputs if p.shape and isinstance(p.shape[0], int)]
    return (fixed[0] if fixed else None), False


def synthetic(graph: Graph, seed: int) -> Calibration:
    """Seeded random samples: normal for floats, small non-negative numbers for integers, both truths for booleans."""
    if not graph.inputs:
        raise DataError("The model has no inputs to calibrate on. Prune it with --criterion magnitude.")
    fixed, stacked = fixed_batch(graph)
    session = session_for(graph.model)
    for highest in (1000, 100, 10, 2, 1):
        rng = np.random.default_rng(seed)
        arrays = {
            port.name: random_array(port, graph.input_shapes[port.name], stacked, highest, rng) for port in graph.inputs
        }
        made = Calibration(arrays, None, True, fixed, stacked)
        try:
            session.run(None, made.at(made.filled(next(made.batches(2)))))
        except Exception:  # these integers are out of the model's range; try smaller ones
            continue
        return made
    raise DataError("The model does not run on made-up inputs. Pass calibration data with --data.")


def fixed_batch(graph: Graph) -> tuple[int | None, bool]:
    """As `batch_axis`, from the model alone."""
    if any(not graph.input_shapes[port.name] for port in graph.inputs):
        return 1, True
    fixed = [port.shape[0] for port in graph.inputs if port.shape and isinstance(port.shape[0], int)]
    return (fixed[0] if fixed else None), False


def random_array(
    port: Port, shape: tuple[int, ...], stacked: bool, highest: int, rng: np.random.Generator
) -> np.ndarray:
    """`SYNTHETIC_SAMPLES` random samples for one input."""
    full = (SYNTHETIC_SAMPLES, *shape) if stacked else (SYNTHETIC_SAMPLES, *shape[1:])
    dtype: np.dtype[Any] = port.dtype
    if dtype.kind == "b":
        return rng.random(full) < 0.5
    if dtype.kind in "iu":
        return rng.integers(0, highest, full).astype(dtype)
    if dtype.kind == "f" or dtype.name == "bfloat16":
        return rng.standard_normal(full).astype(dtype)
    raise UsageError(f"Input {port.name!r} has dtype {dtype}, for which no samples can be made up. Pass --data.")
