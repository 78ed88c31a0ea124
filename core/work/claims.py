"""Several processes share out work while they run: whoever claims a key does its work.

The protocol needs a folder that all processes see, locally or through NFS and the like; no locks
and no server:

- A claim of a key is a folder named after the key with one file in it, whose *name* is the owner's
  token: host, machine (boot id and process namespace), process, its start time, and a number that
  is used once. The file is empty; its modification time is the owner's last sign of life.
- To claim, a process builds such a folder under a name of its own and renames it to the key's. A
  rename onto a folder that holds a file fails, so one process wins.
- A thread of the owner touches the file five times in a time-out. The file system stamps the time.
  Whoever judges a claim compares that with a new stamp of the same file system, because the clocks
  of machines differ.
- The thread would beat for ever where the owner itself hangs, so it stops after a deadline, if one
  is given. What the owner makes after all is not written once another has taken over.
- A claim is abandoned when its last sign of life is older than the time-out, or, on the same
  machine at once, when its process is gone. To take it over, a process touches the file and renames
  it from the old owner's token to its own. The first rename wins, the others find nothing to
  rename. Tokens are never used twice, so a slow process cannot take what has changed hands since
  it looked.
- To release, the owner removes its file, by its own token, then the folder if that is empty.

So there are never two owners of a key: the owner is the process whose token lies in the folder. An
owner that was suspended for longer than the time-out may have lost its claim, so it must ask
:meth:`Claims.still_mine` before it writes its result. The moment between that question and the
write remains; therefore results should be written atomically and be the same whoever makes them.
Whoever wins a claim should look first whether the work is done: another process may have finished
it just before.

The time-out must be longer than Python may stand still (in a native call that keeps its lock, such
as the compilation of a kernel), and longer than a network file system keeps file attributes (about
a minute).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import math
import os
import shutil
import socket
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from core import log
from core.files import file_system_time, flat_name

#: Name of a folder of claims, in the folder of what is claimed.
CLAIMS_FOLDER = "claims"
TIMEOUT_S = 300.0
#: Usual deadline of the work on an image.
IMAGE_TIMEOUT_S = 1800.0
_BEATS_PER_TIMEOUT = 5
_DRAFT_SUFFIX = ".new"


class _Held(NamedTuple):
    """A claim of this object."""

    path: Path
    until: float
    """Time (``time.monotonic``) of its last sign of life."""


class Claims:
    """This process's claims in a folder; use it as a context manager, or call :meth:`close`.

    Args:
        folder: holds the claims and nothing else. It is made when needed and removed with the last
            claim.
        timeout_s: seconds without a sign of life after which a claim counts as abandoned. It must
            be the same in all processes.
        deadline_s: seconds after which the owner of a claim counts as hung and gives no more sign
            of life, twice as many each time that it has lost the same key; None: never.
    """

    def __init__(
        self, folder: Path, timeout_s: float = TIMEOUT_S, deadline_s: float | None = None
    ) -> None:
        self.folder = Path(folder)
        self.timeout_s = timeout_s
        self._deadline_s = deadline_s
        self._identity = own_identity()
        self._numbers = itertools.count()
        self._held: dict[str, _Held] = {}
        self._lost: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def claim(self, key: str) -> bool:
        """Try to become the owner of ``key``; False while another (or this object) owns it.

        Abandoned claims are taken over.
        """
        holder = self._holder(self.folder / flat_name(key))
        if holder is None:
            return self._publish(key)
        return self._is_abandoned(holder) and self._take_over(key, holder)

    def still_mine(self, key: str) -> bool:
        """Whether this object owns ``key`` now. Ask before writing; it is a sign of life."""
        held = self._held.get(key)
        if held is None:
            return False
        try:
            os.utime(held.path)
            # NFS checks a name on opening, not on touching.
            os.close(os.open(held.path, os.O_RDONLY))
        except FileNotFoundError:
            self._lost[key] += 1
            return False
        return True

    def release(self, key: str) -> None:
        """Give ``key`` up, done or not; nothing happens where it was lost or never owned."""
        held = self._held.get(key)
        if held is not None:
            _remove(held.path)
            self._forget(key)

    def close(self) -> None:
        """Release everything, clear away what dead processes left, and end the heartbeat."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        for key in list(self._held):
            self.release(key)
        self._clear_abandoned()
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _publish(self, key: str) -> bool:
        """Claim a key that nobody owns; False when another was faster."""
        name = f"{self._identity}~{next(self._numbers)}"
        draft = self.folder / f".{name}{_DRAFT_SUFFIX}"
        place = self.folder / flat_name(key)
        # The claim is noted before it is made and forgotten after it is gone, so that close() finds
        # everything wherever Ctrl-C strikes.
        self._hold(key, place / name)
        try:
            _make_folder(draft)
            os.close(os.open(draft / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            os.rename(draft, place)
        except OSError as error:
            self._forget(key)
            # Missing: this process was suspended for so long that its draft was cleared away.
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                return False
            raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return True

    def _take_over(self, key: str, holder: Path) -> bool:
        """Put our token in the place of an abandoned one; False when another was faster."""
        mine = holder.with_name(f"{self._identity}~{next(self._numbers)}")
        self._hold(key, mine)
        try:
            # First, for under our name it must never look abandoned.
            os.utime(holder)
            os.rename(holder, mine)
        except FileNotFoundError:
            self._forget(key)
            return False
        return True

    def _hold(self, key: str, path: Path) -> None:
        # Slow processes would take an item from each other for ever, so each gets more time.
        allowed = math.inf if self._deadline_s is None else self._deadline_s * 2 ** self._lost[key]
        with self._lock:
            self._held[key] = _Held(path, time.monotonic() + allowed)
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat, name="claims", daemon=True)
            self._thread.start()

    def _forget(self, key: str) -> None:
        with self._lock:
            self._held.pop(key, None)

    def _beat(self) -> None:
        """Touch the files of all claims until the end, each until its deadline."""
        late: set[Path] = set()
        while not self._closing.wait(self.timeout_s / _BEATS_PER_TIMEOUT):
            with self._lock:
                held = list(self._held.items())
            for key, (path, until) in held:
                if time.monotonic() > until:
                    if path not in late:
                        late.add(path)
                        log.warn(
                            "claims", f"{key} takes too long; another process may take it over"
                        )
                    continue
                # Lost or just released, or the file system does not answer: the next beat tries
                # again, and the owner asks before it writes.
                with contextlib.suppress(OSError):
                    os.utime(path)

    def _holder(self, place: Path) -> Path | None:
        """The file in a claim's folder, whose name is the owner's token; None without owner."""
        try:
            # Hidden ones are what NFS makes of a file that is removed while it is open.
            names = [name for name in os.listdir(place) if not name.startswith(".")]
        except (FileNotFoundError, NotADirectoryError):
            return None
        return place / names[0] if names else None

    def _is_abandoned(self, path: Path) -> bool:
        """Whether the owner of this claim (or draft) is gone or gives no sign of life."""
        if is_dead(path.name.strip(".")):
            return True
        try:
            # Opened, because network file systems look at the real time stamp only then.
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            last = os.fstat(handle).st_mtime
        finally:
            os.close(handle)
        try:
            return file_system_time(self.folder) - last > self.timeout_s
        except FileNotFoundError:
            # Just released: it was the last claim, and its owner has removed the folder.
            return False

    def _clear_abandoned(self) -> None:
        """Remove what dead processes left in the folder: drafts, and claims of finished keys."""
        try:
            entries = sorted(self.folder.iterdir())
        except FileNotFoundError:
            return
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.name.startswith("."):
                    self._clear_draft(entry)
                    continue
                holder = self._holder(entry)
                if holder is None:
                    entry.rmdir()
                elif self._is_abandoned(holder) and self._take_over(entry.name, holder):
                    self.release(entry.name)

    def _clear_draft(self, entry: Path) -> None:
        """Remove a draft, or the file of a clock reading, that nobody will finish."""
        if not self._is_abandoned(entry):
            return
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _make_folder(path: Path) -> None:
    """Make a folder whose parents another process may be removing because they are empty."""
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):
            path.mkdir(parents=True, exist_ok=True)
            return
    raise FileNotFoundError(errno.ENOENT, "its parent folder keeps vanishing", str(path))


def _remove(path: Path) -> None:
    """Remove a claim: the file, then its folder, unless another has claimed in between."""
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()


# Processes --------------------------------------------------------------------------------------


def own_identity() -> str:
    """Host, machine, process, its start time and eight digits of chance, joined by "~"."""
    host = socket.gethostname().replace("/", "-").replace("~", "-")[:64]
    start = _state_and_start(os.getpid())
    chance = uuid.uuid4().hex[:8]
    return f"{host}~{_machine()}~{os.getpid()}~{start[1] if start else 0}~{chance}"


@functools.cache
def _machine() -> str:
    """Twelve digits, the same for processes that see each other's process numbers.

    Containers on one host may share its name and boot id, but number their processes on their own.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        text = boot + os.readlink("/proc/self/ns/pid")
    except OSError:
        text = uuid.uuid4().hex
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_dead(token: str) -> bool:
    """Whether a token's process ran on this machine and has ended; False when that is unknown."""
    fields = token.split("~")
    if len(fields) < 5 or fields[1] != _machine() or not fields[2].isdecimal():
        return False
    pid = int(fields[2])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    found = _state_and_start(pid)
    # Another start time: the number has gone to another process since.
    return found is not None and (found[0] in "ZX" or str(found[1]) != fields[3])


def _state_and_start(pid: int) -> tuple[str, int] | None:
    """(state letter, start time in clock ticks since boot) of a process on Linux, else None."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field, the program's name in brackets, may hold anything.
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])
