"""Every mistake gets one clear message and the right exit code, and loses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import pytest

from onnxprune import files
from tests.bundled import digits, model_path
from tests.cli.conftest import Run
from tests.models import build

Refused = Callable[..., str]

COMMANDS = {
    "prune": "{model} out.onnx",
    "apply": "apply {model} out.onnx --plan plan.json",
    "inspect": "inspect {model}",
    "sensitivity": "sensitivity {model} -o scores.json",
    "verify": "verify {model} small.onnx --plan plan.json",
    "verify pruned": "verify model.onnx {model} --plan plan.json",
    "compare": "compare {model} small.onnx",
    "compare pruned": "compare model.onnx {model}",
}
"""Commands that read a model."""


@pytest.fixture
def planned(done: Run) -> None:
    """`small.onnx` and its `plan.json`."""
    done("model.onnx small.onnx --plan plan.json --criterion magnitude --quiet")


# The model that is read


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_model_is_refused(command: str, refused: Refused, planned: None) -> None:
    """Whatever is to be done with it."""
    message = refused(COMMANDS[command].format(model="modle.onnx"), code=1)
    assert message == "Expected an ONNX file at 'modle.onnx', found nothing there. Check the path."


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_is_no_model_is_refused(command: str, refused: Refused, planned: None) -> None:
    """Whatever is to be done with it."""
    Path("text.onnx").write_text("hello")
    assert refused(COMMANDS[command].format(model="text.onnx"), code=1) == (
        "Expected an ONNX model in 'text.onnx', found something else or only a part of one. Export the model again."
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda good: good[:5000], "found something else or only a part of one"),
        (lambda good: good[: len(good) // 2], "found something else or only a part of one"),
        (lambda good: good[:-1], "found something else or only a part of one"),
        (lambda good: b"", "found no nodes in it"),
        (lambda good: b"\x08\x08", "found no nodes in it"),
        (lambda good: bytes(range(256)), "found something else"),
        (lambda good: b"PK\x03\x04" + bytes(100), "found something else"),
    ],
)
def test_a_broken_model_is_refused(content: Callable[[bytes], bytes], message: str, refused: Refused) -> None:
    """Truncated, empty, or not ONNX at all."""
    Path("broken.onnx").write_bytes(content(Path("model.onnx").read_bytes()))
    found = refused("broken.onnx out.onnx", code=1)
    assert found.startswith("Expected an ONNX model in 'broken.onnx', ")
    assert message in found
    assert found.endswith("Export the model again.")


def test_a_folder_is_no_model(refused: Refused) -> None:
    """The system's reason is passed on."""
    Path("folder").mkdir()
    message = refused("folder out.onnx", code=1)
    assert message == "Expected a readable ONNX file at 'folder': Is a directory. Check the path."


def test_an_unreadable_model_is_refused(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's reason is passed on."""

    def denied(path: Path) -> bytes:  # whoever runs the tests may be allowed to read everything
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    message = refused("model.onnx out.onnx", code=1)
    assert message == "Expected a readable ONNX file at 'model.onnx': Permission denied. Check the path."


def test_a_graph_that_does_not_run_is_refused(refused: Refused) -> None:
    """ONNX Runtime's reason is passed on."""
    model = onnx.load("model.onnx")
    model.graph.node[2].op_type = "Gremlin"
    onnx.save(model, "gremlin.onnx")
    message = refused("gremlin.onnx out.onnx", code=1)
    assert "The model does not run in ONNX Runtime" in message
    assert "Gremlin" in message


def test_weights_that_are_missing_beside_the_model_are_refused(refused: Refused) -> None:
    """The message names the weight and the model."""
    onnx.save_model(onnx.load("model.onnx"), "outside.onnx", save_as_external_data=True, location="w", size_threshold=0)
    Path("w").unlink()
    message = refused("outside.onnx out.onnx", code=1)
    assert "in a file beside 'outside.onnx'" in message
    assert message.endswith("Keep the files together.")


def test_a_model_without_prunable_groups_is_refused_with_the_reasons(refused: Refused) -> None:
    """Each weight's reason is told; also when scores are asked for."""
    onnx.save(build("a = Gemm(x[N,4], w1[4,8])\n y = Softmax(a)"), "single.onnx")
    for line in ("single.onnx out.onnx", "sensitivity single.onnx -o scores.json"):
        message = refused(line, code=1)
        assert message.startswith("Expected a group of channels to prune, found none:")
        assert "  - 'w1': it is an axis of the model's input 'x'" in message
        assert "  - 'w1': Softmax shares one out over it" in message


# What is written


@pytest.mark.parametrize(
    "out", ["model.onnx", "./model.onnx", "folder/../model.onnx", "link.onnx", "hard.onnx", "{here}/model.onnx"]
)
@pytest.mark.parametrize(
    "line", ["model.onnx {out}", "apply model.onnx {out} --plan plan.json", "sensitivity model.onnx -o {out}"]
)
def test_the_model_is_never_written_over(line: str, out: str, refused: Refused, planned: None, place: Path) -> None:
    """By no name that leads to it."""
    (place / "folder").mkdir()
    (place / "link.onnx").symlink_to("model.onnx")
    (place / "hard.onnx").hardlink_to("model.onnx")
    out = out.format(here=place)
    message = refused(line.format(out=out), code=2)
    assert message == f"The output {str(Path(out))!r} is an input, and inputs are never touched. Name another file."


@pytest.mark.parametrize(
    "line",
    [
        "model.onnx data.npz --data data.npz",
        "model.onnx out.onnx --data data.npz --plan data.npz",
        "model.onnx out.onnx --data data.npz --json ./data.npz",
        "model.onnx out.onnx --scores plan.json --json plan.json",
        "model.onnx out.onnx --plan model.onnx",
        "model.onnx out.onnx --json model.onnx",
        "apply model.onnx plan.json --plan plan.json",
        "apply model.onnx out.onnx --plan plan.json --json plan.json",
        "sensitivity model.onnx --data data.npz -o data.npz",
    ],
)
def test_no_other_input_is_written_over(line: str, refused: Refused, planned: None) -> None:
    """Data, scores and plans that are read are as safe as the model."""
    assert refused(line, code=2).endswith("is an input, and inputs are never touched. Name another file.")


@pytest.mark.parametrize("files", ["--plan out.onnx", "--json ./out.onnx", "--plan a.json --json a.json"])
def test_two_outputs_need_two_names(files: str, refused: Refused) -> None:
    """One would write over the other."""
    assert refused(f"model.onnx out.onnx {files}", code=2).startswith("Expected different files to write to, found ")


@pytest.mark.parametrize("option", ["", "--plan", "--json"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/out", "Cannot write 'missing/out': there is no folder 'missing'. Make it first."),
        ("folder", "Expected a file name to write to, found the folder 'folder'. Name a file in it."),
        (".", "Expected a file name to write to, found the folder '.'. Name a file in it."),
        ("data.npz/out", "Cannot write 'data.npz/out': there is no folder 'data.npz'. Make it first."),
        ("/proc/out", "Cannot write '/proc/out': No such file or directory. Choose another place."),
        ("x" * 300, f"Cannot write '{'x' * 300}': File name too long. Choose another place."),
    ],
)
def test_places_that_cannot_be_written_are_refused_at_once(
    name: str, message: str, option: str, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any work, and for every file."""
    monkeypatch.setattr("onnxprune.cli.commands.prune", lambda *a, **k: pytest.fail("work was done"))
    Path("folder").mkdir()
    line = f"model.onnx out.onnx {option} {name}" if option else f"model.onnx {name}"
    assert refused(line, code=2) == message


def test_an_unwritable_folder_is_refused(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's reason is passed on."""

    def denied(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", denied)
    message = refused("model.onnx out.onnx", code=2)
    assert message == "Cannot write 'out.onnx': Permission denied. Choose another place."


def test_a_disk_that_fills_up_leaves_nothing_behind(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary file goes as well."""

    def full(content: bytes, file: BinaryIO) -> None:
        file.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnxprune.files.put", full)
    message = refused("model.onnx out.onnx --criterion magnitude --quiet", code=1)
    assert message == "Cannot write 'out.onnx': No space left on device. Choose another place."


def test_a_model_that_fails_its_own_check_is_not_written(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written, and the failing check is told."""
    whole = onnx.load("model.onnx")
    monkeypatch.setattr("onnxprune.planning.rewrite_kept", lambda couplings, kept: whole)
    message = refused("model.onnx out.onnx --data data.npz --plan plan.json --macs 50% --quiet", code=1)
    assert message.startswith("The pruned model failed its own check, so nothing was written:\n  - equals the zeroed")
    assert "Leave out the groups at fault with --skip" in message


# Data


DATA: dict[str, tuple[Callable[[np.ndarray, np.ndarray], dict[str, Any]], str]] = {
    "name": (lambda x, labels: {"image": x}, "input 'x': no array of that name"),
    "shape": (lambda x, labels: {"x": x[:, :, :20]}, "expected shape [samples, 28, 28], found [64, 28, 20]"),
    "dtype": (lambda x, labels: {"x": x.astype(np.float64)}, "expected dtype float32, found float64"),
    "nan": (lambda x, labels: {"x": np.where(x == 0, np.nan, x)}, "input 'x': NaN or infinite in"),
    "zero samples": (lambda x, labels: {"x": x[:0], "labels": labels[:0]}, "input 'x': no samples"),
    "nothing": (lambda x, labels: {}, "input 'x': no array of that name"),
    "label count": (lambda x, labels: {"x": x, "labels": labels[:-1]}, "labels 'labels': 63 of them for 64 samples"),
    "label range": (lambda x, labels: {"x": x, "labels": labels + 1}, "Expected labels from 0 to 9 for output"),
    "negative label": (lambda x, labels: {"x": x, "labels": -labels}, "found -9 to 0. Mend the labels."),
    "pickle": (lambda x, labels: {"x": np.array([{}, {}])}, "Object arrays cannot be loaded"),
}


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize(
    "line", ["model.onnx out.onnx", "sensitivity model.onnx -o s.json --loss auto", "compare model.onnx model.onnx"]
)
def test_data_that_do_not_fit_are_refused(data: str, line: str, refused: Refused) -> None:
    """By every command that measures."""
    make, message = DATA[data]
    arrays = digits("mlp_torch", 64)
    np.savez("bad.npz", **make(arrays["x"], arrays["labels"]))
    assert message in refused(f"{line} --data bad.npz", code=1)


def test_all_mismatches_are_told_at_once(refused: Refused) -> None:
    """A line each."""
    np.savez("bad.npz", x=np.full((9, 28, 27), np.nan), ids=np.arange(9), labels=np.arange(8))
    assert refused("model.onnx out.onnx --data bad.npz", code=1) == (
        "Calibration data do not fit the model, which takes x: float32 [N, 28, 28]:\n"
        "  - array 'ids': the model has no such input\n"
        "  - input 'x': expected dtype float32, found float64; convert with .astype\n"
        "  - input 'x': expected shape [samples, 28, 28], found [9, 28, 27]\n"
        "  - input 'x': NaN or infinite in 6,804 of 6,804 places\n"
        "  - labels 'labels': 8 of them for 9 samples\n"
        "Mend the data."
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.npz", "Expected an .npz archive of arrays at 'none.npz': No such file or directory. Check the path."),
        ("folder", "Expected an .npz archive of arrays at 'folder': Is a directory. Check the path."),
        ("model.onnx", "found something else or only a part of one. Write one with numpy.savez(FILE, **arrays)"),
        ("part.npz", "found something else or only a part of one. Write one with numpy.savez(FILE, **arrays)"),
        ("single.npy", "found something else or only a part of one. Write one with numpy.savez(FILE, **arrays)"),
    ],
)
def test_files_that_are_no_data_are_refused(name: str, message: str, refused: Refused) -> None:
    """What was expected, what was found, how to make it."""
    Path("folder").mkdir()
    Path("part.npz").write_bytes(Path("data.npz").read_bytes()[:3000])
    np.save("single.npy", np.zeros(3))
    assert message in refused(f"model.onnx out.onnx --data {name}", code=1)


def test_labels_that_are_named_must_be_there(refused: Refused) -> None:
    """A misspelt name is no wish for none."""
    message = refused("model.onnx out.onnx --data data.npz --labels digits", code=1)
    assert "  - labels 'digits': no array of that name" in message
    assert "  - array 'labels': the model has no such input" in message


@pytest.mark.parametrize("labels", [None, np.zeros(64, np.float32), np.zeros((64, 10), np.int64)])
def test_cross_entropy_needs_labels(labels: np.ndarray | None, refused: Refused) -> None:
    """None, floats, or one-hot rows will not do, and the message says what will."""
    arrays = {"x": digits("mlp_torch", 64)["x"]} | ({} if labels is None else {"labels": labels})
    np.savez("bad.npz", **arrays)
    message = refused("model.onnx out.onnx --data bad.npz --loss cross-entropy", code=2)
    assert message.startswith("Cross-entropy needs ")
    assert "labels" in message
    assert message.endswith(("or name it: --labels.", "or measure with --loss distance."))


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--delta 0", "Expected a delta above 0 and up to 1, found 0.0."),
        ("--delta 2", "Expected a delta above 0 and up to 1, found 2.0."),
        ("--delta nan", "Expected a delta above 0 and up to 1, found nan."),
        ("--delta 0.1", "Give labels and --loss cross-entropy for derivatives, ask for"),
        ("--delta x", "Invalid value for '--delta': 'x' is not a valid float."),
        ("--ratio 1.5", "Expected a ratio of at least 0 and below 1, found 1.5."),
        ("--ratio -0.1", "Expected a ratio of at least 0 and below 1, found -0.1."),
        ("--ratio 30%", "Invalid value for '--ratio': '30%' is not a valid float."),
        ("--threshold low", "Expected a threshold of median, mean or a number, found 'low'."),
        ("--threshold nan", "Expected a threshold of median, mean or a number, found 'nan'."),
        ("--macs half", "Expected for macs a share up to 100% such as 50% or 0.5, or an amount such as 200K,"),
        ("--macs 0", "Expected for macs a share up to 100% such as 50% or 0.5, or an amount such as 200K,"),
        ("--params -5", "Expected for params a share up to 100% such as 50% or 0.5, or an amount such as 200K,"),
        ("--size 150%", "Expected for size a share up to 100% such as 50% or 0.5, or an amount such as 200K,"),
        ("--probe-samples 0", "Expected for --probe-samples a number of 1 or more, auto or all; found '0'."),
        ("--probe-samples many", "Expected for --probe-samples a number of 1 or more, auto or all; found 'many'."),
        ("--probe-samples -3", "Expected for --probe-samples a number of 1 or more, auto or all; found '-3'."),
        ("--min-channels 0", "Expected min-channels of 1 or more, found 0."),
        ("--multiple-of 0", "Invalid value for '--multiple-of': Expected a number of 1 or more, or auto; found '0'."),
        ("--multiple-of 1.5", "Expected a number of 1 or more, or auto; found '1.5'."),
        ("--latency fast", "Expected for latency a share up to 100% such as 50% or 0.5, or milliseconds such as 3.5ms"),
        ("--latency 5M", "or milliseconds such as 3.5ms, found '5M'."),
        ("--provider MadeUpProvider", "Expected a provider that this ONNX Runtime"),
        ("--batch 0", "Invalid value for '--batch': 0 is not in the range x>=1."),
        ("--seed -1", "Invalid value for '--seed': -1 is not in the range x>=0."),
        ("--threads -1", "Invalid value for '--threads': -1 is not in the range x>=0."),
        ("--criterion taste", "'taste' is not one of 'auto', 'sensitivity', 'obs', 'magnitude', 'activation', "),
        ("--loss hinge", "'hinge' is not one of 'distance', 'auto', 'cross-entropy', 'mse', 'kl'."),
        ("--only layer9", "--only 'layer9' matches no group and no layer; there are groups '/hidden/Gemm'."),
        ("--skip *conv*", "--skip '*conv*' matches no group and no layer; there are groups '/hidden/Gemm'."),
        ("--mac 50%", "'--macs'"),
        ("--macs", "Option '--macs' requires an argument."),
        ("third.onnx", "Got unexpected extra argument (third.onnx)"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: str, message: str, refused: Refused) -> None:
    """Bad usage is exit code 2."""
    assert message in refused(f"model.onnx out.onnx --data data.npz {options}", code=2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("model.onnx", "Missing argument 'OUT'."),
        ("inspct model.onnx", "Expected an ONNX file at 'inspct', found nothing there."),
        ("apply model.onnx out.onnx", "Missing option '--plan'."),
        ("verify model.onnx", "Missing argument 'PRUNED'."),
        ("sensitivity model.onnx", "Missing option '--output'"),
        ("sensitivity model.onnx -o s.json --delta 0", "Expected a delta above 0 and up to 1, found 0.0."),
        ("sensitivity model.onnx -o s.json --probe-samples 0", "Expected for --probe-samples a number of 1 or more"),
        ("sensitivity model.onnx -o missing/s.json", "there is no folder 'missing'"),
        ("sensitivity model.onnx -o s.json --only layer9", "--only 'layer9' matches no group"),
    ],
)
def test_words_that_are_missing_or_wrong_are_refused(line: str, message: str, refused: Refused) -> None:
    """For every command."""
    code = 1 if line.startswith("inspct") else 2
    assert message in refused(line, code=code)


@pytest.mark.parametrize("line", ["model.onnx out.onnx", "sensitivity model.onnx -o scores.json"])
def test_leaving_no_group_is_refused(line: str, refused: Refused) -> None:
    """--only and --skip together may leave nothing."""
    message = refused(f"{line} --only */hidden/* --skip *Gemm", code=1)
    assert message == (
        "Expected a group to prune, found none: --only and --skip leave none of '/hidden/Gemm'. Leave more."
    )


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ("--macs 700", "macs of at most 700 (0.7%), the least reachable is 794 (0.8%)"),
        ("--macs 0.1%", "macs of at most 102 (0.1%), the least reachable is 794 (0.8%)"),
        ("--params 100", "params of at most 100 (0.1%), the least reachable is 805 (0.8%)"),
        ("--size 1K", "size of at most 1,000 (0.2%), the least reachable is 3,941 (1.0%)"),
        ("--macs 50% --min-channels 100", "the least reachable is 79,400 (78.1%), within min-channels 100"),
        (
            "--macs 50% --multiple-of 128",
            "the least reachable is 101,632 (100.0%), within min-channels 1, multiple-of 128",
        ),
    ],
)
def test_an_impossible_target_names_the_least_reachable(options: str, least: str, refused: Refused) -> None:
    """The user knows what to ask for instead."""
    message = refused(f"model.onnx out.onnx --criterion magnitude {options}", code=1)
    assert least in message
    assert message.endswith("Ask for less, or relax the limits, --only or --skip.")


# Plans and scores


@pytest.mark.parametrize(
    "line", ["apply {model} out.onnx --plan plan.json", "verify {model} small.onnx --plan plan.json"]
)
def test_a_plan_for_another_model_is_refused(line: str, refused: Refused, planned: None) -> None:
    """The hashes differ."""
    message = refused(line.format(model=model_path("mlp_keras")), code=1)
    assert message.startswith("Plan does not fit this model: it was made for a file with sha256 ")
    assert message.endswith("Prune the original model, or plan again for this one.")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text[: len(text) // 2], "Invalid JSON: EOF while parsing"),
        (lambda text: "", "Invalid JSON: EOF while parsing"),
        (lambda text: "{}", "Field required"),
        (lambda text: text.replace("onnxprune-plan", "onnxprune-report"), "format: Input should be 'onnxprune-plan'"),
        (
            lambda text: text.replace('"size": 128', '"size": 64'),
            "group '/hidden/Gemm' has 128 channels, the plan says 64",
        ),
    ],
)
@pytest.mark.parametrize("line", ["apply model.onnx out.onnx", "verify model.onnx small.onnx"])
def test_a_broken_plan_is_refused(
    line: str, spoil: Callable[[str], str], message: str, refused: Refused, planned: None
) -> None:
    """The place and the fault are told."""
    Path("broken.json").write_text(spoil(Path("plan.json").read_text()))
    assert message in refused(f"{line} --plan broken.json", code=1)


@pytest.mark.parametrize("line", ["apply model.onnx out.onnx", "verify model.onnx small.onnx"])
def test_a_missing_plan_is_refused(line: str, refused: Refused, planned: None) -> None:
    """Before any work."""
    message = refused(f"{line} --plan none.json", code=1)
    assert message == "Expected an onnxprune plan at 'none.json': No such file or directory. Check the path."


def test_scores_of_another_model_are_refused(refused: Refused, done: Run) -> None:
    """Groups and sizes are held against the model."""
    done("sensitivity", model_path("mlp_keras"), "-o", "scores.json", "--quiet")
    message = refused("model.onnx out.onnx --scores scores.json", code=1)
    assert message.startswith("Scores in 'scores.json' do not fit this model: they give group 'sequential_1")
    assert message.endswith("Run `onnxprune sensitivity` again on this model.")


def test_a_plan_is_no_scores(refused: Refused, planned: None) -> None:
    """The formats are told apart."""
    message = refused("model.onnx out.onnx --scores plan.json", code=1)
    assert message.startswith(
        "Expected onnxprune scores (version 1) in 'plan.json'; format: Input should be 'onnxprune-scores'."
    )
    assert message.endswith("Write one with `onnxprune sensitivity IN -o FILE`.")


def test_scores_of_too_few_groups_are_refused(refused: Refused, done: Run) -> None:
    """A group without scores is named."""
    model = model_path("mlp_sklearn")
    done("sensitivity", model, "-o", "scores.json", "--quiet", "--only", "MatMul")
    message = refused(str(model), "out.onnx", "--scores", "scores.json", code=1)
    assert message == "The scores say nothing about group 'MatMul1'. Measure it, or leave it out with --skip."


def test_models_of_different_kinds_are_not_compared(refused: Refused) -> None:
    """Other inputs or outputs make other models."""
    message = refused("compare", "model.onnx", str(model_path("unet_torch")), code=1)
    assert message.startswith("Expected two models with the same inputs and outputs, found ")
    assert message.endswith("Compare a model with one pruned from it.")


def test_the_report_of_a_run_is_no_plan(refused: Refused, done: Run) -> None:
    """`--json` and `--plan` are easily mixed up."""
    done("model.onnx small.onnx --json report.json --criterion magnitude --quiet")
    assert json.loads(Path("report.json").read_text())["format"] == "onnxprune-report"
    assert "format: Input should be 'onnxprune-plan'" in refused("apply model.onnx out.onnx --plan report.json", code=1)


def test_a_model_with_inexact_groups_alone_asks_for_them(refused: Refused) -> None:
    """The message says why they are left alone, and which option takes them."""
    text = "a = MatMul(x[N,4], w1[4,8])\n b = LayerNormalization(a, scale[8])\n y = MatMul(b, w2[8,3])"
    onnx.save(build(text), "normed.onnx")
    assert refused("normed.onnx out.onnx --ratio 0.5", code=1) == (
        "Expected a group of channels to prune, found none:\n  - 'a': LayerNormalization takes a mean over it\n"
        "  - 'w1': it is an axis of the model's input 'x'\n  - 'w2': it is an axis of the model's output 'y'\n"
        "Prune inexact groups all the same with --inexact: they are held against the model with what goes masked out."
    )
