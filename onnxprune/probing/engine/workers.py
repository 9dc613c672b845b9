"""Run tasks: here, in processes of our own, or wherever an executor sends them."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import contextmanager
from itertools import islice

import numpy as np
import psutil
from loky import ProcessPoolExecutor

from onnxprune.errors import OnnxPruneError
from onnxprune.probing.engine.lab import Lab
from onnxprune.probing.engine.means import TASKS_A_WORKER
from onnxprune.probing.engine.running import run_task
from onnxprune.probing.engine.tasks import Task

RESTARTS = 2
"""How often workers of our own that died are replaced before it is given up."""

WATCH_SECONDS = 1.0
"""How often a worker looks whether its parent is there."""

Results = Iterator[tuple[int, np.ndarray]]


def run_here(tasks: Mapping[int, Task]) -> Results:
    """One task after the other in this process."""
    for number, task in tasks.items():
        losses = run_task(task)
        assert losses is not None, "the lab is in this process's reach"
        yield number, losses


def run_in_processes(tasks: Mapping[int, Task], lab: Lab, processes: int) -> Results:
    """In processes of our own; dead ones are replaced, and what they had not done is done again."""
    left = dict(tasks)
    for attempt in range(RESTARTS + 1):
        try:
            with pool(processes) as executor:
                for number, losses in run_on(executor, dict(left), lab, TASKS_A_WORKER * processes):
                    del left[number]
                    yield number, losses
            return
        except BrokenExecutor:
            if attempt == RESTARTS:
                raise OnnxPruneError(
                    f"Worker processes died {RESTARTS + 1} times. There may be too little memory: give --jobs 1, "
                    "or less with --memory."
                ) from None


def run_elsewhere(executor: Executor, tasks: Mapping[int, Task], lab: Lab, at_once: int) -> Results:
    """On an executor of the user's own."""
    try:
        yield from run_on(executor, tasks, lab, at_once)
    except BrokenExecutor as failure:
        raise OnnxPruneError(
            f"The executor broke: {str(failure).splitlines()[0] if str(failure) else type(failure).__name__} "
            "Make another one; what was measured is kept if there is a cache."
        ) from None


@contextmanager
def pool(processes: int) -> Iterator[Executor]:
    """Worker processes that are gone with the `with` block, whatever ends it."""
    warnings.filterwarnings("ignore", "A worker was restarted", UserWarning)  # one that had grown is replaced: fine
    executor = ProcessPoolExecutor(processes, initializer=go_with, initargs=(os.getpid(),))
    try:
        yield executor
    finally:
        executor.shutdown(wait=True, kill_workers=True)


def go_with(parent: int) -> None:
    """Let this process end when its parent does, however that ends: nobody would be left to take its answers."""

    def watch() -> None:
        while psutil.pid_exists(parent):
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_on(executor: Executor, tasks: Mapping[int, Task], lab: Lab, at_once: int) -> Results:
    """On an executor, a few tasks at a time; a worker that has not got the lab gets its contents with the task."""
    left = iter(tasks.items())
    running: dict[Future[np.ndarray | None], int] = {}
    contents: dict[str, bytes] | None = None
    try:
        while True:
            for number, task in islice(left, max(0, at_once - len(running))):
                running[executor.submit(run_task, task)] = number
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number, losses = running.pop(future), future.result()
                if losses is None:
                    contents = contents or lab.contents()
                    running[executor.submit(run_task, tasks[number], contents)] = number
                else:
                    yield number, losses
    finally:
        for future in running:
            future.cancel()
