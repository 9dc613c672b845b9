"""
How much memory it takes to prune a model that is larger than that: a decoder in float16, 6 GB unless said otherwise.

    python benchmarks/memory.py            # needs about 11 GB of disk in the folder of temporary files
    python benchmarks/memory.py --layers 2
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx

sys.path.insert(0, str(Path(__file__).parent.parent))

from fixtures.make.large_decoder import Decoder, write_decoder

OPTIONS = ("--criterion", "magnitude", "--ratio", "0.3")


def main() -> None:
    """Make the model, prune it with the command in a process of its own, check the output, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=Decoder.layers)
    parser.add_argument("--folder", type=Path, help="where the models go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source, target = Path(folder) / "decoder.onnx", Path(folder) / "pruned" / "decoder.onnx"
        target.parent.mkdir()
        write_decoder(source, Decoder(layers=arguments.layers))
        for name, options in (("inspect", ("inspect", str(source), "--json")), ("prune", (source, target, *OPTIONS))):
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "onnxprune", *map(str, options)],
                check=True,
                stdout=subprocess.DEVNULL if name == "inspect" else None,
            )
            print(f"{name}: {time.perf_counter() - start:.0f} s, most memory so far {peak() / 1e9:.2f} GB")
        onnx.checker.check_model(str(target), full_check=True)
        print(
            f"files: {size(source) / 1e9:.2f} GB, {size(target) / 1e9:.2f} GB pruned; ONNX's checker takes the output"
        )


def peak() -> int:
    """The most bytes that a finished process had in memory."""
    return 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def size(path: Path) -> int:
    """The bytes of the model and of its data."""
    return sum(file.stat().st_size for file in path.parent.iterdir() if file.is_file())


if __name__ == "__main__":
    main()
