"""Wherever probes run, the scores are the same to the last bit, and nothing is lost or left behind."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from onnxprune.errors import OnnxPruneError
from onnxprune.probing.calibration import gather
from onnxprune.probing.engine import engine, running, workers
from onnxprune.probing.engine.engine import Engine
from onnxprune.probing.engine.lab import FOLDER, Address, folder_of, own_folder
from onnxprune.probing.engine.means import TASKS_A_WORKER, Means
from onnxprune.probing.engine.tasks import Task
from onnxprune.probing.losses import UserLoss, prepare_loss
from tests.bundled import bundled, digits
from tests.probing.engines import exact, question
from tests.probing.losses import furthest

NAME, SAMPLES, CHANNELS, TASKS = "resnet_torchscript", 8, 12, 12
PARENT = os.getpid()

Found = dict[tuple[str, str], tuple[float, float]]


@pytest.fixture(autouse=True)
def many_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of four channels each, sent to workers although they are small."""
    monkeypatch.setattr(engine.Engine, "_probe_seconds", lambda *_: 0.5)
    monkeypatch.setattr(engine, "SERIAL_SECONDS", 0.0)


def scores(means: Means, loss: str | UserLoss = "mse", times: int = 1) -> Found:
    """Mean and error for some channels of some groups, asked for in so many calls."""
    couplings = bundled(NAME)
    calibration = gather(couplings.graph, digits(NAME, SAMPLES))
    asked = [question(group, [channel]) for group in exact(couplings)[:4] for channel in range(CHANNELS)]
    found: Found = {}
    with Engine(couplings, calibration, prepare_loss(couplings.graph, calibration, loss), means) as probing:
        for part in np.array_split(np.arange(len(asked)), times):
            for answer in probing.answers([asked[number] for number in part]):
                assert answer.question.key not in found
                found[answer.question.key] = (answer.mean, answer.error)
    assert len(found) == len(asked)
    return found


def assert_close(found: Found, expected: Found) -> None:
    """The same but for rounding: sessions that give several tensors at once may fuse less."""
    for key, values in expected.items():
        assert found[key] == pytest.approx(values, rel=1e-5, abs=1e-8), key


@pytest.fixture(scope="module")
def here() -> Found:
    """The scores as this process finds them."""
    return scores(Means(jobs=1))


@pytest.fixture(scope="module")
def furthest_here() -> Found:
    """The same for a loss of the user's own."""
    return scores(Means(jobs=1), furthest)


@pytest.fixture(scope="module")
def spawned() -> Iterator[ProcessPoolExecutor]:
    """Two processes that share nothing with this one."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
        yield executor


class Sending(Executor):
    """Passes tasks on, and counts them and the times that the lab's contents went with one."""

    def __init__(self, executor: Executor, *, far: bool) -> None:
        self._executor, self._far, self._max_workers = executor, far, 2
        self.tasks, self.contents = 0, 0

    def submit(self, run: Any, task: Task, *contents: Any) -> Future[Any]:  # type: ignore[override]
        """Run a task where the lab's folder is seen, or far away where it is not."""
        self.tasks += 1
        self.contents += len(contents)
        lab = replace(task.lab, folder="/nowhere") if self._far else task.lab
        return self._executor.submit(run, replace(task, lab=lab), *contents)


def test_own_processes_find_the_same(here: Found) -> None:
    """To the last bit; then they are gone."""
    assert scores(Means(jobs=2)) == here
    assert not workers_left()


def test_threads_find_the_same(here: Found) -> None:
    """Of any executor of threads."""
    with ThreadPoolExecutor(2) as executor:
        assert scores(Means(executor=executor)) == here


def test_processes_of_any_executor_find_the_same(here: Found, spawned: ProcessPoolExecutor) -> None:
    """Those that were started afresh, too."""
    sending = Sending(spawned, far=False)
    assert scores(Means(executor=sending)) == here
    assert (sending.tasks, sending.contents) == (TASKS, 0)


def test_workers_elsewhere_get_the_lab_and_keep_it(here: Found, spawned: ProcessPoolExecutor) -> None:
    """Its contents go only with the tasks that a worker has before it has them: one that runs, and one that waits."""
    sending = Sending(spawned, far=True)
    assert_close(scores(Means(executor=sending)), here)
    assert 1 <= sending.contents <= 2 * TASKS_A_WORKER < TASKS


def test_workers_elsewhere_get_what_was_added_to_the_lab(here: Found, spawned: ProcessPoolExecutor) -> None:
    """Further groups, asked for later, need more than a worker has by then."""
    assert_close(scores(Means(executor=Sending(spawned, far=True)), times=3), here)


def test_threads_elsewhere_do_not_take_the_lab_from_each_other(here: Found) -> None:
    """Two of a process's threads that miss it at once unpack it once."""
    with ThreadPoolExecutor(4) as executor:
        for _ in range(3):
            assert_close(scores(Means(executor=Sending(executor, far=True))), here)


def test_tasks_of_any_size_find_the_same(here: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a probe is thought to take changes no bit."""
    for seconds in (0.01, 1.0, 60.0):
        monkeypatch.setattr(engine, "TASK_SECONDS", seconds)
        assert scores(Means(jobs=1)) == here


def test_later_questions_find_the_same(here: Found) -> None:
    """Groups that are asked for later change nothing, but for rounding, in what was asked before."""
    assert_close(scores(Means(jobs=1), times=3), here)


def deadly(marker: Path, deaths: int = 1) -> UserLoss:
    """A loss that kills the worker that it runs in, but only so many times."""

    def loss(outputs: Mapping[str, np.ndarray], original: Mapping[str, np.ndarray], labels: object) -> np.ndarray:
        for number in range(deaths) if os.getpid() != PARENT else ():
            try:
                os.close(os.open(marker / str(number), os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)
        return furthest(outputs, original, None)

    return loss


def test_a_dead_worker_is_replaced(furthest_here: Found, tmp_path: Path) -> None:
    """What it had not done is done again, and no answer comes twice."""
    assert scores(Means(jobs=2), deadly(tmp_path)) == furthest_here
    assert (tmp_path / "0").exists()


@pytest.mark.slow
def test_workers_that_die_again_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what may be wrong, and what to do."""
    monkeypatch.setattr(workers, "RESTARTS", 1)
    with pytest.raises(OnnxPruneError, match=r"died 2 times\. There may be too little memory: give --jobs 1, or less"):
        scores(Means(jobs=2), deadly(tmp_path, 99))
    assert not workers_left()


def test_an_error_in_the_users_loss_is_the_users(tmp_path: Path) -> None:
    """It comes through as it was raised."""

    def broken(outputs: object, original: object, labels: object) -> np.ndarray:
        if os.getpid() != PARENT:
            raise ZeroDivisionError("my own mistake")
        return np.ones(SAMPLES)

    with pytest.raises(ZeroDivisionError, match="my own mistake"):
        scores(Means(jobs=2), broken)
    assert not workers_left()


def workers_left() -> list[psutil.Process]:
    """Worker processes of our own."""
    return [child for child in psutil.Process().children() if "LokyProcess" in " ".join(child.cmdline())]


INTERRUPTED = """
from onnxprune.probing.engine import engine
from onnxprune.probing.probe import probe
from tests.bundled import bundled, digits

engine.SERIAL_SECONDS, engine.TASK_SECONDS = 0.0, 0.01
name = "resnet_torchscript"
going = lambda what, done, total: print("going" if done else "ready", flush=True)
probe(bundled(name), digits(name, 64), "mse", samples="all", jobs=2, progress=going)
print("done")
"""


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    """No process, and no folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "going\n"]
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    assert list(tmp_path.glob("onnxprune-*"))
    process.send_signal(signal.SIGINT)
    told, complaint = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in complaint
    assert "done" not in told
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert not list(tmp_path.glob("onnxprune-*"))


def test_no_more_processes_than_the_memory_holds() -> None:
    """Each takes a quarter of a gigabyte before it does anything; one there is always."""
    couplings = bundled(NAME)
    calibration = gather(couplings.graph, digits(NAME, 4))
    loss = prepare_loss(couplings.graph, calibration, "mse")
    for memory, expected in (("600MB", 2), ("1MB", 1), ("4GB", 8)):
        with Engine(couplings, calibration, loss, Means(jobs=8, memory=memory)) as one:
            assert one.processes(1000.0) == expected


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_workers_go_with_their_parent(number: int, tmp_path: Path) -> None:
    """However it ends: they would hold its pipes open, and their memory."""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "going\n"]
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    process.wait(timeout=10)
    assert not psutil.wait_procs(children, timeout=10)[1]


def test_what_other_machines_left_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their processes may live, though none here has such a number; a dead process of this machine's is known."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here, elsewhere = tmp_path / f"{FOLDER}{dead.pid}-a", tmp_path / f"onnxprune-elsewhere-{dead.pid}-a"
    here.mkdir()
    elsewhere.mkdir()
    own = own_folder()
    assert {Path(own.name), elsewhere} == set(tmp_path.iterdir())
    own.cleanup()


def test_a_lab_in_use_outlives_its_successor(tmp_path: Path) -> None:
    """A thread of a worker that serves two runs does not lose the lab of one to the other."""
    first, second = (Address(key, str(tmp_path / "elsewhere")) for key in ("first", "second"))
    with folder_of(first, {"file": b"1"}) as folder:
        assert folder is not None
        with folder_of(second, {"file": b"2"}):
            assert (folder / "file").read_bytes() == b"1"
    with folder_of(first, None) as gone:
        assert gone is None
    assert not folder.exists()


def test_what_stops_a_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that does not run is a message with what to do, not a traceback of ONNX Runtime's."""

    class Full:
        def get_inputs(self) -> list[object]:
            return []

        def run(self, *_: object) -> None:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 1")

    monkeypatch.setattr(running, "session_for", lambda *_, **__: Full())
    with pytest.raises(OnnxPruneError, match=r"Failed to allocate memory.*--jobs 1"):
        scores(Means(jobs=1))


def test_a_full_disk_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """With where there should be room, and nothing is left behind."""

    def full(path: Path, array: np.ndarray) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OnnxPruneError, match=r"Expected room in '.*No space left on device.*TMPDIR"):
        scores(Means(jobs=1))


def test_a_dask_cluster_that_loses_a_worker(furthest_here: Found, tmp_path: Path) -> None:
    """Its other workers, and the one that takes the dead one's place, find what is found here."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert scores(Means(executor=client.get_executor()), deadly(tmp_path)) == furthest_here
    assert (tmp_path / "0").exists()
