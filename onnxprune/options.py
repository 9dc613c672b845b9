"""What a user may ask of a pruning, with the defaults; what each means is said by `prune`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Literal

import numpy as np

from onnxprune.choosing.choose import AllocationName
from onnxprune.choosing.targets import Amount, Bound, Limits, Targets
from onnxprune.errors import UsageError
from onnxprune.judging.allowance import Allowance, allowance
from onnxprune.judging.metrics import check_metric
from onnxprune.judging.user_metrics import UserMetric
from onnxprune.ordering.criteria import check_criterion
from onnxprune.probing.asking import Effort
from onnxprune.probing.calibration import Data
from onnxprune.probing.engine.means import Means
from onnxprune.probing.losses import LossName, UserLoss
from onnxprune.probing.probe import step
from onnxprune.probing.samples import Samples
from onnxprune.probing.sensitivities import Criterion, Sensitivities
from onnxprune.pruner import Recipe
from onnxprune.reading.observing import CPU
from onnxprune.sparsifying.sparsity import Sparsity, sparsity
from onnxprune.timing.setting import Setting

DEFAULT_DROP = 0.01
DEFAULT_CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Options:
    """The keywords of `prune`."""

    macs: Bound = None
    params: Bound = None
    size: Bound = None
    latency: Bound = None
    ratio: float | None = None
    threshold: float | str | None = None
    max_drop: float | str | None = None
    confidence: float | str = DEFAULT_CONFIDENCE
    metric: str | UserMetric | None = None
    eval_data: Data | None = None
    criterion: Criterion | None = None
    scores: Sensitivities | str | os.PathLike[str] | None = None
    loss: LossName | UserLoss = "distance"
    labels: str = "labels"
    delta: float | None = None
    order: int = 1
    probe_samples: Samples = "auto"
    allocation: AllocationName | None = None
    rounds: int | None = None
    compensate: bool | None = None
    weights: str | float | None = None
    sparse: bool = False
    quantize: Literal["int8"] | None = None
    only: str | Sequence[str] = ()
    skip: str | Sequence[str] = ()
    inexact: bool = False
    min_channels: int = 1
    multiple_of: int | Literal["auto"] = "auto"
    jobs: int | None = None
    memory: int | str | None = None
    provider: str = CPU
    batch: int = 1
    executor: Executor | None = None
    cache: str | os.PathLike[str] | None = None
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        check_kinds(self)
        if self.criterion is not None:
            check_criterion(self.criterion)
        check_metric(self.metric)
        if self.rounds is not None and self.rounds < 1:
            raise UsageError(f"Expected rounds of 1 or more, found {self.rounds}.")
        if self.quantize not in (None, "int8"):
            raise UsageError(f"Expected quantize to be int8, found {self.quantize!r}.")
        if self.sparse and self.weights is None:
            raise UsageError("Expected weights to store sparsely, found none removed. Say how many: --weights 80%.")
        if self.sparse and self.quantize:
            raise UsageError("Expected sparse tensors or eight bits, found both. Leave out --sparse or --quantize.")
        if isinstance(self.multiple_of, str) and self.multiple_of != "auto":
            raise UsageError(f"Expected multiple-of to be auto or a number, found {self.multiple_of!r}.")
        _ = self.targets, self.limits, self.setting, self.removed_weights, self.allowed  # each refuses nonsense

    @property
    def targets(self) -> Targets:
        """What must hold."""
        return Targets(self.macs, self.params, self.size, self.ratio, self.threshold, self.latency)

    @property
    def setting(self) -> Setting:
        """In which latency is measured."""
        return Setting(self.provider, self.batch, self.threads)

    @property
    def limits(self) -> Limits:
        """What every plan keeps to, before fast widths are known."""
        step = 1 if isinstance(self.multiple_of, str) else self.multiple_of
        return Limits(globs(self.only), globs(self.skip), self.min_channels, step, inexact=self.inexact)

    @property
    def removed_weights(self) -> Sparsity | None:
        """How many single weights go."""
        return None if self.weights is None else sparsity(self.weights)

    @property
    def allowed(self) -> Allowance:
        """The drop that may be."""
        return allowance(DEFAULT_DROP if self.max_drop is None else self.max_drop, self.confidence)

    def recipe(self, *, has_data: bool, has_curves: bool) -> Recipe:
        """How to prune, whatever the target; `has_curves`: width curves can be measured, and a bound is to be met."""
        compensate = has_data if self.compensate is None else self.compensate
        usual: Criterion = "auto" if compensate and self.threshold is None else "sensitivity"
        return Recipe(
            limits=self.limits,
            criterion=self.criterion or usual,
            loss=self.loss,
            delta=step(self.delta, self.order),
            order=self.order,
            effort=Effort(
                self.probe_samples,
                Means(self.jobs, self.memory, self.threads, self.provider, self.executor),
                self.cache,
            ),
            allocation=self.allocation or ("curves" if has_data and has_curves else None),
            rounds=self.rounds,
            compensate=compensate,
            seed=self.seed,
        )


NUMBER, WHOLE, TEXT, FILE = (Real,), (Integral,), (str,), (str, os.PathLike)
KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(
        ("macs", "params", "size", "latency"), ((*NUMBER, *TEXT, Amount), "a number or text such as '50%'")
    ),
    **dict.fromkeys(("threshold", "max_drop", "confidence", "weights"), ((*NUMBER, *TEXT), "a number or text")),
    **dict.fromkeys(("ratio", "delta"), (NUMBER, "a number")),
    **dict.fromkeys(("order", "rounds", "min_channels", "jobs", "batch", "seed", "threads"), (WHOLE, "an integer")),
    "multiple_of": ((*WHOLE, *TEXT), "an integer or auto"),
    **dict.fromkeys(("compensate", "sparse", "inexact"), ((bool, np.bool_), "True or False")),
    **dict.fromkeys(("labels", "provider"), (TEXT, "text")),
    **dict.fromkeys(("only", "skip"), ((*TEXT, Sequence), "a glob or several")),
    "scores": ((Sensitivities, *FILE), "scores or their file"),
    "memory": ((*WHOLE, *TEXT), "a number of bytes or text such as '4GB'"),
    "cache": (FILE, "a folder"),
}
"""What each option may be, besides None where that is its default."""


def check_kinds(options: Options) -> None:
    """
    Refuse what is of another kind than an option can be.

    Raises:
        UsageError: see above.
    """
    defaults = {entry.name: entry.default for entry in fields(Options)}
    for name, (kinds, words) in KINDS.items():
        value = getattr(options, name)
        if value is not defaults[name] and not isinstance(value, kinds):
            raise UsageError(f"Expected {name} to be {words}, found {value!r}.")


def globs(given: str | Sequence[str]) -> tuple[str, ...]:
    """One glob or several."""
    return (given,) if isinstance(given, str) else tuple(given)
