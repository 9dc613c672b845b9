"""
Channel sensitivities by finite differences of the loss in the gates.

With a gate vector of ones the loss is L(1); closing channel c by δ gives the score (L(1 - δ e_c) - L(1)) / δ. δ = 1 is
the exact loss change of removing the channel; a small δ is taken on both sides, (L(1 - δ e_c) - L(1 + δ e_c)) / 2δ,
which is minus the derivative dL/dx of the textbook: what the loss would grow by, to first order, were it closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from onnxprune.coupling.couple import Couplings, Group
from onnxprune.errors import DataError, UsageError
from onnxprune.probing.calibration import Calibration, Data, gather
from onnxprune.probing.gates import Gate, gates_of, probing_model
from onnxprune.probing.losses import Loss, LossName, UserLoss, prepare_loss
from onnxprune.probing.sensitivities import Sensitivities, sensitivities_of
from onnxprune.reading.observing import session_for
from onnxprune.rules.axes import Dim, leaves

ROWS_A_RUN = 64
"""Probes times samples in one run: more buys nothing on a CPU."""

Progress = Callable[[str, int, int], None]
"""Told what is going on, how much is done and how much there is."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Gate numbers for the Dims that are not all ones."""

    closed: dict[Dim, np.ndarray]


def probe(
    couplings: Couplings,
    data: Data | Calibration | None = None,
    loss: LossName | UserLoss | Loss = "distance",
    *,
    groups: Sequence[Group] | None = None,
    delta: float = 1.0,
    threads: int = 0,
    progress: Progress | None = None,
) -> Sensitivities:
    """
    A score and its standard error for every channel of the groups, measured by closing gates.

    Args:
        couplings: of the model.
        data: the samples the loss is averaged over, in any form that `prune` takes; all of them are used.
        loss: as `prune` takes it.
        groups: which groups to measure; all exact ones by default.
        delta: how far a gate closes; 1 is removal, a small number gives derivatives by central differences.
        threads: of ONNX Runtime in one run; 0 leaves the choice to it.
        progress: called as probing goes on.

    Raises:
        UsageError: delta is not in (0, 1], or the derivative of a distance to the model itself is asked for.
    """
    check_delta(delta)
    calibration = gather(couplings.graph, data)
    if not isinstance(loss, Loss):
        loss = prepare_loss(couplings.graph, calibration, loss, threads=threads)
    if delta < 1 and loss.is_distance:
        raise UsageError(
            f"The derivative of {loss.name} to the model's own outputs is zero at the model itself. "
            "Give labels and --loss cross-entropy for derivatives, or keep --delta 1."
        )
    chosen = [group for group in couplings.groups if group.exact] if groups is None else list(groups)
    runner = Runner(couplings, calibration, loss, [dim for group in chosen for dim in group.dims], threads)
    whole = runner.losses([Probe({})])[0]
    check_finite(whole, loss)
    scores, errors = {}, {}
    done, total = 0, sum(group.size for group in chosen)
    for group in chosen:
        changes = []
        for probes in in_portions(channel_probes(group, delta), 32):
            lost = runner.losses(probes)
            changes.append(differences(lost, whole, delta))
            done += len(changes[-1])
            if progress:
                progress(group.name, done, total)
        every = np.concatenate(changes)
        scores[group.name] = every.mean(1)
        errors[group.name] = every.std(1, ddof=1) / np.sqrt(every.shape[1]) if every.shape[1] > 1 else 0 * every[:, 0]
    return sensitivities_of(
        couplings,
        scores,
        errors,
        criterion="sensitivity",
        loss=loss.name,
        delta=delta,
        samples=len(calibration),
    )


def check_delta(delta: float) -> None:
    """Refuse a gate that does not close, or that closes by more than all."""
    if not 0 < delta <= 1:
        raise UsageError(f"Expected a delta above 0 and up to 1, found {delta}.")


def check_finite(losses: np.ndarray, loss: Loss) -> None:
    """Refuse to measure changes of a loss that is no number to begin with."""
    bad = np.flatnonzero(~np.isfinite(losses))
    if len(bad):
        raise DataError(
            f"Expected finite losses ({loss.name}) of the unpruned model, found NaN or infinity for {len(bad)} of "
            f"{len(losses)} samples, sample {bad[0]} first. Look at the model's outputs there, or leave them out."
        )


def loss_of(
    couplings: Couplings, calibration: Calibration, loss: Loss, *, model: ModelProto | None = None, threads: int = 0
) -> float:
    """The mean loss of the model, or of another one with the same interface, over the samples."""
    return float(Runner(couplings, calibration, loss, (), threads, model).losses([Probe({})]).mean())


def channel_probes(group: Group, delta: float) -> Iterator[Probe]:
    """Each channel closed by delta; for small deltas also opened by it, right behind."""
    for channel in range(group.size):
        for gate in (1 - delta,) if delta == 1 else (1 - delta, 1 + delta):
            values = np.ones(group.size)
            values[channel] = gate
            parts = np.split(values, np.cumsum([dim.size for dim in group.dims])[:-1])
            yield Probe(dict(zip(group.dims, parts, strict=True)))


def in_portions(probes: Iterator[Probe], size: int) -> Iterator[list[Probe]]:
    """Lists of up to `size` probes."""
    portion: list[Probe] = []
    for one in probes:
        portion.append(one)
        if len(portion) == size:
            yield portion
            portion = []
    if portion:
        yield portion


def differences(lost: np.ndarray, whole: np.ndarray, delta: float) -> np.ndarray:
    """Scores `[channels, samples]` from losses `[probes, samples]`."""
    if delta == 1:
        return np.asarray(lost - whole)
    return np.asarray((lost[0::2] - lost[1::2]) / (2 * delta))


class Runner:
    """Runs the probing model: losses of probes on all samples."""

    def __init__(
        self,
        couplings: Couplings,
        calibration: Calibration,
        loss: Loss,
        dims: Sequence[Dim],
        threads: int,
        model: ModelProto | None = None,
    ) -> None:
        model = model or couplings.graph.model
        self.calibration = calibration
        self.loss = loss
        self.gates = gates_of(couplings, dims)
        self.session = session_for(probing_model(model, self.gates, loss), threads=threads)
        self.inputs = {entry.name for entry in self.session.get_inputs()}
        self._open = {gate.name: gate.feed(np.ones((1, gate.type.size))) for gate in self.gates}
        self.many_a_run = (
            bool(self.gates)
            and calibration.batch is None
            and not calibration.stacked
            and all(gate.batch_axis is not None for gate in self.gates)
            and batch_first(couplings, loss)
            and self._samples_are_independent()
        )

    def losses(self, probes: Sequence[Probe]) -> np.ndarray:
        """Loss `[probes, samples]`."""
        if self.many_a_run:
            return self._many_probes_a_run(probes)
        return np.stack([self._one_probe(probe) for probe in probes])

    def _many_probes_a_run(self, probes: Sequence[Probe]) -> np.ndarray:
        samples = len(self.calibration)
        gates = {gate.name: np.stack([gate.values(p.closed) for p in probes]) for gate in self._touched(probes)}
        found = np.empty(len(probes) * samples)
        for start in range(0, len(found), ROWS_A_RUN):
            rows = np.arange(start, min(start + ROWS_A_RUN, len(found)))
            which, sample = rows // samples, rows % samples
            feeds = {
                gate.name: gate.feed(self._shared(gates[gate.name][which])) for gate in self.gates if gate.name in gates
            }
            found[rows] = self._run(sample, feeds, np.flatnonzero(np.diff(which)) + 1)
        return found.reshape(len(probes), samples)

    @staticmethod
    def _shared(rows: np.ndarray) -> np.ndarray:
        """One row when all are the same."""
        return rows[:1] if (rows == rows[0]).all() else rows

    def _one_probe(self, probe: Probe) -> np.ndarray:
        feeds = {gate.name: gate.feed(gate.values(probe.closed)[None]) for gate in self._touched([probe])}
        return np.concatenate([self._run(samples, feeds) for samples in self.calibration.batches(ROWS_A_RUN)])

    def _samples_are_independent(self) -> bool:
        """Is a sample's loss the same wherever it stands in a run? It is not where the first axis is time."""
        samples = np.arange(min(len(self.calibration), ROWS_A_RUN))
        forwards, backwards = self._run(samples, {}), self._run(samples[::-1], {})[::-1]
        return np.allclose(forwards, backwards, rtol=1e-3, atol=1e-5)

    def _touched(self, probes: Sequence[Probe]) -> list[Gate]:
        """The gates that some probe closes in part."""
        dims = {dim for probe in probes for dim in probe.closed}
        return [gate for gate in self.gates if not dims.isdisjoint(leaves(gate.type))]

    def _run(
        self, samples: np.ndarray, gates: dict[str, np.ndarray], cuts: Sequence[int] | np.ndarray = ()
    ) -> np.ndarray:
        """Losses `[samples]` of one run; `cuts` says where in it the next probe begins."""
        rows = self.calibration.filled(samples)
        feeds = self._open | gates | self.calibration.at(rows)
        for name, values in self.loss.targets.items():
            if f"onnxprune.{name}" in self.inputs:
                target = values[rows[0]] if self.loss.stacked else values[rows]
                feeds[f"onnxprune.{name}"] = np.asarray(target, np.float32)
        found = self.session.run(None, {name: value for name, value in feeds.items() if name in self.inputs})
        if self.loss.user is None:
            return np.asarray(found[0][: len(samples)], np.float64)
        outputs = [value[None] if self.loss.stacked else value for value in found]
        parts = np.split(np.arange(len(samples)), cuts)
        return np.concatenate([self._user_losses(samples[part], [each[part] for each in outputs]) for part in parts])

    def _user_losses(self, samples: np.ndarray, found: Sequence[np.ndarray]) -> np.ndarray:
        """What the user's function says of these samples of one probe; a single number counts for each of them."""
        assert self.loss.user is not None
        targets = {name: values[samples] for name, values in self.loss.targets.items()}
        labels = None if self.calibration.labels is None else self.calibration.labels[samples]
        said = np.asarray(self.loss.user(dict(zip(self.loss.outputs, found, strict=True)), targets, labels), np.float64)
        if said.size != 1 and said.shape != samples.shape:
            raise UsageError(
                f"Expected of the loss one number for each of {len(samples)} samples, or one in all, "
                f"found an array of shape {list(said.shape)}."
            )
        return np.broadcast_to(said.ravel(), samples.shape)


def batch_first(couplings: Couplings, loss: Loss) -> bool:
    """Is the first axis of every output that the loss reads just the samples?"""
    for name in loss.outputs:
        tensor = couplings.typing.tensors.get(name)
        if tensor is None or not tensor.axes:
            return False
        first = couplings.typing.solver.resolve(tensor.axes[0])
        if not (isinstance(first, Dim) and first in couplings.batch):
            return False
    return True
