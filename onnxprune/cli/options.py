"""Options that several commands share, and what they mean."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from onnxprune.choosing.choose import AllocationName
from onnxprune.cli.terminal import fail
from onnxprune.errors import UsageError
from onnxprune.files import is_special
from onnxprune.probing.asking import Effort
from onnxprune.probing.engine.means import Means
from onnxprune.probing.samples import Samples
from onnxprune.probing.sensitivities import Criterion
from onnxprune.reading.observing import CPU

NATURAL = click.IntRange(min=0)
POSITIVE = click.IntRange(min=1)

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Function], Function]


def several(*options: Decorator[Any]) -> Decorator[Any]:
    """Several options as one, shown in this order."""
    return lambda function: reduce(lambda decorated, option: option(decorated), reversed(options), function)


class Step(click.ParamType[Any]):
    """A number of 1 or more, or "auto"."""

    name = "step"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """The number or the word."""
        if value == "auto":
            return "auto"
        if isinstance(value, int):
            return value
        if not value.isdecimal() or int(value) < 1:
            self.fail(f"Expected a number of 1 or more, or auto; found {value!r}.", param, ctx)
        return int(value)


provider_option = click.option(
    "--provider", default=CPU, show_default=True, help="Where ONNX Runtime runs the probes, and the models it times."
)
batch_option = click.option(
    "--batch", type=POSITIVE, default=1, show_default=True, help="Samples of a run whose latency is measured."
)
setting_options = several(provider_option, batch_option)
"""In which setting latency is measured, besides --threads."""

data_options = several(
    click.option("--data", type=click.Path(), help="Samples: an .npz with an array for each input."),
    click.option("--labels", default="labels", show_default=True, help="Name of the array with the labels."),
    click.option("--seed", type=NATURAL, default=0, show_default=True, help="Seed of everything random."),
    click.option("--threads", type=NATURAL, default=0, help="Threads of ONNX Runtime, as it is timed too; 0: all."),
    click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors."),
)
"""What to measure on."""

target_options = several(
    click.option("--macs", metavar="BOUND", help="At most these multiply-accumulates: 50%, 3M."),
    click.option("--params", metavar="BOUND", help="At most these parameters: 50%, 200K."),
    click.option("--size", metavar="BOUND", help="At most this file size: 50%, 5MB."),
    click.option("--latency", metavar="BOUND", help="At most this time for a run on this machine: 60%, 3.5ms."),
    click.option("--ratio", type=float, metavar="SHARE", help="Share of channels to remove in every group: 0.3."),
    click.option("--threshold", metavar="θ", help="Remove channels whose score is below median, mean or a number."),
    click.option(
        "--max-drop",
        metavar="SHARE",
        help="As small as possible while the metric drops no more than that on data not used for pruning. Without any "
        "target: 1%.",
    ),
)
"""How far to prune."""

judging_options = several(
    click.option("--eval-data", type=click.Path(), help="Samples to judge on; without, a part of --data is held back."),
    click.option("--metric", help="accuracy, top-5, agreement, cosine, mse, psnr or MODULE:FUNCTION."),
    click.option("--confidence", default="95%", show_default=True, help="Of the statement that no more is lost."),
)
"""What a pruned model is judged by."""

method_options = several(
    click.option(
        "--criterion",
        type=click.Choice(get_args(Criterion)),
        help="What orders channels. Default: auto (obs or sensitivity, by what each loses) where layers are refitted.",
    ),
    click.option("--scores", type=click.Path(), metavar="FILE", help="Scores measured by `onnxprune sensitivity`."),
    click.option(
        "--allocation",
        type=click.Choice(get_args(AllocationName)),
        help="How wide groups stay. Default: curves (least loss by width curves) with data.",
    ),
    click.option("--rounds", type=POSITIVE, help="Score and refit so often on the way. Default: 3 below 40%, else 1."),
    click.option(
        "--compensate/--no-compensate",
        default=None,
        help="Refit the layers behind what was pruned, on the data. Default: with data.",
    ),
)
"""How channels are chosen."""

further_options = several(
    click.option("--weights", metavar="SHARE", help="Set single weights to zero besides: 50%, or a pattern 2:4."),
    click.option("--sparse", is_flag=True, help="Store weights as sparse tensors where that is smaller."),
    click.option("--quantize", type=click.Choice(["int8"]), help="Quantise at the end, on the same data."),
)
"""What is done after channels are gone."""

compensate_option = click.option(
    "--compensate/--no-compensate", default=None, help="Refit layers on the data. Default: as the plan says."
)

selection_options = several(
    click.option("--only", multiple=True, metavar="GLOB", help="Only these groups or layers; may be repeated."),
    click.option("--skip", multiple=True, metavar="GLOB", help="Leave these groups or layers alone."),
    click.option("--inexact", is_flag=True, help="Also groups whose removal changes a mean (LayerNorm) or other sums."),
)
"""Which groups."""

width_options = several(
    click.option("--min-channels", default=1, show_default=True, help="Channels that stay in each group at least."),
    click.option(
        "--multiple-of",
        type=Step(),
        default="auto",
        show_default=True,
        metavar="N|auto",
        help="Widths are multiples of it. auto: each group's, that keep fast kernels on this machine; 1: any.",
    ),
)
"""Which widths."""

effort_options = several(
    click.option(
        "--probe-samples",
        default="auto",
        show_default=True,
        metavar="N|auto|all",
        help="Samples that probes run on, those that tell most. auto: 32, and more where that costs little.",
    ),
    click.option("--precise", is_flag=True, help="Measure on all samples: --probe-samples all."),
    click.option("--jobs", type=POSITIVE, help="Processes that probe. Default: one for each core."),
    click.option("--memory", metavar="BYTES", help="What they may take together: 4GB. Default: half of what is free."),
    provider_option,
    click.option("--cache", type=click.Path(), metavar="DIR", help="Journal of what is measured. Default: beside OUT."),
    click.option("--no-cache", is_flag=True, help="Neither use nor write a journal."),
)
"""How much is measured, with what, and where answers are kept."""

probe_options = several(
    click.option("--delta", type=float, help="How far a gate closes: 1 removes (the default), small numbers derive."),
    click.option("--order", type=click.IntRange(1, 2), default=1, show_default=True, help="2: second derivatives."),
    effort_options,
)
"""What is measured of channels."""


def loss_option(default: str) -> Decorator[Any]:
    """The loss, with the default that suits the command."""
    return click.option(
        "--loss",
        type=click.Choice(["distance", "auto", "cross-entropy", "mse", "kl"]),
        default=default,
        show_default=True,
        help="distance: to the model's own outputs; auto: cross-entropy if integer labels fit, else distance.",
    )


def effort_of(
    output: str,
    *,
    probe_samples: str,
    precise: bool,
    jobs: int | None,
    memory: str | None,
    provider: str,
    cache: str | None,
    no_cache: bool,
    threads: int,
) -> Effort:
    """The effort for a command that writes `output`."""
    samples = samples_said(probe_samples, precise)
    return Effort(samples, Means(jobs, memory, threads, provider), journal_folder(output, cache, no_cache))


def samples_said(text: str, precise: bool) -> Samples:
    """A number of samples, "auto" or "all"."""
    if precise and text not in ("auto", "all"):
        raise UsageError("Expected --precise or --probe-samples, found both. Leave one out.")
    if precise or text == "all":
        return "all"
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"Expected for --probe-samples a number of 1 or more, auto or all; found {text!r}.")
    return int(text)


def journal_folder(output: str, cache: str | None, no_cache: bool) -> Path | None:
    """Where answers are kept: beside the output if nothing is said, and nowhere if that is no file."""
    if no_cache and cache is not None:
        raise UsageError("Expected --cache or --no-cache, found both. Leave one out.")
    if no_cache or (cache is None and is_special(Path(output))):
        return None
    return Path(cache) if cache is not None else Path(output).resolve().parent / ".onnxprune"


@contextmanager
def kept_answers(folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """An interruption says that what was measured is kept, if it is."""
    try:
        yield
    except KeyboardInterrupt:
        if folder is None or not Path(folder).is_dir():
            raise
        fail(f"Interrupted; nothing was written. What was measured is in {folder}: the same command goes on there.", 1)
