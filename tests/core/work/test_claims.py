"""Claims among real processes: one owner at a time, whatever is killed, stopped or left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.files import file_system_time
from core.work import claims as module
from core.work.claims import Claims
from tests.conftest import ROOT
from tests.helpers.processes import PATIENCE_S, wait_until

LONG_S = 600.0


HEAD = "import os, sys, time\nfrom pathlib import Path\nfrom core.work.claims import Claims\n"


@contextlib.contextmanager
def started(code: str, *arguments: object) -> Iterator[subprocess.Popen]:
    """A Python process that has printed "ready"; ended with the block."""
    with subprocess.Popen(
        [sys.executable, "-c", HEAD + code, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


OTHER = "node7~0123456789ab~17~400~deadbeef~0"  # a token of another machine


def forge(folder: Path, key: str, token: str, age_s: float) -> None:
    """A claim of another machine, with its last sign of life so long ago."""
    place = folder / key
    place.mkdir(parents=True)
    path = place / token
    path.touch()
    then = file_system_time(folder) - age_s
    os.utime(path, (then, then))


OWNER = """
claims = Claims(Path(sys.argv[1]), float(sys.argv[2]))
assert claims.claim("n01/a")
print("ready", flush=True)
time.sleep(60)
"""


def test_one_owner_until_release(tmp_path: Path) -> None:
    folder = tmp_path / "claims"
    with Claims(folder, LONG_S) as first, Claims(folder, LONG_S) as second:
        assert first.claim("n01/a") and not second.claim("n01/a") and not first.claim("n01/a")
        assert second.claim("n01/b") and second.claim(".hidden/../b")
        assert first.still_mine("n01/a") and not second.still_mine("n01/a")
        second.release("n01/a")
        assert first.still_mine("n01/a"), "only the owner can release"
        first.release("n01/a")
        assert not first.still_mine("n01/a") and second.claim("n01/a")
    assert not folder.exists()


def test_a_folder_that_keeps_vanishing_is_made_again(tmp_path: Path) -> None:
    with Claims(tmp_path / "claims", LONG_S) as claims:
        for _ in range(3):
            assert claims.claim("a")
            claims.release("a")
            (tmp_path / "claims").rmdir()


RACER = """
folder, count = Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
with Claims(folder / "claims", 600) as claims:
    held = list(range(count))
    while held:
        again = []
        for key in held:
            done = folder / f"{key}.done"
            if done.exists():
                continue
            if not claims.claim(f"key/{key}"):
                again.append(key)
                continue
            if not done.exists():
                with open(folder / f"{key}.log", "a") as file:
                    file.write("done\\n")
                assert claims.still_mine(f"key/{key}")
                done.touch()
            claims.release(f"key/{key}")
        held = again
"""


def test_racing_processes_do_each_key_once(tmp_path: Path) -> None:
    count = 150
    for key in range(0, count, 2):
        forge(tmp_path / "claims", f"key%2F{key}", OTHER, age_s=2 * LONG_S)
    with contextlib.ExitStack() as stack:
        racers = [stack.enter_context(started(RACER, tmp_path, count)) for _ in range(4)]
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        assert [racer.wait(timeout=PATIENCE_S) for racer in racers] == [0] * 4
    assert [(tmp_path / f"{key}.log").read_text() for key in range(count)] == ["done\n"] * count
    assert not (tmp_path / "claims").exists()


def test_the_folder_may_vanish_while_a_claim_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner releases the last claim and removes the folder before the time is asked."""
    folder = tmp_path / "claims"
    forge(folder, "a", OTHER, age_s=0)

    def vanished(path: Path) -> float:
        shutil.rmtree(path)
        raise FileNotFoundError(path)

    with Claims(folder, LONG_S) as claims:
        with monkeypatch.context() as patch:
            patch.setattr("core.work.claims.file_system_time", vanished)
            assert not claims.claim("a")
        assert claims.claim("a")


def test_a_killed_owner_is_succeeded_at_once_by_one(tmp_path: Path) -> None:
    with started(OWNER, tmp_path, LONG_S) as owner, Claims(tmp_path, LONG_S) as claims:
        assert not claims.claim("n01/a")
        owner.kill()
        # Nobody waits for it yet: a process that has ended counts as gone all the same.
        wait_until(lambda: claims.claim("n01/a"))
        with Claims(tmp_path, LONG_S) as late:
            assert not late.claim("n01/a")


STOPPED = """
folder = Path(sys.argv[1])
claims = Claims(folder / "claims", 1.0)
assert claims.claim("a")
print("ready", flush=True)
while not (folder / "go").exists():
    time.sleep(0.05)
if claims.still_mine("a"):
    (folder / "result").write_text("old owner")
claims.close()
print("ended", flush=True)
"""


def test_a_stopped_owner_loses_its_claim_and_notices(tmp_path: Path) -> None:
    with started(STOPPED, tmp_path) as owner, Claims(tmp_path / "claims", 1.0) as claims:
        time.sleep(1.5)
        assert not claims.claim("a"), "an owner that works shows signs of life"
        os.kill(owner.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        wait_until(lambda: claims.claim("a"))
        assert time.monotonic() - stopped > 0.7
        (tmp_path / "result").write_text("new owner")
        (tmp_path / "go").touch()
        os.kill(owner.pid, signal.SIGCONT)
        assert owner.stdout is not None and owner.stdout.readline() == "ended\n"
        assert (tmp_path / "result").read_text() == "new owner"
        assert claims.still_mine("a"), "the old owner's end must not release what it lost"


@pytest.mark.parametrize("token", [OTHER, "whatever", "~~~~~"])
def test_claims_of_other_machines_end_by_the_time_out_alone(tmp_path: Path, token: str) -> None:
    forge(tmp_path, "old", token, age_s=61)
    forge(tmp_path, "young", token, age_s=50)
    with Claims(tmp_path, 60) as claims:
        assert claims.claim("old") and not claims.claim("young")
    assert [path.name for path in tmp_path.iterdir()] == ["young"]


def test_machines_clocks_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forge(tmp_path, "young", OTHER, age_s=0)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    with Claims(tmp_path, 60) as claims:
        assert not claims.claim("young")


def test_one_of_two_takes_over_and_a_slow_one_takes_nothing(tmp_path: Path) -> None:
    forge(tmp_path, "a", OTHER, age_s=100)
    first, slow = Claims(tmp_path, 60), Claims(tmp_path, 60)
    judged = slow._holder(tmp_path / "a")
    assert judged is not None and slow._is_abandoned(judged)
    assert first.claim("a")
    assert not slow._take_over("a", judged) and first.still_mine("a")
    first.release("a")
    assert first.claim("a"), "claimed anew, under a token that was never there"
    assert not slow._take_over("a", judged) and first.still_mine("a")
    first.close()
    slow.close()


def test_a_reused_process_number_does_not_keep_a_claim(tmp_path: Path) -> None:
    own = Claims(tmp_path, LONG_S)
    fields = own._identity.split("~")
    fields[3] = str(int(fields[3]) - 1)
    forge(tmp_path, "a", "~".join([*fields, "0"]), age_s=0)
    assert own.claim("a")
    own.close()


def test_a_process_that_cannot_be_seen_is_not_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(OWNER, tmp_path, LONG_S):
        # As in another container on this host: the same boot, other process numbers.
        monkeypatch.setattr(module, "_machine", lambda: "another")
        (holder,) = (tmp_path / "n01%2Fa").iterdir()
        assert not module.is_dead(holder.name)
        with Claims(tmp_path, LONG_S) as claims:
            assert not claims.claim("n01/a")


def test_what_the_dead_left_is_cleared_away(tmp_path: Path) -> None:
    with started(OWNER, tmp_path, LONG_S) as owner:
        (holder,) = (tmp_path / "n01%2Fa").iterdir()
        owner.kill()
        owner.wait()
    (tmp_path / f".{holder.name}.new").mkdir()
    (tmp_path / "empty").mkdir()
    with Claims(tmp_path, LONG_S) as claims, Claims(tmp_path, LONG_S) as other:
        assert claims.claim("b")
        other.close()
        assert [path.name for path in tmp_path.iterdir()] == ["b"], "a live claim stays"
    assert not tmp_path.exists()


def test_an_owner_that_works_past_its_deadline_is_taken_over(tmp_path: Path) -> None:
    """Its heartbeat is a thread, which lives on where the owner hangs."""
    with Claims(tmp_path / "c", 0.5, deadline_s=0.3) as hung, Claims(tmp_path / "c", 0.5) as other:
        assert hung.claim("a") and not other.claim("a")
        end = time.monotonic() + 60
        while not other.claim("a"):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert not hung.still_mine("a")
        hung.release("a")
        assert other.still_mine("a"), "the late owner does no harm"


def test_without_a_deadline_a_claim_is_kept(tmp_path: Path) -> None:
    with Claims(tmp_path / "c", 0.5) as owner, Claims(tmp_path / "c", 0.5) as other:
        assert owner.claim("a")
        time.sleep(1.5)
        assert not other.claim("a") and owner.still_mine("a")
