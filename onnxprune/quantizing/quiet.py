"""Silence around libraries that print, and that log through handlers of their own making."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnxruntime as ort

WARNING, FATAL = 2, 4
"""What ONNX Runtime logs: from this severity on. The first is its default."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing is printed, logged or warned of inside, and logging is afterwards as it was."""
    root, before = logging.getLogger(), logging.root.manager.disable
    silent = logging.NullHandler()
    root.addHandler(silent)  # a root logger without a handler would get one that stays, at the first warning
    logging.disable(logging.CRITICAL)
    ort.set_default_logger_severity(FATAL)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        ort.set_default_logger_severity(WARNING)
        logging.disable(before)
        root.removeHandler(silent)
