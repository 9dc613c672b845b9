"""Every command with every option, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import click
import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.cli import main
from onnxprune.probing.sensitivities import Criterion
from onnxprune.reading.read import read
from tests.bundled import MODELS, digits, model_path, twins_later
from tests.cli.conftest import Run


def widths(plan: str | Path = "plan.json") -> dict[str, int]:
    """Channels left in each group."""
    return {group["name"]: len(group["kept"]) for group in json.loads(Path(plan).read_text())["groups"]}


def report() -> dict:
    return json.loads(Path("report.json").read_text())


def hidden(path: str = "out.onnx") -> int:
    """Hidden neurons of the dense network in a file."""
    return next(tensor.dims[0] for tensor in onnx.load(path).graph.initializer if tensor.name == "hidden.weight")


def test_prune_is_the_default_command(done: Run, place: Path) -> None:
    """`onnxprune IN OUT` and `onnxprune prune IN OUT` write the same model."""
    done("model.onnx out.onnx --data data.npz --macs 50%")
    done("prune model.onnx named.onnx --data data.npz --macs 50%")
    assert Path("out.onnx").read_bytes() == Path("named.onnx").read_bytes()


def test_options_may_come_first(done: Run) -> None:
    """The default command needs no file in front."""
    done("--macs 50% --data data.npz model.onnx out.onnx")
    assert hidden() == 64


def test_the_table_shows_before_and_after(done: Run) -> None:
    """Group widths, accuracy, loss, MACs, parameters, bytes and latency, and what was verified."""
    outcome = done("model.onnx out.onnx --data data.npz --macs 50%")
    rows = {line.split("  ")[0].strip(): line for line in outcome.out.splitlines()}
    assert rows["/hidden/Gemm"].split() == ["/hidden/Gemm", "128", "64"]
    assert rows["MACs"].split() == ["MACs", "101,632", "50,816", "50.0%", "left"]
    assert {"accuracy", "loss (cross-entropy)", "parameters", "bytes", "latency, batch 1, all threads"} <= rows.keys()
    assert "Verified on 32 samples: equals the original with the removed slices set to zero" in outcome.out
    assert outcome.out.rstrip().endswith("Written to out.onnx")
    assert outcome.err == ""


def test_without_a_target_it_says_which_one_it_takes(done: Run) -> None:
    """70 % of the MACs, aloud."""
    outcome = done("model.onnx out.onnx --data data.npz --json report.json")
    assert "No target was given: the target is 70% of the MACs (--macs 70%)." in outcome.err
    assert report()["settings"]["macs"] == 0.7
    assert report()["pruned"]["macs"] <= 0.7 * report()["original"]["macs"]


def test_without_data_it_warns_once(done: Run) -> None:
    """Random inputs are no calibration data, and the user hears it."""
    outcome = done("model.onnx out.onnx --macs 50%")
    assert outcome.err.count("No calibration data") == 1
    assert "No calibration data" not in done("model.onnx out.onnx --macs 50% --data data.npz").err


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ("--macs 50%", 64),
        ("--macs 60K", 75),
        ("--params 50%", 63),
        ("--params 0.5", 63),
        ("--params 60K", 75),
        ("--size 50%", 63),
        ("--size 0.2MB", 62),
        ("--ratio 0.25", 96),
        ("--ratio 0", 128),
        ("--threshold median", 64),
        ("--threshold 0", 128),
        ("--threshold 1e9", 1),
        ("--macs 50% --params 30% --size 90%", 38),
        ("--macs 49% --multiple-of 16", 48),
        ("--ratio 0.9 --min-channels 40", 40),
        ("--ratio 0.6 --multiple-of 8", 48),
    ],
)
def test_targets_and_limits_decide_the_width(options: str, left: int, done: Run) -> None:
    """Upper bounds hold, shares go, widths keep to their multiples."""
    done(f"model.onnx out.onnx --criterion magnitude --data data.npz {options}")
    assert hidden() == left


def test_the_bound_on_the_size_holds_for_the_file(done: Run) -> None:
    """`--size` counts the bytes on disk."""
    done("model.onnx out.onnx --criterion random --size 100K")
    assert Path("out.onnx").stat().st_size <= 100_000


@pytest.mark.parametrize("threshold", ["mean", "median"])
def test_a_threshold_compares_with_all_scores(threshold: str, done: Run) -> None:
    """As many channels stay as have a score that reaches θ."""
    done("sensitivity model.onnx --data data.npz -o scores.json --quiet")
    done(f"model.onnx out.onnx --data data.npz --scores scores.json --threshold {threshold}")
    scores = np.abs(json.loads(Path("scores.json").read_text())["groups"][0]["scores"])
    assert hidden() == (scores >= getattr(np, threshold)(scores)).sum()


@pytest.mark.parametrize("loss", ["distance", "auto", "cross-entropy", "mse", "kl"])
def test_every_loss_is_probed(loss: str, done: Run) -> None:
    """The report names the loss that the probes measured."""
    done(f"model.onnx out.onnx --data data.npz --loss {loss} --macs 50% --json report.json")
    assert report()["settings"]["loss"] == {"distance": "kl", "auto": "cross-entropy"}.get(loss, loss)
    assert report()["settings"]["criterion"] == "auto"


@pytest.mark.parametrize("criterion", get_args(Criterion))
def test_every_criterion_prunes(criterion: str, done: Run) -> None:
    """The report names what decided."""
    done(f"model.onnx out.onnx --data data.npz --criterion {criterion} --macs 50% --json report.json")
    assert report()["settings"]["criterion"] == criterion


def test_seeds_decide_what_is_random(done: Run) -> None:
    """The same seed writes the same file, another one another."""
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        done(f"model.onnx {name}.onnx --criterion random --macs 50% --seed {seed}")
    files = [Path(f"{name}.onnx").read_bytes() for name in ("one", "same", "other")]
    assert files[0] == files[1] != files[2]


def test_probes_run_on_as_many_samples_as_asked(done: Run) -> None:
    """A number of the first samples, or all."""
    for asked, used in (("5", 5), ("all", 64), ("1000", 64)):
        done(f"model.onnx out.onnx --data data.npz --macs 50% --probe-samples {asked} --json report.json")
        assert report()["settings"]["probe samples"] == used


def test_small_steps_measure_derivatives(done: Run) -> None:
    """`--delta 0.01` with a loss that has a slope."""
    done("model.onnx out.onnx --data data.npz --loss cross-entropy --delta 0.01 --macs 50% --json report.json")
    assert report()["settings"]["delta"] == 0.01


def test_labels_may_have_another_name(done: Run) -> None:
    """`--labels` names their array."""
    arrays = digits("mlp_torch", 64)
    np.savez("named.npz", x=arrays["x"], digit=arrays["labels"])
    done("model.onnx out.onnx --data named.npz --labels digit --loss cross-entropy --macs 50% --json report.json")
    assert report()["original"]["accuracy"] > 0.9


def test_labels_that_cannot_be_used_are_noted(done: Run) -> None:
    """Labels of another kind are no mistake, but the user hears that they do nothing."""
    arrays = digits("mlp_torch", 64)
    np.savez("one_hot.npz", x=arrays["x"], labels=np.eye(10, dtype=np.float32)[arrays["labels"]])
    outcome = done("model.onnx out.onnx --data one_hot.npz --macs 50%")
    assert "Note: The labels (float32 [64, 10]) are not used" in outcome.err


def test_only_and_skip_choose_groups(done: Run) -> None:
    """Globs on groups and layers; others keep their width."""
    model = str(model_path("resnet_dynamo"))
    done(model, "out.onnx", "--criterion", "magnitude", "--ratio", "0.5", "--plan", "plan.json", "--only", "*Conv_21?")
    assert widths() == full(model) | {"node_Conv_215": 8, "node_Conv_217": 8}
    line = "out.onnx --criterion magnitude --ratio 0.5 --plan plan.json"
    line += " --only *Conv_21? --only *Conv_221 --skip *Conv_215"
    done(model, *line.split())
    assert widths() == full(model) | {"node_Conv_217": 8, "node_Conv_221": 16}


def full(model: str) -> dict[str, int]:
    """The width of every group."""
    return {group.name: group.size for group in onnxprune.couple(onnxprune.read(model)).groups}


def test_threads_and_delta_are_taken(done: Run) -> None:
    """One thread does it, too."""
    done("model.onnx out.onnx --data data.npz --threads 1 --macs 50%")


@pytest.mark.parametrize("flag", ["--quiet", "-q"])
@pytest.mark.parametrize(
    "line",
    [
        "model.onnx out.onnx",
        "apply model.onnx out.onnx --plan plan.json",
        "sensitivity model.onnx -o scores.json",
        "verify model.onnx small.onnx --plan plan.json",
        "compare model.onnx small.onnx",
    ],
)
def test_quiet_prints_nothing(line: str, flag: str, done: Run) -> None:
    """Neither results nor notes nor bars."""
    done("model.onnx small.onnx --plan plan.json --criterion magnitude")
    outcome = done(f"{line} {flag}")
    assert (outcome.out, outcome.err) == ("", "")


@pytest.mark.parametrize("name", twins_later(MODELS, and_also=("gru_torch", "resnet_torchscript", "unet_torch")))
def test_apply_repeats_a_pruning_bit_for_bit(name: str, done: Run) -> None:
    """A plan makes the same file again."""
    np.savez("few.npz", **digits(name, 16))
    data = ("--data", "few.npz")
    done(model_path(name), "out.onnx", *data, "--probe-samples", "2", "--macs", "60%", "--plan", "plan.json")
    done("apply", model_path(name), "again.onnx", *data, "--plan", "plan.json", "--json", "report.json")
    assert Path("again.onnx").read_bytes() == Path("out.onnx").read_bytes()
    assert report()["settings"]["criterion"] == "plan"
    assert all(check["passed"] for check in report()["verdict"]["checks"])


def test_inspect_shows_groups_and_what_is_frozen(done: Run) -> None:
    """Names, channels, shares, slices; and frozen axes with reason and node."""
    outcome = done("inspect model.onnx")
    assert "1 groups in 5 nodes; 101,632 MACs a sample, 101,770 parameters, 407,801 bytes" in outcome.out
    assert "hidden.weight[0], hidden.bias[0] +1" in outcome.out
    assert "it is an axis of the model's input 'x'" in outcome.out
    assert "/softmax/Softmax" in outcome.out


@pytest.mark.parametrize("name", MODELS)
def test_inspect_prints_json(name: str, done: Run) -> None:
    """Everything in the tables, for programs."""
    found = json.loads(done("inspect", model_path(name), "--json").out)
    assert found.keys() == {"macs", "params", "bytes", "nodes", "groups", "frozen"}
    assert found["bytes"] == model_path(name).stat().st_size
    for group in found["groups"]:
        assert group["channels"] > 1
        assert 0 <= group["macs"] <= 1
        assert 0 < group["params"] <= 1
        assert group["exact"] == (group["reason"] == "")
        assert group["slices"]
    assert all(frozen["reason"] for frozen in found["frozen"])


def test_sensitivity_writes_scores_that_prune_alike(done: Run) -> None:
    """Measured once, used again: the same model comes out."""
    outcome = done("sensitivity model.onnx --data data.npz -o scores.json")
    assert "/hidden/Gemm" in outcome.out
    assert "kl, 64 samples, delta 1; written to scores.json" in outcome.out
    done("model.onnx direct.onnx --data data.npz --macs 50% --criterion sensitivity")
    done("model.onnx scored.onnx --data data.npz --macs 50% --scores scores.json")
    assert Path("direct.onnx").read_bytes() == Path("scored.onnx").read_bytes()


def test_sensitivity_takes_the_options_of_probes(done: Run) -> None:
    """Loss, step, samples, groups, labels, seed and threads."""
    line = (
        "--data data.npz --output scores.json --loss cross-entropy --delta 0.01 --probe-samples 9 --threads 1 --seed 3"
    )
    done("sensitivity", model_path("vit_dynamo"), *line.split(), "--only", "node_MatMul_13*", "--skip", "*:1")
    scores = json.loads(Path("scores.json").read_text())
    assert (scores["loss"], scores["delta"], scores["samples"]) == ("cross-entropy", 0.01, 9)
    assert [group["name"] for group in scores["groups"]] == ["node_MatMul_13:2"]


def test_verify_proves_a_pruned_model(done: Run) -> None:
    """A line for each check, as a table or as JSON."""
    done("model.onnx out.onnx --plan plan.json --criterion magnitude --quiet")
    outcome = done("verify model.onnx out.onnx --plan plan.json --data data.npz")
    assert [line.split()[0] for line in outcome.out.splitlines()] == ["ok"] * 6
    found = json.loads(done("verify model.onnx out.onnx --plan plan.json --json").out)
    assert all(check["passed"] for check in found["checks"])


def test_verify_fails_a_model_that_is_another(run: Run, done: Run) -> None:
    """Exit code 1, and the table says which check failed."""
    done("model.onnx out.onnx --plan plan.json --criterion magnitude --quiet")
    outcome = run("verify model.onnx model.onnx --plan plan.json --data data.npz")
    assert outcome.code == 1
    (failed,) = [line for line in outcome.out.splitlines() if line.startswith("FAILED")]
    assert "equals the zeroed original" in failed


def test_verify_fails_a_model_that_does_not_run(run: Run, done: Run) -> None:
    """A broken model is a verdict, not an error."""
    done("model.onnx out.onnx --plan plan.json --criterion magnitude --quiet")
    model = onnx.load("out.onnx")
    model.graph.node[1].op_type = "Gremlin"
    onnx.save(model, "broken.onnx")
    outcome = run("verify model.onnx broken.onnx --plan plan.json --data data.npz")
    assert outcome.code == 1
    assert [line.split()[0] for line in outcome.out.splitlines()].count("FAILED") == 2


def test_compare_measures_both_models(done: Run) -> None:
    """Loss, accuracy, distance, MACs and latency side by side, as a table or as JSON."""
    done("model.onnx out.onnx --data data.npz --macs 50% --quiet")
    table = done("compare model.onnx out.onnx --data data.npz").out
    for row in ("accuracy", "loss (cross-entropy)", "MACs", "parameters", "bytes", "latency", "distance of outputs"):
        assert row in table
    found = json.loads(done("compare model.onnx out.onnx --data data.npz --json --loss mse --threads 1 --seed 1").out)
    assert found["loss_name"] == "mse"
    assert found["original"]["loss"] == pytest.approx(0, abs=1e-6)
    assert found["pruned"]["macs"] / found["original"]["macs"] == pytest.approx(0.5, abs=0.02)
    assert found["samples"] == 64
    assert found["distance"] > 0


def test_a_profile_says_where_the_time_goes(done: Run) -> None:
    """Every layer with its share, MACs and place on the stairs; the multiplications are those of the model."""
    table = done("profile model.onnx --threads 1").out
    assert table.startswith("1 thread, 1 sample, CPUExecutionProvider")
    assert "/hidden/Gemm" in table
    assert "GFLOP/s" in table
    found = json.loads(done("profile model.onnx --batch 4 --json").out)
    assert found["batch"] == 4
    assert found["macs"] == sum(layer["macs"] for layer in found["layers"]) == 4 * 101_632
    hidden_layer = next(layer for layer in found["layers"] if layer["name"] == "/hidden/Gemm")
    assert [(place["group"], place["width"]) for place in hidden_layer["positions"]] == [("/hidden/Gemm", 128)]


def test_two_models_layer_by_layer(done: Run) -> None:
    """The same layers, the smaller one's beside the original's."""
    done("model.onnx out.onnx --data data.npz --macs 50% --quiet")
    assert "MACs left" in done("compare model.onnx out.onnx --layers --data data.npz").out
    found = json.loads(done("compare model.onnx out.onnx --layers --json").out)
    before, after = (profile["layers"] for profile in found["layers"])
    assert [layer["name"] for layer in before] == [layer["name"] for layer in after]
    assert all(one["macs"] >= other["macs"] for one, other in zip(before, after, strict=True))


def test_a_bound_on_the_latency_that_nothing_reaches_is_refused(run: Run) -> None:
    """With what can be reached, in milliseconds."""
    outcome = run("model.onnx out.onnx --data data.npz --latency 0.0001ms --no-compensate")
    assert outcome.code == 1
    assert "Expected latency of at most 0.0001 ms" in outcome.err
    assert "the least reachable is" in outcome.err


def test_compare_finds_a_model_equal_to_itself(done: Run) -> None:
    """No distance, no change."""
    found = json.loads(done("compare model.onnx model.onnx --json").out)
    assert found["distance"] == 0
    assert found["original"] == found["pruned"]


def test_out_may_be_written_again(done: Run, place: Path) -> None:
    """A second run replaces the file, and leaves no other behind."""
    for _ in range(2):
        done("model.onnx out.onnx --criterion magnitude --plan plan.json --json report.json")
    assert {path.name for path in place.iterdir()} == {
        "model.onnx",
        "data.npz",
        "out.onnx",
        "plan.json",
        "report.json",
    }


def test_out_needs_no_extension(done: Run) -> None:
    """A name is a name."""
    done("model.onnx pruned --criterion magnitude")
    onnx.checker.check_model(onnx.load("pruned"), full_check=True)


def test_out_may_be_a_link_to_another_file(done: Run, place: Path) -> None:
    """The file that the link leads to is written, the link stays."""
    (place / "folder").mkdir()
    (place / "link.onnx").symlink_to(place / "folder" / "real.onnx")
    done("model.onnx link.onnx --criterion magnitude")
    assert (place / "link.onnx").is_symlink()
    assert hidden("folder/real.onnx") < 128


def test_out_may_be_a_device(done: Run) -> None:
    """Who wants only the report may throw the model away; the device stays a device."""
    done("model.onnx /dev/null --criterion magnitude --json report.json")
    assert Path("/dev/null").is_char_device()
    assert report()["pruned"]["macs"] < report()["original"]["macs"]


def test_files_get_the_usual_permissions(done: Run, place: Path) -> None:
    """Others may read what is written, as far as the umask says."""
    (place / "new").touch()
    done("model.onnx out.onnx --criterion magnitude")
    assert (place / "out.onnx").stat().st_mode == (place / "new").stat().st_mode


def test_files_with_spaces_and_foreign_letters_are_read_and_written(done: Run, place: Path) -> None:
    """Names are taken as they are."""
    (place / "mein Modell ü.onnx").write_bytes((place / "model.onnx").read_bytes())
    done("mein Modell ü.onnx", "kleines [rot] Modell ß.onnx", "--criterion", "magnitude")
    assert hidden("kleines [rot] Modell ß.onnx") < 128


@pytest.mark.parametrize("flag", ["--help", "-h", ""])
def test_help_shows_everything(flag: str, done: Run) -> None:
    """All commands, and all options of the default command; also without any word."""
    text = done(flag).out
    assert "onnxprune IN OUT [OPTIONS]" in text
    for command in main.commands:
        assert f"  {command} " in text
    for parameter in main.commands["prune"].params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[0] in text
            assert parameter.help


@pytest.mark.parametrize("command", main.commands)
def test_every_command_has_help(command: str, done: Run) -> None:
    """Each option is there, with what it does."""
    text = done(command, "--help").out
    for parameter in main.commands[command].params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[0] in text
            assert parameter.help


def test_the_version_is_told(done: Run) -> None:
    """Name and number."""
    assert done("--version").out == f"onnxprune, version {onnxprune.__version__}\n"


def test_weights_beside_the_model_are_read_from_anywhere(done: Run, place: Path) -> None:
    """External data lie beside the model, whatever the current folder is, and so do those of the pruned models."""
    (place / "folder").mkdir()
    model = onnx.load("model.onnx")
    onnx.save_model(model, "folder/model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    done("folder/model.onnx out.onnx --criterion magnitude --macs 50% --plan plan.json")
    done("model.onnx same.onnx --criterion magnitude --macs 50%")
    done("apply folder/model.onnx again.onnx --plan plan.json")
    for name in ("out.onnx", "again.onnx"):
        found, wanted = (read(path).constants for path in (name, "same.onnx"))
        assert found.keys() == wanted.keys()
        for tensor in wanted:
            np.testing.assert_array_equal(found[tensor].array(), wanted[tensor].array())


STREAM = "node_conv2d"
"""The bundled transformer's residual stream, which its norms take means over."""


def test_an_inexact_group_is_pruned_where_it_is_asked_for(done: Run) -> None:
    """Then it is named, with the reason, and the proof is against what is masked; verify and apply need no option."""
    source = model_path("vit_dynamo")
    prune = ["out.onnx", "--criterion", "magnitude", "--ratio", "0.5", "--plan", "plan.json", "--json", "report.json"]
    done("prune", source, *prune)
    assert widths()[STREAM] == 64
    assert "takes a mean over it" in report()["skipped"][STREAM]
    outcome = done("prune", source, *prune, "--inexact")
    assert widths()[STREAM] == 32
    (group,) = (group for group in report()["groups"] if group["inexact"])
    assert (group["name"], group["after"]) == (STREAM, 32)
    assert report()["skipped"] == {}
    assert "set to zero and left out of means and sums" in outcome.out
    assert f"Note: Inexact groups were pruned, and held against the original with what went masked out: '{STREAM}'" in (
        outcome.err
    )
    assert "equals the masked original" in done("verify", source, "out.onnx", "--plan", "plan.json").out
    done("apply", source, "again.onnx", "--plan", "plan.json")
    assert Path("again.onnx").read_bytes() == Path("out.onnx").read_bytes()


def test_inspect_tells_which_inexact_groups_may_be_asked_for(done: Run) -> None:
    """Those that the masked form proves."""
    found = json.loads(done("inspect", model_path("vit_dynamo"), "--json").out)
    assert {group["name"] for group in found["groups"] if not group["exact"]} == {STREAM}
    assert all(group["proven"] for group in found["groups"])


def test_inexact_groups_are_measured_where_it_is_asked_for(done: Run) -> None:
    """Scores and curves have them with --inexact, and not without."""
    source, few = model_path("vit_dynamo"), ["--data", "data.npz", "--probe-samples", "2", "--only", f"{STREAM}*"]
    scores = done("sensitivity", source, "-o", "scores.json", *few, "--inexact")
    assert STREAM in scores.out
    assert STREAM in done("curves", source, "-o", "curves.json", *few, "--inexact", "--scores", "scores.json").out
