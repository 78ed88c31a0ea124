"""An image encoder of the official code in ONNX Runtime: exported once a run, in a process of its
own, so that PyTorch takes no part in the side's memory.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.cases import Inputs, Loaded
from benchmarks.inputs import noise
from core.work.pool import usable_cores

_IMAGE, _EMBEDDING = "image", "embedding"
_OPSET = 17  # the first with layer normalisation


def load(build: Callable[[Inputs], Any], inputs: Inputs) -> Loaded:
    """The side that encodes noise of 1024 px on all cores.

    Args:
        build: function of a module that makes the PyTorch model; its ``image_encoder`` is exported.
        inputs: with ``exports``, the folder that keeps the exported file during the run.
    """
    import onnxruntime

    path = Path(inputs["exports"]) / f"{build.__name__}.onnx"
    if not path.is_file():
        _in_own_process(build, inputs, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    image = noise(0, (1, 3, 1024, 1024))

    def run() -> Any:
        return session.run([_EMBEDDING], {_IMAGE: image})[0]

    return Loaded(run, run, lambda embedding: {"embedding": embedding})


def _in_own_process(build: Callable[[Inputs], Any], inputs: Inputs, path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=export, args=(build, inputs, path)
    )
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"the export to ONNX failed (exit code {process.exitcode})")


def export(build: Callable[[Inputs], Any], inputs: Inputs, path: Path) -> None:
    """Write the encoder of the model that ``build`` makes to ``path``."""
    import torch

    image = torch.from_numpy(noise(0, (1, 3, 1024, 1024)))
    with torch.no_grad():
        # The exporter by tracing: the other one needs a package more.
        torch.onnx.export(
            build(inputs).image_encoder,
            (image,),
            str(path),
            input_names=[_IMAGE],
            output_names=[_EMBEDDING],
            opset_version=_OPSET,
            dynamo=False,
        )
