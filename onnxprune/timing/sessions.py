"""Sessions to be timed in turn."""

from __future__ import annotations

import onnxruntime as ort
from onnx import ModelProto

from onnxprune.errors import ModelError
from onnxprune.reading.numbers import whole
from onnxprune.reading.observing import CPU, session_options
from onnxprune.timing.setting import Setting

AT_REST = ("session.force_spinning_stop", "1")
"""
Puts the threads of a session to rest when a run ends.

Otherwise they keep a core busy for a while, and the session that is run next pays for it: twice its time on two cores.
"""


def options_for(setting: Setting) -> ort.SessionOptions:
    """Options of a session that is run as the setting says."""
    options = session_options(optimized=True, threads=setting.threads, keep_memory=True)
    options.add_session_config_entry(*AT_REST)
    return options


def timed_session(model: ModelProto, setting: Setting, options: ort.SessionOptions) -> ort.InferenceSession:
    """
    The session.

    Raises:
        ModelError: ONNX Runtime does not take the model.
    """
    providers = [*dict.fromkeys((setting.provider, CPU))]
    try:
        return ort.InferenceSession(whole(model).SerializeToString(), options, providers=providers)
    except Exception as failure:  # ONNX Runtime raises many kinds
        raise ModelError(f"ONNX Runtime does not take the model: {str(failure).splitlines()[0]}") from None
