"""Calibration data: every form is the same, and whatever does not fit is said at once."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune.errors import DataError, UsageError
from onnxprune.probing.calibration import Calibration, Data, gather
from onnxprune.reading.graph import Graph
from onnxprune.reading.read import read
from tests.bundled import bundled, digits
from tests.models import build

SAMPLES = 10


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """Ten digits, free to be changed."""
    return {name: array.copy() for name, array in digits("mlp_torch", SAMPLES).items()}


@pytest.fixture
def graph() -> Graph:
    return bundled("mlp_torch").graph


class Reader:
    """Like ONNX Runtime's CalibrationDataReader: feeds one after another, then None."""

    def __init__(self, feeds: list[dict[str, np.ndarray]]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def in_batches(arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The arrays as feeds of up to four samples."""
    return [{name: array[start : start + 4] for name, array in arrays.items()} for start in range(0, SAMPLES, 4)]


def saved(arrays: dict[str, np.ndarray], folder: Path) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


FORMS: dict[str, Callable[[dict[str, np.ndarray], Path], Data]] = {
    "path": saved,
    "text": lambda arrays, folder: str(saved(arrays, folder)),
    "compressed": lambda arrays, folder: np.savez_compressed(folder / "data.npz", **arrays) or folder / "data.npz",
    "lists": lambda arrays, folder: {"x": list(arrays["x"]), "labels": arrays["labels"].tolist()},
    "feeds": lambda arrays, folder: in_batches(arrays),
    "generator": lambda arrays, folder: (feed for feed in in_batches(arrays)),
    "reader": lambda arrays, folder: Reader(in_batches(arrays)),
}


def assert_same(found: Calibration, expected: Calibration) -> None:
    assert found.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert (found.batch, found.stacked, found.synthetic) == (expected.batch, expected.stacked, expected.synthetic)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_is_the_same(form: str, graph: Graph, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    """A file, a dict, feeds in any iterable and a data reader all give the samples of the dict."""
    assert_same(gather(graph, FORMS[form](arrays, tmp_path)), gather(graph, arrays))


def test_one_array_is_for_the_only_input(graph: Graph, arrays: dict[str, np.ndarray]) -> None:
    """A model of one input needs no name for it."""
    assert_same(gather(graph, arrays["x"]), gather(graph, {"x": arrays["x"]}))


def test_labels_may_have_another_name(graph: Graph, arrays: dict[str, np.ndarray]) -> None:
    """The array that `labels` names holds the labels."""
    renamed = {"x": arrays["x"], "digit": arrays["labels"]}
    assert_same(gather(graph, renamed, labels="digit"), gather(graph, arrays))


def test_an_input_may_be_called_labels() -> None:
    """Where the model has an input of that name, the array is for the input."""
    graph = read(build("y = Gemm(x[N,5], w1[5,3])"))
    graph.model.graph.input[0].name = graph.model.graph.node[0].input[0] = "labels"
    calibration = gather(read(graph.model), {"labels": np.zeros((4, 5), np.float32)})
    assert calibration.labels is None
    assert calibration.arrays["labels"].shape == (4, 5)


def test_made_up_samples_follow_the_seed() -> None:
    """Without data there are seeded samples of the inputs' shapes and dtypes, inside the range that the model takes."""
    graph = read(build("a = Gather(w0[20,8], int64 x1[N,6])\n b = Where(bool x2[N,6,1], a, c[1])\n y = Identity(b)"))
    one, same, other = (gather(graph, None, seed=seed) for seed in (1, 1, 2))
    assert one.synthetic
    assert {name: (array.dtype.name, array.shape[1:]) for name, array in one.arrays.items()} == {
        "x1": ("int64", (6,)),
        "x2": ("bool", (6, 1)),
    }
    assert 0 <= one.arrays["x1"].min() <= one.arrays["x1"].max() < 20
    assert_same(one, same)
    assert (one.arrays["x1"] != other.arrays["x1"]).any()


def test_a_negative_seed_is_refused(graph: Graph) -> None:
    """A seed is 0 or more."""
    with pytest.raises(UsageError, match="Expected a seed of 0 or more, found -1"):
        gather(graph, None, seed=-1)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "name": (lambda a: {"image": a["x"]}, "input 'x': no array of that name"),
    "extra": (lambda a: a | {"more": a["x"]}, "array 'more': the model has no such input"),
    "dtype": (lambda a: {"x": a["x"].astype(float)}, "input 'x': expected dtype float32, found float64; convert"),
    "integers": (lambda a: {"x": (255 * a["x"]).astype(np.uint8)}, "input 'x': expected dtype float32, found uint8"),
    "shape": (lambda a: {"x": a["x"][:, :20]}, "input 'x': expected shape [samples, 28, 28], found [10, 20, 28]"),
    "flat": (lambda a: {"x": a["x"].reshape(10, -1)}, "expected shape [samples, 28, 28], found [10, 784]"),
    "none": (lambda a: {"x": a["x"][:0]}, "input 'x': no samples"),
    "nan": (
        lambda a: {"x": np.where(a["x"] == 0, np.nan, a["x"])},
        "input 'x': NaN or infinite in 6,371 of 7,840 places",
    ),
    "infinite": (lambda a: {"x": np.full_like(a["x"], np.inf)}, "input 'x': NaN or infinite in 7,840 of 7,840 places"),
    "fewer labels": (lambda a: a | {"labels": a["labels"][:3]}, "labels 'labels': 3 of them for 10 samples"),
    "one label": (
        lambda a: a | {"labels": np.array(3)},
        "labels 'labels': expected one for each sample, found a single",
    ),
    "nan labels": (
        lambda a: a | {"labels": np.full(10, np.nan)},
        "labels 'labels': NaN or infinite in 10 of 10 places",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_data_that_do_not_fit_are_refused(change: str, graph: Graph, arrays: dict[str, np.ndarray]) -> None:
    """The message names the array, what was expected and what was found."""
    make, expected = CHANGES[change]
    with pytest.raises(DataError) as refusal:
        gather(graph, make(arrays))
    assert str(refusal.value).startswith("Calibration data do not fit the model, which takes x: float32 [N, 28, 28]:")
    assert expected in str(refusal.value)


def test_all_mismatches_are_told_at_once(graph: Graph, arrays: dict[str, np.ndarray]) -> None:
    """One look at the message is enough to mend the file."""
    wrong = {"x": np.full((10, 28, 27), np.nan), "more": arrays["x"][:2], "labels": arrays["labels"][:5]}
    with pytest.raises(DataError) as refusal:
        gather(graph, wrong)
    assert str(refusal.value).count("\n  - ") == 6


def test_labels_that_are_named_must_be_there(graph: Graph, arrays: dict[str, np.ndarray]) -> None:
    """A name given for the labels is no guess."""
    with pytest.raises(DataError, match="labels 'digit': no array of that name"):
        gather(graph, {"x": arrays["x"]}, labels="digit")


def test_one_array_for_two_inputs_is_refused() -> None:
    """Arrays for several inputs need names."""
    graph = read(build("y = Add(x1[N,5], x2[N,5])"))
    with pytest.raises(DataError, match="Expected a dict of arrays for the inputs 'x1', 'x2', found one array"):
        gather(graph, np.zeros((4, 5), np.float32))


def never() -> Iterator[dict[str, np.ndarray]]:
    yield from ()


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        (never(), "found an empty iterable"),
        ([np.zeros((1, 28, 28))], "Expected feeds that map input names to arrays, found ndarray"),
        (
            [{"x": np.zeros((1, 28, 28))}, {"x": np.zeros((1, 28, 20))}],
            r"found \[batch, 28, 28\] and \[batch, 28, 20\]",
        ),
        ([{"x": np.float32(1)}], r"expected shape \[samples, 28, 28\], found \[1\]"),
    ],
)
def test_feeds_that_do_not_fit_are_refused(feeds: Any, message: str, graph: Graph) -> None:
    """Feeds are dicts of batches that can be joined."""
    with pytest.raises(DataError, match=message):
        gather(graph, feeds)


def text(path: Path, good: bytes) -> None:
    path.write_text("x,labels\n1,2\n")


def single(path: Path, good: bytes) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros((2, 28, 28), np.float32))


def pickled(path: Path, good: bytes) -> None:
    np.savez(path, x=np.array([{}, {}]))


def flipped(path: Path, good: bytes) -> None:
    path.write_bytes(good[:5000] + bytes([good[5000] ^ 255]) + good[5001:])


def strange(path: Path, good: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def missing(path: Path, good: bytes) -> None:
    path.unlink()


def folder(path: Path, good: bytes) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing, "No such file or directory. Check the path."),
        (folder, "Is a directory. Check the path."),
        (text, "found something else or only a part of one. Write one with numpy.savez"),
        (single, "found something else or only a part of one. Write one with numpy.savez"),
        (lambda path, good: path.write_bytes(good[:3000]), "found something else or only a part of one"),
        (lambda path, good: path.write_bytes(b""), "found something else or only a part of one"),
        (flipped, "Bad CRC-32 for file 'x.npy'. Write one with numpy.savez"),
        (pickled, "Object arrays cannot be loaded when allow_pickle=False. Write one with numpy.savez"),
        (strange, "found files in it that are none: 'readme.txt'"),
    ],
)
def test_files_that_hold_no_arrays_are_refused(
    spoil: Callable[[Path, bytes], None], message: str, graph: Graph, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """The message gives the file, what is wrong with it, and how to make a good one."""
    path = saved(arrays, tmp_path)
    spoil(path, path.read_bytes())
    with pytest.raises(DataError) as refusal:
        gather(graph, path)
    assert str(refusal.value).startswith(f"Expected an .npz archive of arrays at {str(path)!r}")
    assert message in str(refusal.value)
