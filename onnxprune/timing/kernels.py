"""
What ONNX Runtime makes of a model, and how long each kernel takes.

Nodes are given numbers in place of their names before ONNX Runtime optimises the model, and tensors the numbers of the
nodes that make them. What it fuses, blocks or puts in by itself is then told by these: a kernel stands for the nodes
whose numbers are in its name, and one without a number was put in between layers.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import GraphProto, ModelProto

from onnxprune.errors import ModelError
from onnxprune.reading.graph import standard
from onnxprune.timing.sessions import options_for, timed_session
from onnxprune.timing.setting import Setting

NUMBERED = re.compile(r"onnxprune\.(\d+)\.")
LAYOUT = "Reorder"
"""With this begin the names of operators that ONNX Runtime puts in where a blocked layout begins and ends."""

KERNEL = "_kernel_time"
"""What ONNX Runtime puts behind the name of a node in the line that says how long it ran."""

FEWEST_ROUNDS = 5
MOST_ROUNDS = 200
WARM_UP = 2


@dataclass(frozen=True, slots=True)
class Kernel:
    """
    Something that ran: for node number `number`, the last of those it stands for; None: a change of layout.

    `microseconds` are those of a quiet run: the mean of the fastest quarter of all runs.
    """

    number: int | None
    operator: str
    microseconds: float


def numbered(model: ModelProto, numbers: Mapping[str, int]) -> ModelProto:
    """
    The model with numbers for names.

    `numbers` are those of the main graph's nodes, each by the name of its first output that is used; nodes that are not
    among them have numbers of their own, behind these.
    """
    found = ModelProto()
    found.CopyFrom(model)
    graph = found.graph
    named: dict[str, str] = {}
    following = max(numbers.values(), default=-1) + 1
    for position, node in enumerate(graph.node):
        number = number_of(node.output, numbers)
        number = following + position if number is None else number
        node.name = f"onnxprune.{number}."
        named |= {name: f"onnxprune.{number}.{index}" for index, name in enumerate(node.output) if name}
    rename(graph, named)
    return found


def number_of(outputs: Sequence[str], numbers: Mapping[str, int]) -> int | None:
    """The number of the node that has these outputs."""
    return next((numbers[name] for name in outputs if name in numbers), None)


def rename(graph: GraphProto, named: Mapping[str, str]) -> None:
    """Give tensors other names, in bodies too, whose own names hide those outside."""
    del graph.value_info[:]
    for port in graph.output:
        port.name = named.get(port.name, port.name)
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = named.get(name, name)
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                own = {port.name for port in body.input} | {name for inner in body.node for name in inner.output}
                rename(body, {name: new for name, new in named.items() if name not in own})


def profiled(
    models: Sequence[ModelProto], feeds: Sequence[Mapping[str, Any]], setting: Setting, *, seconds: float
) -> list[tuple[Kernel, ...]]:
    """
    The kernels of each model with their times, the models run in turn for about so many seconds.

    Raises:
        ModelError: ONNX Runtime does not take a model, or does not run it.
    """
    with tempfile.TemporaryDirectory() as folder:
        sessions = []
        for number, model in enumerate(models):
            options = options_for(setting)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / f"{number}.")
            sessions.append(timed_session(model, setting, options))
        rounds = in_turn(sessions, feeds, seconds)
        return [kernels_in(Path(session.end_profiling()), rounds) for session in sessions]


def in_turn(sessions: Sequence[ort.InferenceSession], feeds: Sequence[Mapping[str, Any]], seconds: float) -> int:
    """Run each once, then the next; the number of rounds after the warm-up."""
    try:
        for session, fed in zip(sessions, feeds, strict=True):
            for _ in range(WARM_UP):
                session.run(None, fed)
        start, rounds = time.perf_counter(), 0
        while rounds < FEWEST_ROUNDS or (time.perf_counter() - start < seconds and rounds < MOST_ROUNDS):
            for session, fed in zip(sessions, feeds, strict=True):
                session.run(None, fed)
            rounds += 1
    except Exception as failure:  # ONNX Runtime raises many kinds
        raise ModelError(f"ONNX Runtime does not run a part of the model: {str(failure).splitlines()[0]}") from None
    return rounds


def kernels_in(profile: Path, rounds: int) -> tuple[Kernel, ...]:
    """The kernels that a profile tells of, in the order in which they ran first."""
    events = [event for event in json.loads(profile.read_bytes()) if event["cat"] == "Node"]
    times: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event["name"].endswith(KERNEL):
            key = event["name"].removesuffix(KERNEL), event["args"]["op_name"]
            times.setdefault(key, []).append(event["dur"])
    found: list[Kernel] = []
    for (name, operator), each in times.items():
        calls = max(1, round(len(each) / (rounds + WARM_UP)))  # a node in a loop runs several times
        by_run = np.array(each[-calls * rounds :], float)
        by_run = by_run[: len(by_run) // calls * calls].reshape(-1, calls).sum(1)
        number = number_in(name)
        if number is None and not operator.startswith(LAYOUT) and found:
            number = found[-1].number  # fused under another name: it runs next to what it was fused of
        fastest = np.sort(by_run)[: max(1, len(by_run) // 4)]
        quiet = float(fastest.mean()) if fastest.size else 0.0
        found.append(Kernel(number, operator, quiet))
    return tuple(found)


def number_in(name: str) -> int | None:
    """The last number in a name."""
    numbers = NUMBERED.findall(name)
    return int(numbers[-1]) if numbers else None


def runs_as(model: ModelProto, setting: Setting) -> dict[int, str]:
    """
    For each node of a numbered model the operator it runs as, with its domain; those that others take in are missing.

    Raises:
        ModelError: ONNX Runtime does not take the model.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        options = options_for(setting)
        options.optimized_model_filepath = str(path)
        timed_session(model, setting, options)
        optimised = onnx.load(path)
    found = {}
    for node in optimised.graph.node:
        number = number_in(" ".join((node.name, *node.output)))
        if number is not None:
            domain = standard(node.domain)
            found[number] = f"{domain}.{node.op_type}" if domain else node.op_type
    return found
