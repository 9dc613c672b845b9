"""A metric of the user's own: a Python function, named as module:function."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.probing.calibration import first_line

UserMetric = Callable[[Mapping[str, np.ndarray], np.ndarray | None], np.ndarray]
"""Called with outputs by name and the labels of some samples; returns a number for each, the more the better."""

ADVICE = "Write MODULE:FUNCTION, such as my_metrics:f1 for the function f1 in my_metrics.py in the current directory."


def load_metric(name: str) -> UserMetric:
    """
    The function that a name such as "my_metrics:f1" stands for; modules in the current directory are found as well.

    Raises:
        UsageError: no such module or function, or the module cannot be imported.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise UsageError(f"Expected a metric as MODULE:FUNCTION, found {name!r}. {ADVICE}")
    with current_directory_first():
        try:
            module = importlib.import_module(module_name)
        except Exception as failure:  # an import runs code, which may raise anything
            raise UsageError(
                f"Expected the module {module_name!r} of the metric {name!r} to be importable, found: "
                f"{type(failure).__name__}: {first_line(failure)}. {ADVICE}"
            ) from failure
    function = getattr(module, function_name, None)
    if not callable(function):
        found = "no such name" if function is None else f"an object of type {type(function).__name__}"
        raise UsageError(
            f"Expected a function {function_name!r} in the module {module_name!r} ({place(module)}), found {found}. "
            f"{ADVICE}"
        )
    loaded: UserMetric = function
    return loaded


def place(module: object) -> str:
    """The file of a module."""
    return str(getattr(module, "__file__", None) or "built in")


@contextmanager
def current_directory_first() -> Iterator[None]:
    """Modules are looked for in the current directory before anywhere else."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


def user_values(
    name: str, metric: UserMetric, outputs: Mapping[str, np.ndarray], labels: np.ndarray | None
) -> np.ndarray:
    """
    What the user's function says of each sample.

    Raises:
        UsageError: it fails, or returns anything but one number for each sample.
    """
    samples = len(next(iter(outputs.values())))
    try:
        said = np.asarray(metric(dict(outputs), labels), np.float64)
    except Exception as failure:  # it is the user's code
        raise UsageError(
            f"Expected of the metric {name!r} a number for each of {samples} samples, found that it fails: "
            f"{type(failure).__name__}: {first_line(failure)}. Mend the function."
        ) from failure
    if said.shape != (samples,):
        raise UsageError(
            f"Expected of the metric {name!r} a number for each of {samples} samples, found an array of shape "
            f"{list(said.shape)}. Return an array of shape [samples]: bounds follow from how samples differ."
        )
    return said
