"""The report in a real browser: filters, order, slider, keyboard, saved pictures, and silence on
the network. Screenshots go to ``USS_SCREENSHOTS``, else to pytest's folder.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.files import atomic_write
from tests.helpers.report_runs import CLASSES, SmallRun, make_run
from tools.report.collect import collect
from tools.report.page import render
from tools.report.run_files import Request
from uss.pipeline import PIPELINE

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

BROWSERS, DRIVER = ("chromium", "chromium-browser", "google-chrome"), "chromedriver"
IMAGES = 201
LOAD_MS = 2000
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    if not any(map(shutil.which, BROWSERS)) or not shutil.which(DRIVER):
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    return make_run(tmp_path_factory.mktemp("browser"), images=IMAGES // CLASSES)


@pytest.fixture(scope="module")
def page(run: SmallRun) -> str:
    """Address of a report with 201 images."""
    path = run.root / "report.html"
    with atomic_write(path, "w") as file:
        file.write(render(collect(Request(run.root), PIPELINE, IMAGES, workers=1)))
    return path.as_uri()


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(run: SmallRun, downloads: Path) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, BROWSERS)))
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    always = {"profile.default_content_setting_values.automatic_downloads": 1}
    options.add_experimental_option("prefs", always)
    service = webdriver.ChromeService(executable_path=shutil.which(DRIVER))
    driver = webdriver.Chrome(options=options, service=service)
    place = {"behavior": "allow", "downloadPath": str(downloads)}
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", place)
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: Any, page: str) -> Iterator[Any]:
    """The page, freshly opened; afterwards neither the console nor the network has seen a thing."""
    browser.get_log("browser"), browser.get_log("performance")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.get(page)
    yield browser
    assert browser.get_log("browser") == []
    asked = set(requests(browser)) - {page}
    assert {address.partition(":")[0] for address in asked} <= {"data", "blob"}, asked


def requests(browser: Any) -> Iterator[str]:
    """Addresses that the page asked for since the last look."""
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            yield message["params"]["request"]["url"].partition("#")[0]


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """Folder of pictures to be looked at."""
    folder = Path(os.environ.get("USS_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def shoot(browser: Any, shots: Path) -> Callable[[str], None]:
    """Keep a picture of the window under a name."""

    def save(name: str) -> None:
        time.sleep(0.3)  # the charts' last frame
        assert browser.save_screenshot(str(shots / f"{name}.png"))

    return save


def wait(browser: Any, until: Callable[[Any], Any]) -> Any:
    return WebDriverWait(browser, 20, poll_frequency=0.05).until(until)


def show(browser: Any, selector: str) -> Any:
    """The first element, scrolled to the top of the window, its charts drawn."""
    element = browser.find_element(By.CSS_SELECTOR, selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'start'})", element)
    drawn = "return [...arguments[0].querySelectorAll('.plot')].every(p => p.querySelector('svg'))"
    wait(browser, lambda b: b.execute_script(drawn, element))
    return element


def cards(browser: Any) -> list[dict[str, str]]:
    """The ``data-`` attributes of the cards that are shown, in order."""
    code = "return [...document.querySelectorAll('.card')].filter(c => !c.hidden)"
    return browser.execute_script(f"{code}.map(c => ({{...c.dataset}}))")


def choose(browser: Any, name: str, text: str) -> None:
    Select(browser.find_element(By.NAME, name)).select_by_visible_text(text)


def test_it_opens_quickly_and_makes_only_the_pictures_that_are_near(opened: Any, page: str) -> None:
    assert len(cards(opened)) == IMAGES
    timing = "return performance.getEntriesByType('navigation')[0].loadEventEnd"
    took = []
    for _ in range(3):  # the best of three: others may use this machine
        took.append(opened.execute_script(timing))
        opened.get(page)
    print(f"load: {', '.join(f'{ms:.0f} ms' for ms in took)}")
    assert min(took) < LOAD_MS
    made = "return document.querySelectorAll('.card img[src]').length"
    assert opened.execute_script(made) == 0
    show(opened, "#gallery")
    wait(opened, lambda b: b.execute_script(made) > 0)
    assert opened.execute_script(made) < IMAGES  # of five times as many


def test_all_sections_draw(opened: Any, shoot: Callable[[str], None]) -> None:
    for name in ("summary", "classes", "confusion", "sizes", "refinement", "gallery", "training"):
        show(opened, f"#{name}")
        shoot(f"desktop-{name}")
    assert not opened.find_elements(By.CSS_SELECTOR, ".js-plotly-plot .error")


def test_filters_and_order(opened: Any) -> None:
    assert opened.find_element(By.ID, "shown").text == f"{IMAGES} of {IMAGES} images"
    scores = [float(card["after"]) for card in cards(opened)]
    assert scores == sorted(scores) and scores[0] < scores[-1]
    choose(opened, "order", "gained most by refinement")
    gains = [float(card["gain"]) for card in cards(opened)]
    assert gains == sorted(gains, reverse=True)
    choose(opened, "order", "lost most by refinement")
    assert [float(card["gain"]) for card in cards(opened)] == gains[::-1]
    choose(opened, "truth", "n00000002")
    shown = cards(opened)
    assert len(shown) == IMAGES // CLASSES
    assert {card["truth"] for card in shown} == {"2"}
    assert opened.find_element(By.ID, "shown").text == f"{len(shown)} of {IMAGES} images"
    choose(opened, "change", "worse")
    assert [card["name"] for card in cards(opened)] == ["n00000002/validation_2_0001"]
    choose(opened, "predicted", "n00000001")
    assert cards(opened) == [] and opened.find_element(By.ID, "none").is_displayed()
    opened.find_element(By.CSS_SELECTOR, "#filters [type=reset]").click()
    wait(opened, lambda b: len(cards(b)) == IMAGES)


def test_classes_sort_in_chart_and_table(opened: Any) -> None:
    show(opened, "#classes")
    order = Select(opened.find_element(By.ID, "class-order"))
    numbers = "return JSON.parse(document.getElementById('class-rows').textContent)"
    rows = opened.execute_script(numbers)
    axis = "return document.querySelector('[data-figure=classes]').layout.yaxis.categoryarray"
    table = "return [...document.querySelectorAll('#class-table tbody tr')].map(r => +r.dataset.id)"
    for value, key in (
        ("worst", lambda row: row["after"]),
        ("best", lambda row: -row["after"]),
        ("gained", lambda row: row["before"] - row["after"]),
        ("id", lambda row: row["id"]),
    ):
        order.select_by_value(value)
        wanted = sorted(rows, key=key)
        assert opened.execute_script(table) == [row["id"] for row in wanted]
        assert opened.execute_script(axis) == [row["label"] for row in wanted]


def test_the_slider_by_keyboard_and_by_pointer(opened: Any, shoot: Callable[[str], None]) -> None:
    show(opened, "#cards")
    slider = opened.find_element(By.CSS_SELECTOR, ".card .stage input")
    cut = "return getComputedStyle(arguments[0].parentElement).getPropertyValue('--cut')"
    clip = (
        "return getComputedStyle(arguments[0].parentElement.querySelector('[data-layer=before]'))"
        ".clipPath"
    )
    slider.send_keys(Keys.ARROW_RIGHT)
    assert slider.get_attribute("value") == "51" and opened.execute_script(cut, slider) == "51%"
    before = opened.execute_script(clip, slider)
    slider.send_keys(Keys.HOME)
    assert opened.execute_script(cut, slider) == "0%"
    assert opened.execute_script(clip, slider) != before
    width = slider.size["width"]
    mouse = webdriver.ActionChains(opened)
    mouse.move_to_element_with_offset(slider, -width // 4, 0).click().perform()
    assert 10 < int(slider.get_attribute("value")) < 40
    shoot("slider")


def test_one_image_large_by_keyboard_alone(opened: Any, shoot: Callable[[str], None]) -> None:
    show(opened, "#cards")
    first, second = (card["name"] for card in cards(opened)[:2])
    button = opened.find_element(By.CSS_SELECTOR, ".card .enlarge")
    button.send_keys(Keys.ENTER)
    dialog = opened.find_element(By.ID, "large")
    assert dialog.is_displayed() and opened.find_element(By.ID, "large-name").text == first
    captions = [each.text for each in dialog.find_elements(By.TAG_NAME, "figcaption")]
    assert captions == ["image", "truth", "before refinement", "after refinement", "masks"]
    alts = [each.get_attribute("alt") for each in dialog.find_elements(By.CSS_SELECTOR, ".layer")]
    assert len(set(alts)) == len(alts) and all(first in alt for alt in alts)
    shoot("large")
    opened.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert opened.find_element(By.ID, "large-name").text == second
    opened.switch_to.active_element.send_keys(Keys.ESCAPE)
    wait(opened, lambda b: not dialog.is_displayed())
    assert "enlarge" in (opened.switch_to.active_element.get_attribute("class") or "")


def test_every_control_can_be_reached_and_is_seen_when_it_is(opened: Any) -> None:
    """Tab goes from the skip link through the page, and what has the focus has an outline."""
    seen = []
    outline = (
        "const e = document.activeElement; const near = e.closest('.stage') || e;"
        "return [e.tagName, e.id || e.name || e.className, getComputedStyle(near).outlineStyle]"
    )
    for _ in range(26):
        opened.switch_to.active_element.send_keys(Keys.TAB)
        tag, name, style = opened.execute_script(outline)
        seen.append((tag, name))
        assert style != "none", (tag, name)
    names = [name for _, name in seen]
    assert seen[0] == ("A", "skip") and "theme" in names and "class-order" in names


def test_dark_and_light(opened: Any, shoot: Callable[[str], None]) -> None:
    colours = (
        "const s = getComputedStyle(document.body), p = document.querySelector('.js-plotly-plot');"
        "return [s.backgroundColor, s.color, p.layout.paper_bgcolor]"
    )
    show(opened, "#classes")
    light = opened.execute_script(colours)
    opened.find_element(By.ID, "theme").click()
    dark = opened.execute_script(colours)
    assert all(a != b for a, b in zip(light, dark))
    assert opened.find_element(By.ID, "theme").text == "Light page"
    for name in ("summary", "classes", "confusion", "gallery", "training"):
        show(opened, f"#{name}")
        shoot(f"dark-{name}")
    opened.find_element(By.ID, "theme").click()
    assert opened.execute_script(colours) == light
    feature = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    opened.get(opened.current_url)
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
    show(opened, "#classes")
    assert opened.execute_script(colours)[0] == dark[0]


def test_a_phone_scrolls_only_down(opened: Any, shoot: Callable[[str], None]) -> None:
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    opened.refresh()
    for name in ("summary", "classes", "confusion", "sizes", "refinement", "gallery", "training"):
        show(opened, f"#{name}")
        shoot(f"phone-{name}")
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert opened.execute_script(wide) == 0


def test_on_a_phone_the_text_of_a_chart_is_whole_and_apart(opened: Any) -> None:
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    titles = """
        const box = (part) => part.getBoundingClientRect();
        return [...arguments[0].querySelectorAll('.xtitle, .x2title')]
            .map((title) => [box(title).left, box(title).right]).sort((a, b) => a[0] - b[0]);
    """
    outside = """
        return [...arguments[0].querySelectorAll('.bartext')].filter((text) => {
            const whole = text.closest('svg').getBoundingClientRect();
            return text.getBoundingClientRect().right > whole.right;
        }).map((text) => text.textContent);
    """
    opened.refresh()
    spans = opened.execute_script(titles, show(opened, "#chart-masks"))
    assert len(spans) == 2 and spans[0][1] < spans[1][0], spans
    for selector in ("#refinement", "#training"):
        assert opened.execute_script(outside, show(opened, selector)) == []


def test_every_chart_and_image_is_saved_as_png(opened: Any, downloads: Path, shots: Path) -> None:
    for old in downloads.iterdir():
        old.unlink()
    buttons = opened.find_elements(By.CSS_SELECTOR, ".save")
    charts = opened.find_elements(By.CSS_SELECTOR, ".plot")
    assert len(buttons) == len(charts) >= 7
    for button in buttons:
        opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()
    show(opened, "#cards")
    opened.find_element(By.CSS_SELECTOR, ".card .enlarge").click()
    opened.find_element(By.ID, "save-large").click()
    wanted = len(buttons) + 1

    def saved(browser: Any) -> list[Path]:
        found = [path for path in downloads.iterdir() if path.suffix == ".png"]
        return found if len(found) == wanted and all(p.stat().st_size for p in found) else []

    for path in wait(opened, saved):
        head = path.read_bytes()[:24]
        assert head.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", head[16:24])
        assert width > 300 and height > 200, path.name
        shutil.copy(path, shots / f"saved-{path.name}")
