"""The refiner in its child process: hung, dead and starved children, and new ones."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.data.imagenet_s import ImageItem
from core.errors import StopWork, UserError
from core.work.worklist import Made
from refine.one_image import Setup
from refine.settings import Masks, Sections
from refine.supervised import SupervisedRefiner

SETUP = Setup(
    Sections(masks=Masks(points_per_batch=64)), "none:none", Path("none"), None, Path("none")
)


def maker(setup: Setup) -> Callable[[Any], Any]:
    """Runs in the child: what happens to an image is told by its name."""
    batch = setup.config.masks.points_per_batch
    assert setup.masks is not None
    if setup.masks.name == "refuse":
        raise UserError("no SAM weights")
    if setup.masks.name == "die":
        os._exit(9)

    def answer(request: tuple[str, ImageItem]) -> Any:
        what, item = request
        if what == "network":
            return b"network"
        name, _, when = item.key.partition("-")
        if when == "always" or (when == "once" and batch == 64):
            if name == "hang":
                time.sleep(600)
            if name == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "memory":
                raise MemoryError
        if name == "broken":
            raise UserError("cut off")
        if name == "full":
            raise StopWork("disk full")
        return Made([b"png"], {"batch": batch, "pid": os.getpid()})

    return answer


def refiner(setup: Setup = SETUP, seconds: float = 1.5, **settings: Any) -> SupervisedRefiner:
    return SupervisedRefiner(setup, seconds, f"{__name__}:maker", **settings)


def item(key: str) -> ImageItem:
    return ImageItem(Path(f"{key}.png"), key)


@pytest.mark.parametrize(
    ("kind", "reason"), [("hang", "no answer within"), ("kill", "SIGKILL"), ("memory", "memory")]
)
def test_an_image_without_answer_is_tried_once_more_with_smaller_batches(
    kind: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with refiner() as refine:
        assert refine(item("fine")).facts["batch"] == 64
        assert refine(item(f"{kind}-once")).facts["batch"] == 8
        said = capsys.readouterr().err
        assert f"{kind}-once" in said and reason in said and "smaller batches" in said
        with pytest.raises(UserError, match=f"given up after two attempts: .*{reason}") as error:
            refine(item(f"{kind}-always"))
        assert not isinstance(error.value, StopWork)
        # The next image has a whole batch again.
        assert refine(item("fine")).facts["batch"] == 64
        assert refine.network_only(item(f"{kind}-always")) == b"network"
        assert refine.processes == 5


def test_a_broken_image_costs_no_process_and_a_full_disk_stops() -> None:
    with refiner() as refine:
        with pytest.raises(UserError, match="cut off"):
            refine(item("broken"))
        with pytest.raises(StopWork, match="disk full"):
            refine(item("full"))
        assert refine(item("fine")) and refine.processes == 1


@pytest.mark.parametrize(
    ("kind", "reason"), [("refuse", "no SAM weights"), ("die", "could not start.*exit code 9")]
)
def test_a_child_that_cannot_start_stops_the_work(kind: str, reason: str) -> None:
    with refiner(replace(SETUP, masks=Path(kind))) as refine:
        with pytest.raises(StopWork, match=reason):
            refine(item("fine"))


def test_a_new_process_every_so_many_images() -> None:
    with refiner(images_per_child=2) as refine:
        pids = [refine(item("fine")).facts["pid"] for _ in range(5)]
    assert pids[0] == pids[1] and pids[2] == pids[3] and len(set(pids)) == 3
    assert refine.processes == 3


def test_nothing_is_started_where_nothing_is_to_do() -> None:
    with refiner() as refine:
        assert refine.processes == 0
