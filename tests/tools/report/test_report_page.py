"""The report of a run: its numbers, what it says where something is missing, and hostile names."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from core.data.imagenet_s import list_images, split_folder
from core.data.label_maps import load_label, save_label
from core.errors import UserError
from core.files import read_json, write_json
from core.version import VERSION
from core.work.mask_store import MaskStore
from tests.conftest import ROOT
from tests.helpers.report_runs import CLASSES, MASKS, SmallRun, make_run
from tools.evaluate.compare import compare
from tools.evaluate.folder import evaluate
from tools.report import command
from tools.report.collect import PageData, collect
from tools.report.page import points, render
from tools.report.run_files import Request, find
from tools.submission.results import evaluation_path
from uss.pipeline import PIPELINE


class Page(HTMLParser):
    """Elements of a page as (tag, attributes), and the text of each script by its id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            attributes = self.elements[-1][1]
            self.scripts[attributes.get("id") or attributes.get("class") or "code"] = data
        elif not self._inside:
            self.text += data


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def own(finished: SmallRun, tmp_path: Path) -> SmallRun:
    """A copy that a test may change."""
    shutil.copytree(finished.root, tmp_path / "run")
    return SmallRun(tmp_path / "run", tmp_path / "run" / "data", tmp_path / "run" / "result")


def content_of(run: SmallRun, **options: Any) -> PageData:
    return collect(Request(run.root, **options), PIPELINE, limit=200, workers=1)


def test_the_numbers_are_those_of_evaluate_and_compare(finished: SmallRun) -> None:
    content = content_of(finished)
    for name, folder in (("before", "validation_unrefined"), ("after", "validation")):
        wanted = evaluate(finished.result / folder, finished.data, "validation", CLASSES).scores
        assert content.scores[name].miou == wanted.miou
        assert content.scores[name].mbiou == wanted.mbiou
        np.testing.assert_equal(content.scores[name].bins, wanted.bins)
    after = [row.after for row in content.classes]
    np.testing.assert_allclose(np.mean(after), content.scores["after"].miou)
    pairs = compare(
        finished.result / "validation_unrefined",
        finished.result / "validation",
        finished.data,
        "validation",
        CLASSES,
    )
    wanted_gains = {each.key: (each.before, each.after) for each in pairs.images}
    assert {each.key: (each.before, each.after) for each in content.gallery} == wanted_gains
    changes = {each.key[-4:]: each.change for each in content.gallery}
    assert changes == {"0001": "worse", "0002": "better"}


def test_clusters_stand_under_their_classes(finished: SmallRun) -> None:
    content = content_of(finished)
    assert content.clusters == {0: 0, 1: 2, 2: 3, 3: 1}
    assert content.confusion is not None
    # Nothing but background is ever wrong in the label maps of this run.
    wrong = content.confusion[1:, :] - np.diag(np.diag(content.confusion))[1:, :]
    assert not wrong.any() and np.diag(content.confusion)[1:].all()
    assert [row.name for row in content.classes[1:]] == ["n00000001", "n00000002", "n00000003"]
    for each in content.gallery:
        assert each.ids("truth") == [int(each.key[8])]
        assert set(each.ids("after")) <= set(each.ids("truth"))


def test_training_threshold_masks_and_times(finished: SmallRun) -> None:
    content = content_of(finished)
    assert [curve.title for curve in content.curves] == [
        "Step 1: pretraining, ResNet18",
        "Step 3: segmenter",
    ]
    curve = content.curves[1]
    assert list(curve.losses) == ["loss", "pixel"]
    assert curve.steps[-1] == 18 and curve.losses["loss"][-1] == pytest.approx(1.4)
    assert curve.progress == "epoch 6 of 12"
    assert content.threshold is not None and content.threshold.threshold == 0.4
    assert content.times == {"pretrain resnet18": 90.0}
    assert [each.masks for each in content.gallery] == [2] * 6
    assert content.refinement is not None
    assert content.refinement.rules == {"vote": 6}
    assert content.refinement.seconds()["decode"] == 0.25
    assert content.refinement.peak_mib() == 700.5


def test_the_page_states_scores_and_provenance(finished: SmallRun) -> None:
    content = content_of(finished)
    page = Page(render(content))
    assert f"{100 * content.scores['after'].miou:.2f} %" in page.text
    assert "With SAM, which was trained on masks that people made: not fully" in page.text
    assert "SAM (vit_t, sha256 abababababab)" in page.text
    assert "0.40, chosen by: validation masks" in page.text
    assert "matched on validation masks" in page.text
    assert f"version {VERSION} of this program" in page.text
    cards = [attributes for tag, attributes in page.elements if tag == "article"]
    assert len(cards) == 6
    figures = [name for name in page.scripts if name.startswith("figure-")]
    assert len(figures) == len(set(figures)) >= 7
    for name in figures:
        assert json.loads(page.scripts[name])["data"], name


def test_the_page_needs_nothing_else(finished: SmallRun) -> None:
    page = Page(render(content_of(finished)))
    for tag, attributes in page.elements:
        assert tag not in ("iframe", "object", "embed", "base"), tag
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:")), f"<{tag} {name}={target}>"
    policy = [a["content"] for t, a in page.elements if "content-security-policy" in str(a).lower()]
    assert policy and str(policy[0]).startswith("default-src 'none'")


def test_every_control_and_picture_has_a_name(finished: SmallRun) -> None:
    text = render(content_of(finished))
    page = Page(text)
    for tag, attributes in page.elements:
        if tag == "img":
            assert "alt" in attributes
        if tag == "input":
            assert attributes.get("aria-label")
        if attributes.get("role") == "img":
            assert attributes.get("aria-label")
        if tag == "select":
            assert re.search(
                r"<label>[^<]+<select[^>]*" + str(attributes.get("name") or "id"), text
            )
    tags = [tag for tag, _ in page.elements]
    assert tags.count("h1") == 1 and tags.count("main") == 1 and "nav" in tags
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


HOSTILE = "<img src=x onerror=alert(1)>&amp;'\"{{7*7}}"


def test_hostile_names_are_text(own: SmallRun) -> None:
    """A class folder, settings, a reason and the archive's text that would run as code."""
    for folder in [*own.root.rglob("n00000002")]:
        folder.rename(folder.with_name(HOSTILE))
    path = own.folder.segmenter / "config.json"
    write_json(path, {**read_json(path, ""), "preset": "</script><script>alert(2)</script>"})
    write_json(own.result / "failed_validation.json", {HOSTILE: "<b onclick=alert(3)>"})
    log = own.folder.segmenter / "log.jsonl"
    log.write_text('{"step": 1, "epoch": 1, "lr": 1, "</script><script>": 2}\n')
    page = Page(render(content_of(own)))
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
    assert sum(tag == "script" for tag, _ in page.elements) == sum(
        tag == "script" for tag, _ in Page(render(content_of(own))).elements
    )
    assert HOSTILE in page.text and "<b onclick=alert(3)>" in page.text
    assert "</script><script>alert(2)</script>" in page.text
    rows = json.loads(page.scripts["class-rows"])
    assert rows[3]["name"] == HOSTILE or rows[1]["name"] == HOSTILE
    labels = [row["label"] for row in rows]
    assert not [label for label in labels if "<" in label]  # plotly would read it as a tag
    assert all("<" not in content for name, content in page.scripts.items() if name[:6] == "figure")


def test_without_truth_there_are_pictures_and_frequencies_only(own: SmallRun) -> None:
    shutil.rmtree(own.data / "validation-segmentation")
    content = content_of(own)
    assert not content.scores and content.confusion is None
    assert len(content.gallery) == 6 and content.gallery[1].after is None
    assert {"image", "before", "after", "masks"} == set(content.gallery[1].uris)
    assert [row.predicted_images for row in content.classes] == [6, 1, 1, 1]
    page = Page(render(content))
    assert "There is no ground truth for this split" in page.text
    assert "mIoU after" not in page.text and "Truth shows" not in page.text
    assert {"figure-frequencies", "figure-masks", "figure-seconds"} <= set(page.scripts)
    assert not {"figure-classes", "figure-confusion"} & set(page.scripts)


def test_a_plain_folder_without_match_shows_clusters(own: SmallRun) -> None:
    """Like testB: images in one folder, no masks, no match at hand."""
    for folder, suffix in (
        (own.data / "testB", ".JPEG"),
        (own.result / "testB", ".png"),
        (own.result / "testB_unrefined", ".png"),
    ):
        folder.mkdir()
        source = (
            own.data / "test"
            if suffix == ".JPEG"
            else own.result / folder.name.replace("testB", "validation")
        )
        for place, path in enumerate(sorted(source.rglob("*_0001.*"))):
            if suffix == ".JPEG":
                Image.open(path).convert("RGB").resize((90, 60)).save(folder / f"{place}.JPEG")
            else:
                save_label(folder / f"{place}.png", np.full((60, 90), place, np.int32))
    for name in ("match.json", "match_origin.json"):
        (own.result / name).unlink()
    content = content_of(own, split="testB")
    assert content.images == len(content.gallery) == 3
    assert content.matched == "not matched: ids are those of clusters"
    assert [row.name for row in content.classes] == [
        "background",
        *(f"cluster {n}" for n in (1, 2, 3)),
    ]
    assert "cluster 2" in Page(render(content)).text


def test_a_run_without_any_result_still_has_a_page(tmp_path: Path) -> None:
    page = Page(render(collect(Request(tmp_path), PIPELINE, limit=10, workers=1)))
    assert "There are no label maps of any split" in page.text
    assert "article" not in [tag for tag, _ in page.elements]
    with pytest.raises(UserError, match="there are no label maps of --split test: run test.py"):
        collect(Request(tmp_path, split="test"), PIPELINE, limit=10, workers=1)


def test_the_segmenters_own_predictions_stand_in(own: SmallRun) -> None:
    own.folder.predictions("validation").parent.mkdir()
    (own.result / "validation").rename(own.folder.predictions("validation"))
    shutil.rmtree(own.result)
    content = content_of(own)
    assert set(content.scores) == {"after"} and not content.refined
    page = Page(render(content))
    assert "test.py has not refined them" in page.text
    assert "mIoU prediction" in page.text and "before refinement" not in page.text


def test_broken_pieces_are_named_and_do_not_stop_the_page(own: SmallRun) -> None:
    first, second, third = list_images(split_folder(own.data, "validation"))[:3]
    (own.result / "validation" / f"{first.key}.png").write_bytes(b"no picture")
    (own.result / "validation_unrefined" / f"{second.key}.png").unlink()
    third.path.write_bytes(b"\xff\xd8")
    log = own.folder.segmenter / "log.jsonl"
    log.write_text('{"step": 1}\n[]\nhalf a li\n{"step": 2, "epoch": 1, "lr": 0.5, "loss": NaN}\n')
    own.folder.times.write_text("nonsense")
    own.folder.threshold.write_text('{"threshold": "high"}')
    content = content_of(own)
    assert set(content.failed) == {first.key, second.key}
    broken = {each.key: each.problem for each in content.gallery if each.problem}
    assert set(broken) == {first.key, second.key, third.key}
    assert str(third.path) in broken[third.key]
    assert content.curves[1].losses["loss"] == [None]
    assert content.threshold is None and not content.times
    page = Page(render(content))
    assert "2 of 6 images have no label map that can be read" in page.text


def test_a_damaged_archive_and_a_ledger_of_other_things_say_nothing(own: SmallRun) -> None:
    with zipfile.ZipFile(own.result / "result.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("method.txt", "a method")
        start = archive.getinfo("method.txt").header_offset + 30 + len("method.txt")
    content = bytearray((own.result / "result.zip").read_bytes())
    content[start : start + 6] = b"\xff" * 6
    (own.result / "result.zip").write_bytes(content)
    for ledger in (own.result / "validation" / ".ledger").glob("*/*.jsonl"):
        entries = [json.loads(line) for line in ledger.read_text().splitlines()]
        lines = [json.dumps({**entry, "seconds": [1.0]}) for entry in entries]
        ledger.write_text("\n".join(lines) + "\n")
    found = content_of(own)
    assert found.method == ""
    assert found.refinement is not None and not found.refinement.images


def test_results_of_another_checkpoint_are_not_taken_for_this_runs(
    own: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(str(own.result), str(tmp_path / "result"))
    monkeypatch.chdir(tmp_path)
    assert find(Request(own.root), PIPELINE).result == tmp_path / "result"
    (own.folder.segmenter / "checkpoint.pth.tar").write_bytes(b"trained anew")
    assert find(Request(own.root), PIPELINE).result is None
    named = find(Request(own.root, result=tmp_path / "result"), PIPELINE)
    assert named.result == tmp_path / "result"
    assert any("another checkpoint" in note for note in named.notes)


def test_scores_that_do_not_fit_the_label_maps_are_said(own: SmallRun) -> None:
    assert not [note for note in content_of(own).notes if "scores file" in note]
    path = evaluation_path(own.result, "validation")
    scores = read_json(path, "")
    scores["after_refinement"]["miou"] += 0.01
    write_json(path, scores)
    assert [note for note in content_of(own).notes if "scores file" in note]


def test_facts_of_label_maps_that_were_replaced_do_not_count(own: SmallRun) -> None:
    item = list_images(split_folder(own.data, "validation"))[0]
    path = own.result / "validation" / f"{item.key}.png"
    save_label(path, np.ones_like(load_label(path)))
    refinement = content_of(own).refinement
    assert refinement is not None and item.key not in refinement.images
    assert len(refinement.images) == 5


def test_looking_for_stored_masks_writes_nothing(tmp_path: Path) -> None:
    assert MaskStore.fingerprints(tmp_path / "none") == []
    MaskStore(tmp_path / "masks", MASKS)
    (tmp_path / "masks" / "other").mkdir()
    write_json(tmp_path / "masks" / "other" / "settings.json", {"format": 1, "masks": MASKS})
    before = sorted(tmp_path.rglob("*"))
    assert MaskStore.fingerprints(tmp_path / "masks") == [MASKS]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("after", "before", "text"),
    [
        (0.0123, 0.0, "+1.23"),
        (0.0, 0.5, "−50.00"),
        (1e-6, 0.0, "±0.00"),
        (0.66239, 0.61754, "+4.49"),  # 66.24 and 61.75 stand beside it
        (None, 0.5, "–"),
        (0.5, float("nan"), "–"),
    ],
)
def test_points_have_a_sign(after: float | None, before: float | None, text: str) -> None:
    assert points(after, before) == text


def test_the_command_writes_one_file(own: SmallRun) -> None:
    arguments = ["report", str(own.root), "--workers", "1", "--images", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "uss", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "2 of 6 images" in done.stderr
    text = (own.root / "report.html").read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and text.count('<article class="card"') == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["{run}/nowhere"], "is not a folder"),
        (["{run}", "--data", "{run}/nowhere"], "is not a folder"),
        (["{run}", "--images", "-1"], "0 or more"),
        (["{run}", "--attention"], "pixel-attention network"),
        (["{run}", "--output", "/proc/none/report.html"], "cannot write"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str], message: str, finished: SmallRun
) -> None:
    with pytest.raises(UserError, match=message):
        command.main([argument.format(run=finished.root) for argument in arguments], PIPELINE)


def test_attention_maps_are_drawn_on_request(own: SmallRun, attention_checkpoint: Path) -> None:
    folder = own.folder.pixel_attention("resnet18")
    folder.mkdir(parents=True)
    shutil.copy(attention_checkpoint, folder / "checkpoint.pth.tar")
    content = collect(Request(own.root), PIPELINE, limit=2, maps="attention", workers=1)
    for each in content.gallery:
        picture = Image.open(io.BytesIO(base64.b64decode(each.uris["attention"].partition(",")[2])))
        assert picture.size == (each.width, each.height)
    assert "Attention is drawn from the lowest value" in Page(render(content)).text
