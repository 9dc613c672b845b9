"""Where the graph is cut for a group, and which probes may share a run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from onnxprune.coupling.couple import Couplings
from onnxprune.probing.engine.cutting import Cut, cut_for, keepable
from onnxprune.probing.engine.engine import timed
from onnxprune.probing.gates import gates_of, standings
from onnxprune.probing.losses import outputs_of
from onnxprune.reading.observing import session_for
from onnxprune.rules.axes import Dim, Product, Sum, spread
from tests.bundled import MODELS, bundled
from tests.models import build
from tests.oracle import coupled
from tests.probing.engines import exact
from tests.probing.test_engine import NETWORKS, samples_for
from tests.rewriting.test_random_graphs import QUIETLY, networks


def cut_of(text: str, group: str, *outputs: str, free: tuple[str, ...] = ()) -> tuple[Couplings, Cut]:
    """A group's cut of a model, for a loss that reads these outputs."""
    couplings = coupled(build(text))
    return couplings, cut_for(couplings, couplings.group(group).dims, outputs or ("y",), free=free)


def behind(text: str, group: str, *outputs: str, free: tuple[str, ...] = ()) -> str:
    """What runs for every probe, and of what."""
    couplings, cut = cut_of(text, group, *outputs, free=free)
    runs = " ".join(couplings.graph.nodes[position].outputs[0] for position in cut.behind)
    return f"{runs} of {' '.join(one.name for one in cut.across)}"


MLP = """
    a = MatMul(x[N,5], w1[5,8])
    b = Relu(a)
    c = MatMul(b, w2[8,6])
    d = Relu(c)
    y = MatMul(d, w3[6,3])
"""


def test_a_sink_that_only_sums_does_not_run_again() -> None:
    """Closed channels are taken off what it gave; unless its weights change, or it is not all that reads them."""
    assert behind(MLP, "a") == "d y of b c"
    assert behind(MLP, "a", free=("w2",)) == "c d y of b"
    assert behind(MLP, "c") == " of d y"


def test_what_the_group_does_not_reach_is_kept() -> None:
    """Even when it is an output of the model, or joins what the group reaches."""
    beside = NETWORKS["outputs of one group each"]
    assert behind(beside, "a", "y1", "y2", "y3") == " of b y1 y2 y3"
    joined = NETWORKS["two inputs"].replace(
        "y = Gemm(d, w3[8,3])", "e = Gemm(d, w3[8,3])\n f = Tanh(x2)\n g = Gemm(f, w4[4,3])\n y = Mul(e, g)"
    )
    assert behind(joined, "a") == "y of d e g"


def test_what_the_loss_does_not_read_does_not_run() -> None:
    """Outputs without a loss, and nodes that lead nowhere."""
    assert behind(NETWORKS["outputs of one group each"], "a", "y1") == " of y1"
    assert behind(NETWORKS["a reader that the loss does not see"], "a", "y1") == " of b y1"


def test_shapes_are_computed_again() -> None:
    """What follows from shapes alone counts the rows of the run that it is in."""
    couplings, cut = cut_of(NETWORKS["shape arithmetic"], "a:2")
    assert {one.name for one in cut.across} <= {"x", "b", "c", "d", "e"}
    assert {"s", "n", "t3"} <= {couplings.graph.nodes[position].outputs[0] for position in cut.behind}


def test_constants_are_no_nodes() -> None:
    """A part has the constants it reads, in whatever form the model stores them."""
    couplings, cut = cut_of(NETWORKS["constants in nodes"], "d")
    positions = {*cut.before, *cut.behind}
    assert "Constant" not in {couplings.graph.nodes[position].op_type for position in positions}


def test_a_whole_cut_keeps_only_inputs() -> None:
    """And has every gate in the graph."""
    couplings = coupled(build(NETWORKS["residual stream"]))
    cut = cut_for(couplings, couplings.group("a").dims, ["y"], whole=True)
    assert [one.name for one in cut.across] == ["x"]
    assert len(cut.behind) == len(couplings.graph.nodes)
    assert [gate.tensor for gate in cut.inside] == ["a", "e", "i"]
    assert not cut.before + cut.fed + cut.sinks


@given(st.booleans().flatmap(lambda images: networks(images=images, most=8)))
@settings(max_examples=60, suppress_health_check=QUIETLY)
def test_only_what_must_run_runs_for_a_probe(text: str) -> None:
    """Behind a cut is only what a gate moves or what is not kept; what is kept is never computed on both sides."""
    note(text)
    couplings = coupled(build(text))
    graph, kept = couplings.graph, keepable(couplings)
    for group in exact(couplings):
        cut = cut_for(couplings, group.dims, [port.name for port in graph.outputs])
        changed = {position for gate in cut.fed + cut.inside for position, _ in gate.uses}
        changed_tensors = {sink.output for sink in cut.sinks}
        for position in cut.behind:
            node = graph.nodes[position]
            if position in changed or not changed_tensors.isdisjoint(node.reads):
                changed_tensors.update(node.outputs)
            else:
                assert kept.isdisjoint(node.outputs), node.outputs
        for position in set(cut.before) & set(cut.behind):
            assert kept.isdisjoint(graph.nodes[position].outputs)
        closed = {gate.tensor for gate in cut.fed + cut.inside} | {sink.gate.tensor for sink in cut.sinks}
        assert closed <= {gate.tensor for gate in gates_of(couplings, group.dims)}


APART = {
    "residual stream": True,
    "batch and heads in one axis": True,
    "batch inside of another axis": True,
    "rows by their numbers": True,
    "mask without a batch": True,
    "samples that disturb each other": False,
    "time first, forward": False,
    "time first, reverse": False,
    "batch of 1": False,
    "batch of 4": False,
    "stacked samples": False,
}


@pytest.mark.parametrize("kind", APART)
@pytest.mark.parametrize("count", [2, 3, 10, 32])
def test_samples_that_leave_each_other_alone(kind: str, count: int) -> None:
    """Found out by running them, however few there are."""
    couplings = coupled(build(NETWORKS[kind]))
    calibration = samples_for(couplings, count)
    own = session_for(couplings.graph.model)
    assert timed(own, calibration, outputs_of(own, calibration))[1] == APART[kind]


def test_one_sample_says_nothing_of_others() -> None:
    """Better alone than wrong."""
    couplings = coupled(build(MLP))
    own, calibration = session_for(couplings.graph.model), samples_for(couplings, 1)
    assert not timed(own, calibration, outputs_of(own, calibration))[1]


SHARING = {
    ("residual stream", "a"): True,
    ("residual stream", "b"): True,
    ("batch and heads in one axis", "q:2"): True,
    ("batch on the second axis", "b"): True,
    ("batch inside of another axis", "c"): False,
    ("flattened batch", "a"): True,
    ("LSTM", "a"): True,
    ("LSTM", "c"): False,
    ("mask without a batch", "q"): True,
}


@pytest.mark.parametrize(("kind", "group"), SHARING)
def test_probes_share_runs_where_samples_lie_one_behind_the_other(kind: str, group: str) -> None:
    """In whatever axis, if they are in one piece there; not where a gate sits in a weight, which all rows share."""
    _, cut = cut_of(NETWORKS[kind], group)
    assert cut.shares_runs == SHARING[kind, group]


ONE_PROBE_A_RUN = ("gru_torch", "lstm_keras", "lstm_torch")
"""Their gates sit in weights, which all rows of a run share."""


@pytest.mark.parametrize("name", MODELS)
def test_probes_of_bundled_models_share_runs(name: str) -> None:
    """But for those of recurrent layers."""
    couplings = bundled(name)
    outputs = [port.name for port in couplings.graph.outputs]
    shares = all(cut_for(couplings, group.dims, outputs).shares_runs for group in couplings.groups)
    assert shares == (name not in ONE_PROBE_A_RUN)


def test_a_channel_of_pairs_stands_in_its_row_and_in_its_column() -> None:
    """Closing it closes both, as zeroing does."""
    channel, other = Dim(3), Dim(2)
    axis = Sum((other, Product((channel, other, channel)), channel))
    for closed in range(3):
        keep = np.where(np.arange(3) == closed, 0, 1)
        gate = np.prod([np.where(standing == closed, 0, 1) for standing in standings(axis, channel)], axis=0)
        np.testing.assert_array_equal(
            gate, spread(axis, lambda dim, keep=keep: keep if dim is channel else np.ones(dim.size))
        )
