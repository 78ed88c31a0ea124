"""The schema of recorded folders: absent is the first, newer ones are refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.files import read_json, write_json
from core.pipeline.folders import RunFolder
from core.schema import SCHEMA, stamped, unstamped
from core.work.ledger import Ledger
from core.work.mask_store import MaskStore

HERE = Path("folder/settings.json")


def test_a_stamp_comes_off_again() -> None:
    assert stamped({"seed": 1}) == {"seed": 1, "schema": SCHEMA}
    assert unstamped(stamped({"seed": 1}), HERE) == {"seed": 1}


def test_without_a_number_it_is_the_first() -> None:
    assert unstamped({"seed": 1}, HERE) == {"seed": 1} == unstamped({"seed": 1, "schema": 1}, HERE)


def test_a_newer_one_is_refused() -> None:
    with pytest.raises(UserError) as error:
        unstamped({"schema": SCHEMA + 1}, HERE)
    assert str(error.value) == (
        f"{HERE} was made by a newer version of this project (schema {SCHEMA + 1}, this one knows "
        f"{SCHEMA}); update this one, or choose another folder"
    )


@pytest.mark.parametrize("number", [0, -1, 1.0, True, None, "1", [1], 10**20])
def test_other_values_are_refused_in_one_short_line(number: Any) -> None:
    with pytest.raises(UserError) as error:
        unstamped({"schema": number}, HERE)
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


def test_what_is_recorded_states_the_schema(tmp_path: Path) -> None:
    """And is read again without making anything of the number."""
    run = RunFolder(tmp_path / "run")
    run.state_pipeline("uss")
    assert read_json(run.record, "a record") == {"pipeline": "uss", "schema": SCHEMA}
    assert run.stated_pipeline() == "uss"
    ledger = Ledger(tmp_path / "labels", {"seed": 1})
    ledger.open()
    path = ledger.folder / "settings.json"
    assert read_json(path, "settings") == {"seed": 1, "schema": SCHEMA}
    (again,) = Ledger.others(tmp_path / "labels", Ledger(tmp_path / "labels", {"seed": 2}))
    assert again.settings == {"seed": 1} and again.folder == ledger.folder
    store = MaskStore(tmp_path / "masks", {"points": 4})
    assert read_json(store.folder / "settings.json", "settings")["schema"] == SCHEMA
    assert MaskStore(tmp_path / "masks", {"points": 4}).folder == store.folder
    assert MaskStore.fingerprints(tmp_path / "masks") == [{"points": 4}]


def test_a_ledger_of_other_settings_and_a_newer_version_stops_the_work(tmp_path: Path) -> None:
    """Its results must not be overwritten by code that does not understand their record."""
    newer = Ledger(tmp_path, {"seed": 1})
    write_json(newer.folder / "settings.json", {"seed": 1, "schema": SCHEMA + 1})
    own = Ledger(tmp_path, {"seed": 2})
    with pytest.raises(UserError, match="newer version"):
        own.open()
    assert not own.folder.exists()
