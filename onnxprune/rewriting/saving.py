"""Write a model so that it appears whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from onnx import ModelProto

from onnxprune.files import write_whole


def save_model(model: ModelProto, path: str | os.PathLike[str]) -> None:
    """
    Write the model: under another name in the same folder, and renamed when it is whole.

    Raises:
        OnnxPruneError: the file cannot be written.
    """
    write_whole({Path(path): model.SerializeToString()})
