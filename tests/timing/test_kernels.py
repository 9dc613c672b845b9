"""What ONNX Runtime makes of a model, told by numbers; and what is lost when widths leave its kernels."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.coupling.couple import Couplings, couple
from onnxprune.errors import UsageError
from onnxprune.probing.calibration import gather
from onnxprune.reading.observing import session_for
from onnxprune.reading.read import read
from onnxprune.rewriting.rewrite import rewrite_kept
from onnxprune.rules.axes import Dim
from onnxprune.timing.kernels import numbered, profiled, runs_as
from onnxprune.timing.layers import layers_at, numbers_of
from onnxprune.timing.setting import Setting
from onnxprune.timing.speed import layers_at_fault, lost_kernels, speed_of
from onnxprune.timing.whole import latency, run_at
from tests.bundled import MODELS, bundled, digits
from tests.models import build

ONE = Setting(threads=1)


@pytest.mark.parametrize("name", MODELS)
def test_numbers_for_names_change_nothing(name: str) -> None:
    """The model computes the same but for rounding, and its outputs come in the same order."""
    graph = bundled(name).graph
    feeds = {key: value for key, value in digits(name, 2).items() if key in graph.input_shapes}
    expected = session_for(graph.model).run(None, feeds)
    found = session_for(numbered(graph.model, numbers_of(bundled(name)))).run(None, feeds)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["resnet_torchscript", "vit_dynamo", "gru_torch", "mlp_sklearn"])
def test_nearly_all_time_is_that_of_layers(name: str) -> None:
    """Kernels are told by the numbers of nodes that are there."""
    couplings = bundled(name)
    feeds, _ = run_at(gather(couplings.graph, None), ONE)
    (kernels,) = profiled([numbered(couplings.graph.model, numbers_of(couplings))], [feeds], ONE, seconds=0.1)
    inside = {position for layer in layers_at(couplings, 1).all for position in layer.positions}
    told = sum(kernel.microseconds for kernel in kernels if kernel.number in inside)
    assert told > 0.8 * sum(kernel.microseconds for kernel in kernels)
    assert all(kernel.number is None or kernel.number < len(couplings.graph.main) for kernel in kernels)


def test_what_is_fused_is_told_by_what_it_runs_as() -> None:
    """The activation gives the kernel its number, and the convolution has none of its own."""
    couplings = couple(read(build("a = Conv(x[N,3,6,6], w1[8,3,3,3])\n y = Relu(a)")))
    found = runs_as(numbered(couplings.graph.model, numbers_of(couplings)), ONE)
    assert list(found) == [1]
    assert found[1] != "Relu"


def kept_of(couplings: Couplings, less: int) -> dict[Dim, np.ndarray]:
    """All channels but so many of each group."""
    dims = [dim for group in couplings.groups if group.exact for dim in group.dims if dim.size > 16]
    return {dim: np.arange(dim.size - less) for dim in dims}


def test_widths_off_the_step_lose_their_blocked_kernels() -> None:
    """Each is named with what it ran as; widths on the step lose none."""
    text = """
        a = Conv(x[N,16,12,12], w1[64,16,3,3])
        b = Conv(a, w2[64,64,3,3])
        c = Conv(b, w3[64,64,3,3])
        y = GlobalAveragePool(c)
    """
    couplings = couple(read(build(text)))
    before = runs_as(numbered(couplings.graph.model, numbers_of(couplings)), ONE)
    if before[1] == "Conv":
        pytest.skip("ONNX Runtime has no blocked kernels on this machine")
    assert not list(lost_kernels(couplings, rewrite_kept(couplings, kept_of(couplings, 16)), ONE))
    lost = {one.node: one for one in lost_kernels(couplings, rewrite_kept(couplings, kept_of(couplings, 5)), ONE)}
    assert {"b", "c"} <= lost.keys()
    assert all(lost[name].before.endswith("nchwc.Conv") and lost[name].after == "Conv" for name in ("b", "c"))


def test_layers_at_fault_are_those_that_cost_more_than_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their times before and after, against what is left of their multiplications, the worst first."""
    couplings = bundled("resnet_torchscript")
    layers = layers_at(couplings, 1)
    kept = {dim: np.arange(dim.size // 2) for group in couplings.groups for dim in group.dims if group.exact}
    widths = {dim: len(stay) for dim, stay in kept.items()}
    before = dict.fromkeys(range(len(layers.all)), 1.0)
    after = dict.fromkeys(before, 0.05) | {3: 2.0, 5: 1.5}
    monkeypatch.setattr("onnxprune.timing.speed.times_of_layers", lambda *_: [before, after])
    found = layers_at_fault(couplings, rewrite_kept(couplings, kept), widths, gather(couplings.graph, None), ONE)
    assert [layer.name for layer in found[:2]] == [layers.all[3].name, layers.all[5].name]
    assert found[0].milliseconds == (1.0, 2.0)
    assert found[0].macs[1] < found[0].macs[0]


def test_speed_is_told_for_one_thread_and_for_all() -> None:
    """Whatever setting was asked for."""
    couplings = bundled("mlp_torch")
    (group,) = couplings.groups
    kept = group.per_dim(np.arange(32))
    calibration = gather(couplings.graph, None)
    for threads in (0, 1, 2):
        setting = Setting(threads=threads)
        pruned = rewrite_kept(couplings, kept)
        timed = latency((couplings.graph.model, pruned), calibration, setting)
        assert timed is not None
        found = speed_of(couplings, pruned, {group.dims[0]: 32}, calibration, setting, timed)
        assert (found.one_thread.threads, found.all_threads.threads) == (1, 0)
        assert found.predicted is None


def test_a_batch_is_run_as_asked_for() -> None:
    """Where the model leaves it open."""
    couplings = bundled("mlp_torch")
    timed = latency([couplings.graph.model], gather(couplings.graph, None), Setting(batch=5))
    assert timed is not None
    assert timed.batch == 5


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"provider": "NoProvider"}, "Expected a provider that this ONNX Runtime"),
        ({"batch": 0}, "Expected batch of 1 or more, found 0."),
        ({"threads": -1}, "Expected threads of 0 or more, found -1."),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, object], text: str) -> None:
    """Each in a line."""
    with pytest.raises(UsageError, match=text):
        Setting(**wrong)  # type: ignore[arg-type]


def test_the_model_keeps_its_own_names() -> None:
    """Numbering works on a copy."""
    graph = bundled("mlp_torch").graph
    before = graph.model.SerializeToString()
    numbered(graph.model, numbers_of(bundled("mlp_torch")))
    assert graph.model.SerializeToString() == before
