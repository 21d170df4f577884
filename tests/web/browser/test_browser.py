"""The page in a real browser, headless: every tab, with pictures of it. ``make test-web`` runs this.

It needs Chromium and the package playwright, and is skipped without them. Pictures go to the folder $WEB_PICTURES, by
default output/web.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from uniperceiver_v2 import Predictor

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get("DETECTRON2_DATASETS") or ROOT / "datasets") / "digit_scenes" / "images" / "test"
SCENE = DATA / "000001000002.png"
PICTURES = Path(os.environ.get("WEB_PICTURES", ROOT / "output" / "web"))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WAIT = 120_000  # milliseconds, on a busy machine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt-get install chromium)"),
    pytest.mark.skipif(not DATA.is_dir(), reason="digit_scenes is not prepared"),
]
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("gradio", reason="gradio is not installed")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A server as `make web` starts it, with 40 scenes to search. Ctrl-C has to end it."""
    folder = tmp_path_factory.mktemp("scenes")
    for number in range(1, 41):
        shutil.copy(DATA / f"{1000000 + number:012d}.png", folder)
    command = [sys.executable, "-m", "uniperceiver_v2.web", "--examples", str(DATA), "--search", str(folder)]
    # A shell that started the tests in the background has told them to ignore Ctrl-C.
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=heed)
    try:
        lines = [server.stdout.readline() for _ in range(2)]
        yield re.search(r"http://\S+", lines[1]).group()
        server.send_signal(signal.SIGINT)
        assert server.wait(180) in (0, 130)
    finally:
        server.kill()


@pytest.fixture(scope="module")
def predictor():
    """The model that the server has. What the page shows has to be its answers."""
    return Predictor.from_zoo("digit_scenes/small")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # tests may run as root


@pytest.fixture
def page(browser, address):
    """The page, with a scene uploaded. It must fetch nothing from elsewhere, and complain about nothing."""
    opened = browser.new_page(viewport={"width": 1240, "height": 900})
    opened.set_default_timeout(WAIT)
    asked, complaints = [], []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    opened.goto(address)
    opened.get_by_role("heading", name="Uni-Perceiver v2").wait_for()
    yield opened
    elsewhere = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert elsewhere == []
    assert [text for text in complaints if "413" not in text] == []
    opened.close()


def upload(page, path=None):
    page.locator("#picture input[type=file]").set_input_files(path or SCENE)
    page.locator("#picture img").first.wait_for()


def picture_of(page, name):
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.mouse.move(0, 0)
    page.wait_for_timeout(500)  # until what fades has faded
    page.screenshot(path=PICTURES / f"web_{name}.jpg", type="jpeg", quality=80, full_page=True)


def tab(page, name):
    page.get_by_role("tab", name=name).click()


def press(page, name):
    page.get_by_role("button", name=name, exact=True).click()


def test_detect_an_uploaded_picture(page):
    upload(page)
    press(page, "Detect")
    page.get_by_text(re.compile(r"^\d+ objects?\.$")).wait_for()
    page.locator("#detect-picture img").wait_for()
    assert page.get_by_role("gridcell").count() >= 6
    picture_of(page, "detect")
    page.get_by_label("Labels to choose from").first.fill("a digit")
    press(page, "Detect")
    page.get_by_role("gridcell", name="a digit").first.wait_for()


def test_caption_of_an_example(page, predictor):
    place = 6
    page.locator("button.gallery-item").nth(place).click()
    page.locator("#picture img").first.wait_for()
    tab(page, "Caption")
    press(page, "Caption")
    page.wait_for_function("[...document.querySelectorAll('textarea, input')].some(x => x.value.includes('log-like'))")
    expected = predictor.caption(sorted(DATA.iterdir())[place])
    shown = page.locator("textarea, input").evaluate_all("boxes => boxes.map(box => box.value)")
    assert expected.text in shown
    number = f"{abs(expected.log_likelihood):.2f}"
    assert any(text.startswith("log-likelihood") and number in text for text in shown)
    picture_of(page, "caption")


def test_ground_phrases(page, predictor):
    phrases = ["a yellow two", "the red eight", "a purple nine"]
    upload(page)
    tab(page, "Ground")
    page.get_by_label("Phrases to look for").fill(", ".join(phrases))
    press(page, "Find")
    page.get_by_text(re.compile(r"^\d+ objects?\. Nothing for: a purple nine")).wait_for()
    expected = [box.label for box in predictor.ground(SCENE, phrases).above(0.3)]
    assert set(expected) == set(phrases[:2])
    shown = page.locator("#ground-table").get_by_role("gridcell").all_inner_texts()
    assert sorted(text.strip() for text in shown if text.strip() in phrases) == sorted(expected)
    picture_of(page, "ground")


def test_classify(page, predictor):
    seven = min((DATA.parents[1] / "digits" / "test" / "seven").iterdir())
    upload(page, seven)
    tab(page, "Classify")
    press(page, "Classify")
    page.get_by_text(re.compile(r"^\d+%$")).first.wait_for()
    (best,) = predictor.classify(seven).top(1)
    assert best[0] == "seven"
    assert page.get_by_test_id("label-output-value").inner_text() == best[0]
    picture_of(page, "classify")


def test_search_by_text_and_by_picture(page):
    tab(page, "Search")
    page.locator("#search-text textarea, #search-text input").first.fill("a green three to the left of a white two")
    press(page, "Search by text")
    page.get_by_text(re.compile(r"^0\.\d\d · 0000")).first.wait_for()
    first = page.get_by_text(re.compile(r"^\d\.\d\d · 0000")).first.inner_text()
    upload(page)
    picture_of(page, "search")
    press(page, "Search by the picture")
    page.get_by_text(f"1.00 · {SCENE.name}").first.wait_for()
    assert first != f"1.00 · {SCENE.name}"


def test_what_cannot_be_answered_is_said(page, tmp_path):
    press(page, "Detect")
    page.get_by_text("Choose a picture first").wait_for()
    picture_of(page, "error")
    broken = tmp_path / "broken.png"
    broken.write_bytes(SCENE.read_bytes()[:300])
    page.locator("#picture input[type=file]").set_input_files(broken)
    page.get_by_label("Clear").or_(page.get_by_label("Remove")).first.wait_for()
    press(page, "Detect")
    page.get_by_text("Broken.png:").wait_for()
    assert page.get_by_text("Traceback").count() == 0
