"""Numbers in files beside the model: read where they lie, written as they lay, and never touched."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto

import onnxprune
from fixtures.make.large_decoder import Decoder, write_decoder
from onnxprune.comparing import compare
from onnxprune.errors import ModelError, OnnxPruneError, UsageError
from onnxprune.job import PruneResult
from onnxprune.reading import numbers, parts
from onnxprune.reading.observing import session_for
from onnxprune.reading.read import load, read
from onnxprune.rewriting.saving import save_model
from tests.models import build

TEXT = """
    a = Conv(x[N,3,4,4], w1[16,3,3,3], b1[16])
    b = Relu(a)
    c = Conv(b, w2[16,16,1,1])
    d = Flatten(c)
    y = Gemm<transB=1>(d, w3[5,64], b3[5])
"""

ONE_FILE = dict.fromkeys(("w1", "b1", "w2", "w3", "b3"), "model.onnx.data")
SEVERAL = {"w1": "weights/first.bin", "w2": "weights/second.bin", "w3": "last.bin"}


def stored(
    folder: Path, places: Mapping[str, str], *, alignment: int = 1, checksum: bool = False, said: bool = True
) -> Path:
    """The model with each of these constants in that file; offsets and lengths may be left unsaid where they can be."""
    model, files = build(TEXT), dict[str, bytes]()
    for tensor in model.graph.initializer:
        if tensor.name in places:
            location = places[tensor.name]
            before = files.get(location, b"")
            before += bytes(-len(before) % alignment)
            files[location] = before + tensor.raw_data
            entries = {"location": location}
            if said or before:
                entries |= {"offset": str(len(before)), "length": str(len(tensor.raw_data))}
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=value)
    for location, content in files.items():
        (folder / location).parent.mkdir(exist_ok=True, parents=True)
        (folder / location).write_bytes(content)
        for tensor in model.graph.initializer:
            if checksum and places.get(tensor.name) == location:
                tensor.external_data.add(key="checksum", value=hashlib.sha1(content).hexdigest())
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def layout(path: Path) -> dict[str, dict[str, str]]:
    """What the file says about where each tensor lies."""
    model = onnx.load(path, load_external_data=False)
    return {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
        if tensor.external_data
    }


def pruned(source: Path | ModelProto) -> PruneResult:
    return onnxprune.prune(source, ratio=0.5, criterion="magnitude")


def same_numbers(one: ModelProto, other: ModelProto) -> bool:
    """Are all initializers alike?"""
    arrays = [{t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer} for model in (one, other)]
    return arrays[0].keys() == arrays[1].keys() and all(np.array_equal(arrays[0][k], arrays[1][k]) for k in arrays[0])


@pytest.mark.parametrize("places", [ONE_FILE, SEVERAL], ids=["one file", "several"])
@pytest.mark.parametrize("said", [True, False])
def test_the_layout_is_kept(tmp_path: Path, places: dict[str, str], said: bool) -> None:
    """The same tensors lie in files of the same names, in the same order; numbers are those of a model in one file."""
    (tmp_path / "out").mkdir()
    source, target = stored(tmp_path, places, said=said), tmp_path / "out" / "small.onnx"
    result = pruned(source)
    result.save(target)
    assert result.report.bytes == sum(file.stat().st_size for file in target.parent.rglob("*") if file.is_file())
    assert {name: entries["location"] for name, entries in layout(target).items()} == places
    by_offset = sorted(layout(target), key=lambda name: int(layout(target)[name]["offset"]))
    assert by_offset == sorted(layout(source), key=lambda name: int(layout(source)[name].get("offset", 0)))
    assert same_numbers(onnx.load(target), pruned(build(TEXT)).model)
    onnx.checker.check_model(str(target), full_check=True)
    session_for(str(target))


def test_alignment_and_checksums_are_kept(tmp_path: Path) -> None:
    """Offsets on pages stay on pages, and a checksum is that of the new file."""
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "small.onnx"
    pruned(stored(tmp_path, ONE_FILE, alignment=4096, checksum=True)).save(target)
    entries = layout(target).values()
    assert all(int(entry["offset"]) % 4096 == 0 for entry in entries)
    content = (tmp_path / "out" / "model.onnx.data").read_bytes()
    assert {entry["checksum"] for entry in entries} == {hashlib.sha1(content).hexdigest()}


def test_the_input_is_never_touched(tmp_path: Path) -> None:
    """In the input's own folder the data file is named after the new model, at every run again."""
    source = stored(tmp_path, ONE_FILE)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for _ in range(2):
        pruned(source).save(tmp_path / "small.onnx")
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "small.onnx", "small.model.onnx.data"])
    assert same_numbers(onnx.load(tmp_path / "small.onnx"), pruned(build(TEXT)).model)


def test_data_of_others_are_not_touched(tmp_path: Path) -> None:
    """A file that the model at the target does not own keeps what it holds."""
    (tmp_path / "out").mkdir()
    other = tmp_path / "out" / "model.onnx.data"
    other.write_bytes(b"of another model")
    pruned(stored(tmp_path, ONE_FILE)).save(tmp_path / "out" / "small.onnx")
    assert other.read_bytes() == b"of another model"
    assert same_numbers(onnx.load(tmp_path / "out" / "small.onnx"), pruned(build(TEXT)).model)


def test_the_input_s_data_are_no_target(tmp_path: Path) -> None:
    """The model is not written over them."""
    result = pruned(stored(tmp_path, ONE_FILE))
    with pytest.raises(UsageError, match="inputs are never touched"):
        result.save(tmp_path / "model.onnx.data")


def test_all_files_appear_or_none(tmp_path: Path) -> None:
    """Where one cannot be written, nothing is left behind, not even a folder."""
    (tmp_path / "out").mkdir()
    result = pruned(stored(tmp_path, SEVERAL))
    (tmp_path / "out" / "small.onnx").mkdir()
    with pytest.raises(OnnxPruneError):
        save_model(result.model, tmp_path / "out" / "small.onnx", source=result.couplings.graph)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["small.onnx"]


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/passwd", "weights/../../outside.bin", "C:\\data", ""])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    """Absolute, or upwards."""
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(bytes(4096))
    path = stored(folder, {"w3": "w.bin"})
    model = onnx.load(path, load_external_data=False)
    next(t for t in model.graph.initializer if t.name == "w3").external_data[0].value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="leads out of the model's folder"):
        read(path)


def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    """Whatever its name."""
    folder = tmp_path / "models"
    folder.mkdir()
    path = stored(folder, {"w3": "w.bin"})
    (folder / "w.bin").rename(tmp_path / "elsewhere.bin")
    os.symlink(tmp_path / "elsewhere.bin", folder / "w.bin")
    with pytest.raises(ModelError, match="a link that leads out of the model's folder"):
        read(path)


def test_data_that_are_missing_are_named(tmp_path: Path) -> None:
    """A file that is not there, one that is too short, and a length that does not fit."""
    path = stored(tmp_path, SEVERAL)
    (tmp_path / "last.bin").write_bytes(bytes(8))
    with pytest.raises(ModelError, match=r"'w3' .* ends before byte 1,280"):
        read(path)
    (tmp_path / "last.bin").unlink()
    with pytest.raises(ModelError, match="there is no file"):
        read(path)


def test_reading_takes_no_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups and their costs are known before any large weight is read."""
    source = stored(tmp_path, ONE_FILE)
    monkeypatch.setattr("onnxprune.reading.observing.KEPT_ELEMENTS", 16)
    monkeypatch.setattr("onnxprune.coupling.types.SHARED_ELEMENTS", 16)
    taken: list[int] = []
    whole_array = numbers.Stored.array
    monkeypatch.setattr(
        numbers.Stored, "array", lambda self, kind, shape: taken.append(self.length) or whole_array(self, kind, shape)
    )
    couplings = onnxprune.couple(read(source))
    assert {group.name for group in couplings.groups} == {"a", "c"}
    assert max(taken, default=0) <= 64


@pytest.mark.parametrize("places", [ONE_FILE, SEVERAL, {}], ids=["one file", "several", "inside"])
def test_a_model_that_cannot_be_held_is_pruned_in_parts(
    tmp_path: Path, places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pruned, proven and written as any other, with the same numbers."""
    (tmp_path / "out").mkdir()
    source, expected = stored(tmp_path, places), pruned(build(TEXT))
    monkeypatch.setattr(numbers, "LARGEST_WHOLE", 0)
    monkeypatch.setattr(parts, "PART_BYTES", 0)
    monkeypatch.setattr(parts, "FED_ELEMENTS", 16)
    result = pruned(source)
    assert result.report.verdict.passed
    assert result.report.latency is None
    assert any("part by part" in note for note in result.report.notes)
    result.save(tmp_path / "out" / "small.onnx")
    assert same_numbers(onnx.load(tmp_path / "out" / "small.onnx"), expected.model)
    again = onnxprune.apply(source, result.plan)
    again.save(tmp_path / "out" / "again.onnx")
    assert same_numbers(onnx.load(tmp_path / "out" / "again.onnx"), expected.model)


PEAK = """
import resource, sys
import onnxprune
from fixtures.make.large_decoder import Decoder, write_decoder
from onnxprune.reading import numbers, parts
numbers.LARGEST_WHOLE, parts.PART_BYTES = 0, 2**23
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = onnxprune.prune(sys.argv[1], ratio=0.3, criterion="magnitude")
result.save(sys.argv[2])
assert result.report.verdict.passed and result.plan.removed
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.slow
def test_a_large_model_takes_little_memory(tmp_path: Path) -> None:
    """Beyond what the program itself takes, a decoder of 200 MB is pruned and proven in less than half of that."""
    source, target = tmp_path / "decoder.onnx", tmp_path / "pruned.onnx"
    write_decoder(source, Decoder(layers=32, hidden=512, heads=8, inner=1536, vocabulary=1000))
    size = (tmp_path / "decoder.onnx.data").stat().st_size
    run = subprocess.run([sys.executable, "-c", PEAK, source, target], capture_output=True, text=True, check=True)
    assert size > 200e6
    assert int(run.stdout) < size / 2
    onnx.checker.check_model(str(target), full_check=True)


def test_models_that_cannot_be_held_are_compared_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Part by part, with the figures that whole models give, but for their latency."""
    source, target = stored(tmp_path, ONE_FILE), tmp_path / "small.onnx"
    result = pruned(source)
    result.save(target)
    whole = compare(source, target)
    monkeypatch.setattr(numbers, "LARGEST_WHOLE", 0)
    monkeypatch.setattr(parts, "PART_BYTES", 0)
    in_parts = compare(source, target)
    assert in_parts.latency is None
    assert in_parts.distance == pytest.approx(whole.distance)
    assert (in_parts.original.bytes, in_parts.pruned.params) == (whole.original.bytes, whole.pruned.params)
    assert onnxprune.verify(onnxprune.couple(read(source)), result.plan, load(target).model).passed


def test_what_parts_cannot_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any work, with what can be done instead."""
    source = stored(tmp_path, ONE_FILE)
    monkeypatch.setattr(numbers, "LARGEST_WHOLE", 0)
    samples = np.ones((4, 3, 4, 4), np.float32)
    for data, options in ((None, {}), (samples, {"criterion": "magnitude"}), (samples, {"quantize": "int8"})):
        with pytest.raises(UsageError, match=r"run part by part\. Take --criterion magnitude"):
            onnxprune.prune(source, data, ratio=0.5, **options)
    result = onnxprune.prune(source, samples, macs="60%", criterion="magnitude", compensate=False)
    assert result.report.verdict.passed
