"""One block of memory from which Jittor's CPU arrays are cut while a network trains.

Jittor keeps what it was once given for later arrays, but joins free neighbours only where they came
from the system as one block. A training step frees arrays of a hundred sizes; with a block for each
of them, a fifth of the memory lies idle.
"""

from __future__ import annotations

import functools
import os
import resource
from pathlib import Path

from core.runtime import jt

_SHARE = 0.5  # of the machine's memory; what does not fit into the block gets blocks of its own
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
_NEVER = "2"  # the system counts what is reserved, not what is used


@functools.cache
def reserve() -> bool:
    """Reserve the block, once per process; it takes memory only where arrays are written into it.

    False, with nothing done, on a GPU and where the system counts reserved memory as used (``ulimit
    -v``, strict overcommit): there the block would keep memory from others.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if jt.flags.use_cuda or limit != resource.RLIM_INFINITY or _counts_reserved():
        return False
    size = int(_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    # The block is the allocator's from here on: the array itself ends with this function.
    jt.empty((size // 8,), "float64").sync()
    return True


def _counts_reserved() -> bool:
    try:
        return _OVERCOMMIT.read_text().strip() == _NEVER
    except OSError:
        return False
