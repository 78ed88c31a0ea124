"""Run a C++ statement as a Jittor operation on the CPU, with OpenMP and oneDNN at hand; no
gradients.

The C++ functions lie in header files. Their text goes into the source that Jittor compiles (and
into its key), so that an edited header is never served from the cache.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.runtime import jt, onednn_flags

Var = Any

_SHARED = Path(__file__).with_name("kernels")


def on_cpu() -> bool:
    """Whether operations run on the CPU now; the kernels can only be used there."""
    return not jt.flags.use_cuda


def run(header: Path, call: str, shape: Sequence[int], inputs: list[Var], **data: float) -> Var:
    """A new float32 Var of ``shape``, filled by ``call``.

    Args:
        header: file whose functions ``call`` uses; ``core/nn/kernels/common.h`` comes before it,
            and other files of that folder where it includes them.
        call: C++ on ``in0_p`` (data), ``in0_shape0`` (size), ..., ``out0_p`` and ``data["name"]``.
            Sizes and settings must not be written into it: each text is compiled anew, as is each
            number of dimensions of an input.
        inputs: float32 Vars, read only.
        data: numbers and flags that vary from call to call.
    """
    out = jt.code(
        shape,
        "float32",
        inputs,
        cpu_header=_source(header),
        cpu_src=call,
        data={key: float(value) for key, value in data.items()},
    )
    out.compile_options = _compile_options()
    return out


def run_all(
    header: Path, call: str, shapes: Sequence[Sequence[int]], inputs: list[Var], **data: float
) -> list[Var]:
    """As :func:`run`, for a call with several results: ``out0_p``, ``out1_p``, ..."""
    outs = jt.code(
        [list(shape) for shape in shapes],
        ["float32"] * len(shapes),
        inputs,
        cpu_header=_source(header),
        cpu_src=call,
        data={key: float(value) for key, value in data.items()},
    )
    outs[0].compile_options = _compile_options()  # of the operation that gives them all
    return outs


def expect(holds: bool, name: str, *inputs: Var) -> None:
    """The kernels trust their sizes: check them before, in a line that names them.

    Raises:
        ValueError: ``holds`` is false.
    """
    if not holds:
        raise ValueError(f"{name}: shapes {[list(x.shape) for x in inputs]} do not fit together")


@functools.cache
def _source(header: Path) -> str:
    """The text of a kernel: common.h and the header, with what they include of core/nn/kernels."""

    def included(line: re.Match[str]) -> str:
        return with_includes(_SHARED / line[1])

    def with_includes(path: Path) -> str:
        return re.sub(r'^#include "(.+)"$', included, path.read_text("utf-8"), flags=re.MULTILINE)

    return with_includes(_SHARED / "common.h") + with_includes(header)


@functools.cache
def _compile_options() -> dict[str, int]:
    return {f"FLAGS: {onednn_flags()} ": 1}
