"""JSON files of our own, checked against their schema when read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from onnxprune.errors import PlanError

Record = TypeVar("Record")

STRICT = ConfigDict(extra="forbid")


def load_record(adapter: TypeAdapter[Record], path: str | os.PathLike[str], *, what: str, made_by: str) -> Record:
    """
    The record in a JSON file.

    Raises:
        PlanError: no such file, or not a record of this kind.
    """
    try:
        return adapter.validate_json(Path(path).read_bytes())
    except OSError as failure:
        raise PlanError(f"Expected {what} at {str(path)!r}: {failure.strerror}. Check the path.") from None
    except ValidationError as failure:
        first = failure.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise PlanError(
            f"Expected {what} (version 1) in {str(path)!r}; {where}: {first['msg']}. Write one with `{made_by}`."
        ) from None


def json_text(adapter: TypeAdapter[Record], record: Record) -> str:
    """The record as indented JSON."""
    return adapter.dump_json(record, indent=1).decode() + "\n"
