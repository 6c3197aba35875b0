"""The page in a real browser without a window: Debian's chromium, driven by playwright (extra `browser`)."""

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from pipeline import Pipeline
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route
from videos import encode, moving_block

from vtlvlm.app.server import Settings, application
from vtlvlm.dictionary import EventDictionary
from vtlvlm.recognizers.recognizer import ActionRecognizer
from vtlvlm.rejection.rule import SIGNALS, RejectionRule
from vtlvlm.web.serving import bound

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'vtlvlm[browser]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, such as Debian's (apt-get install chromium)")
HOSTILE = "<img src=x onerror=document.title='broken-in'>fall down"
WAIT = 60_000  # ms


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    camera = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", *camera])
        yield found
        found.close()


def served(model: Any, folder: Path, **settings: Any) -> Iterator[str]:
    """The address of the app in a thread."""
    yield from running(application(model, "mine", Settings(folder=folder, **settings)))


def running(app: Starlette) -> Iterator[str]:
    """The address of a server in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
    listening: socket.socket = bound("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    finally:  # a test that fails must not leave a thread for which Python waits
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def address(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of a bundle from a stranger, whose actions have hostile names."""
    model: Any = ActionRecognizer.from_checkpoint(bundle)
    model.classes[0] = HOSTILE
    dictionary = model.dictionary
    facts = {**dictionary.facts, "classes": model.classes}
    numbers = {name: array.copy() for name, array in dictionary.numbers.items()}
    numbers["pairs"][:, 0], numbers["pairs"][:, 1] = np.arange(8) + 1, 8
    numbers["class_clips"][:] = 5
    model.dictionary = EventDictionary(facts, numbers, dictionary.folder)
    yield from served(model, tmp_path_factory.mktemp("served"), clip=0.5)


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A page that fails the test if it asks another place for something, or has a defect."""
    context = browser.new_context()
    found = context.new_page()
    found.outside, found.broken = [], []
    found.on("request", lambda request: None if request.url.startswith((address, "data:", "blob:")) else found.outside.append(request.url))
    found.on("pageerror", lambda error: found.broken.append(str(error)))
    found.on("console", lambda said: found.broken.append(said.text) if "Content Security Policy" in said.text else None)
    found.goto(address)
    yield found
    assert not found.outside
    assert not found.broken
    assert "broken-in" not in found.title()
    context.close()


def sent(page: Any, file: Path, letter: str = "a") -> Any:
    page.set_input_files(f"#file-{letter}", file)
    clip = page.locator(f"#clip-{letter}")
    playwright.expect(clip.locator(".result")).to_be_visible(timeout=WAIT)
    playwright.expect(clip.locator(".work")).to_be_hidden(timeout=WAIT)
    return clip


def now(clip: Any) -> float:
    return float(clip.locator("video.clip").evaluate("video => video.currentTime"))


def test_upload_label_and_a_click_on_an_event(page: Any, clip: Path, model: Any) -> None:
    """An AVI, which the browser does not play itself."""
    expected = model.classify(clip)
    found = sent(page, clip)
    names = [HOSTILE if name == model.classes[0] else name for name, _ in expected.actions]
    assert found.locator(".bars .action").all_text_contents() == names
    assert found.locator(".answer strong").text_content() == names[0]
    video = found.locator("video.clip")
    playwright.expect(video).to_have_js_property("readyState", 4, timeout=WAIT)
    starts = [float(start) for start, _ in expected.events.spans[0].tolist()]
    assert found.locator(".window").count() == len(starts) == 4
    for number in (2, 1, 3):
        found.locator(".window").nth(number).click()
        assert now(found) == pytest.approx(starts[number], abs=1e-4)
        playwright.expect(found.locator(".window").nth(number)).to_have_class("window chosen now")
    head = found.locator(".playhead").evaluate("head => parseFloat(head.style.left)")
    assert head == pytest.approx(100 * starts[3] / expected.sampled.seconds, abs=0.5)


def test_by_keyboard_alone(page: Any, clip: Path, model: Any) -> None:
    """Tab to the sentence, arrows along it, Enter to go there, Tab to a code."""
    expected = model.classify(clip).events
    found = sent(page, clip)
    playwright.expect(found.locator("video.clip")).to_have_js_property("readyState", 4, timeout=WAIT)
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate_handle("() => document.activeElement").evaluate("element => element.classList.contains('window')"):
            break
    page.keyboard.press("Home")
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    playwright.expect(found.locator(".window").nth(2)).to_be_focused()
    playwright.expect(found.locator(".panel h3")).to_contain_text("Window 3 of 4")
    page.keyboard.press("Enter")
    assert now(found) == pytest.approx(float(expected.spans[0, 2, 0]), abs=1e-4)
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate_handle("() => document.activeElement").evaluate("element => element.classList.contains('chip')"):
            break
    code = int(page.evaluate_handle("() => document.activeElement").evaluate("element => parseInt(element.textContent)"))
    assert code in expected.ids[0].tolist()
    playwright.expect(found.locator(".panel h4")).to_have_text(f"Code {code}")


def test_a_code_shows_its_pictures_and_actions_as_text(page: Any, clip: Path, model: Any) -> None:
    found = sent(page, clip)
    shown = [code for code in model.classify(clip).events.ids[0].tolist() if model.dictionary[code].shown]
    chip, number = None, 0
    for number in range(4):
        found.locator(".window").nth(number).hover()
        chip = found.locator(".panel .chip").filter(has_text=str(shown[0]))
        if chip.count():
            break
    assert chip is not None
    chip.first.hover()
    playwright.expect(found.locator(".panel h4")).to_have_text(f"Code {shown[0]}")
    picture = found.locator(".code img").first
    playwright.expect(picture).to_have_js_property("naturalHeight", 96, timeout=WAIT)
    terms = found.locator(".code dt").all_text_contents()
    assert terms
    assert set(terms) <= {HOSTILE, model.classes[1]}
    assert page.locator("img[src='x']").count() == 0  # a name that is no element


def test_two_clips_and_another_one(page: Any, chain: Pipeline, clip: Path) -> None:
    other = sorted(chain.root.glob("*.avi"))[1]
    sent(page, clip)
    page.click("#second")
    sent(page, other, "b")
    playwright.expect(page.locator("#comparison")).to_be_visible()
    assert page.locator("#aligned .tile").count() == 8
    page.locator("#aligned .tile").first.hover()
    playwright.expect(page.locator(".pair-said")).to_contain_text("indow 1 of A")
    assert page.locator("#both tr").count() == 3
    page.locator("#clip-b .another").click()
    playwright.expect(page.locator("#comparison")).to_be_hidden()
    playwright.expect(page.locator("#clip-b .drop")).to_be_visible()


def test_segments_of_a_long_video(page: Any, model: Any, tmp_path: Path) -> None:
    """One movement between two rests; then a film in which nothing moves."""
    block = moving_block(30, falls=True, shade=40)
    film = np.concatenate([np.repeat(block[:1], 60, 0), block, np.repeat(block[-1:], 60, 0)])
    found = sent(page, encode(tmp_path / "long.mp4", film, rate=30))
    segments = model.segments(tmp_path / "long.mp4", clip=0.5).segments
    assert segments
    pieces = found.locator(".found button")
    assert pieces.count() == found.locator(".piece").count() == len(segments)
    pieces.last.click()
    assert now(found) == pytest.approx(segments[-1].start, abs=0.002)


def test_a_long_video_in_which_nothing_moves(page: Any, tmp_path: Path) -> None:
    found = sent(page, encode(tmp_path / "still.mp4", np.repeat(moving_block(30, falls=True, shade=40)[:1], 90, 0), rate=30))
    playwright.expect(found.locator(".found")).to_contain_text("nothing moves, or no action is likely enough")
    assert found.locator(".found button").count() == 0


def test_a_recording_from_the_camera(page: Any) -> None:
    page.click("#clip-a .record")
    playwright.expect(page.locator("#clip-a .length")).to_contain_text("3 s of", timeout=WAIT)
    page.click("#clip-a .stop")
    found = page.locator("#clip-a")
    playwright.expect(found.locator(".result")).to_be_visible(timeout=WAIT)
    playwright.expect(found.locator(".work")).to_be_hidden(timeout=WAIT)
    playwright.expect(found.locator("video.clip")).to_have_js_property("readyState", 4, timeout=WAIT)
    assert 0.5 < float(found.locator("video.clip").evaluate("video => video.duration")) < 30


def test_bad_files_are_one_line_and_the_next_one_works(page: Any, clip: Path, tmp_path: Path) -> None:
    error = page.locator("#clip-a .error")
    for name, content, said in (("empty.mp4", b"", "is empty (0 bytes)"), ("<b>x.mp4", b"no video" * 99, "<b>x.mp4: not a readable video")):
        (tmp_path / name).write_bytes(content)
        page.set_input_files("#file-a", tmp_path / name)
        playwright.expect(error).to_contain_text(said, timeout=WAIT)
        playwright.expect(page.locator("#clip-a .drop")).to_be_visible()
    sent(page, clip)
    playwright.expect(error).to_be_hidden()


def test_clips_go_when_the_page_is_left(browser: Any, model: Any, clip: Path, tmp_path: Path) -> None:
    for address in served(model, tmp_path):
        context = browser.new_context()
        page = context.new_page()
        page.goto(address)
        sent(page, clip)
        assert len(list(tmp_path.glob("*/*"))) == 1
        page.goto("about:blank")
        until = time.monotonic() + 30
        while list(tmp_path.glob("*/*")) and time.monotonic() < until:
            time.sleep(0.05)
        assert not list(tmp_path.glob("*/*"))
        context.close()


def test_a_file_beyond_the_limit_is_not_sent(browser: Any, model: Any, clip: Path, tmp_path: Path) -> None:
    for address in served(model, tmp_path, megabytes=0.001):
        context = browser.new_context()
        page = context.new_page()
        page.goto(address)
        page.set_input_files("#file-a", clip)
        playwright.expect(page.locator("#clip-a .error")).to_contain_text("this server takes 1 KB at most")
        context.close()


def test_without_a_dictionary_the_page_says_how_to_make_one(browser: Any, chain: Pipeline, clip: Path, tmp_path: Path) -> None:
    for address in served(ActionRecognizer.from_checkpoint(chain.bundle), tmp_path):
        context = browser.new_context()
        page = context.new_page()
        page.goto(address)
        found = sent(page, clip)
        playwright.expect(found.locator(".code")).to_contain_text("has no event dictionary")
        assert found.locator(".code img").count() == 0
        context.close()


def test_the_link_with_the_token_opens_the_page(browser: Any, model: Any, clip: Path, tmp_path: Path) -> None:
    for address in served(model, tmp_path, token="secret"):
        context = browser.new_context()
        page = context.new_page()
        assert page.goto(address).status == 401
        page.goto(f"{address}?token=secret")
        assert page.url == address  # the token is not left in the address
        sent(page, clip)
        assert "secret" not in page.evaluate_handle("() => document").evaluate("page => page.cookie")
        context.close()


def test_a_page_of_another_site_gets_nothing_done(browser: Any, model: Any, tmp_path: Path) -> None:
    """Another server of this machine is another site: it may not send a clip, show the page in a frame, or embed its files."""
    for address in served(model, tmp_path):
        html = f"<iframe src='{address}'></iframe><img src='{address}codes/0.webp'>"
        for other in running(Starlette(routes=[Route("/", lambda request, html=html: HTMLResponse(html))])):
            context = browser.new_context()
            page = context.new_page()
            page.goto(other.replace("127.0.0.1", "localhost"))
            with page.expect_event("requestfailed", lambda request, place=f"{address}clips": request.url == place):
                page.evaluate_handle(f"() => {{ fetch('{address}clips', {{method: 'POST', mode: 'no-cors', body: 'x'}}).catch(() => 0) }}")
            assert not list(tmp_path.glob("*/*"))
            assert page.locator("img").evaluate("image => image.naturalWidth") == 0
            assert page.frames[1].url != address
            context.close()


def test_a_linear_probe_shows_what_it_looked_at(browser: Any, chain: Pipeline, clip: Path, tmp_path: Path) -> None:
    assert chain("probe", chain.root, "--features", chain.features, "--export", tmp_path / "probe") == 0
    (tmp_path / "served").mkdir()
    for address in served(ActionRecognizer.from_checkpoint(tmp_path / "probe"), tmp_path / "served"):
        context = browser.new_context()
        page = context.new_page()
        page.goto(address)
        found = sent(page, clip)
        playwright.expect(found.locator(".panel")).to_contain_text("has no event sentence")
        assert (found.locator(".window").count(), found.locator(".tick").count()) == (0, 8)
        page.click("#second")
        sent(page, clip, "b")
        playwright.expect(page.locator("#likeness")).to_contain_text("no event sentences to lay beside")
        context.close()


def test_a_clip_of_nothing_known_is_told_so_in_words(browser: Any, bundle: Path, clip: Path, tmp_path: Path) -> None:
    """With a rule of rejection whose threshold no clip reaches."""
    model: Any = ActionRecognizer.from_checkpoint(bundle)
    training = torch.zeros(2, model.vtem.event_dim)
    model.rejection = RejectionRule(0.5, training, np.zeros((2, len(SIGNALS))), np.ones(2))
    for address in served(model, tmp_path):
        context = browser.new_context()
        page = context.new_page()
        page.goto(address)
        found = sent(page, clip)
        playwright.expect(found.locator(".none")).to_have_text(
            "This clip is unlike anything the model was trained on. These are the nearest actions of its list."
        )
        playwright.expect(found.locator(".answer")).to_contain_text("None of its actions")
        playwright.expect(found.locator(".answer")).to_contain_text("nearest: ")
        context.close()


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
def test_nothing_sticks_out_of_the_page(browser: Any, address: str, clip: Path, width: int, scheme: Any) -> None:
    context = browser.new_context(viewport={"width": width, "height": 700}, color_scheme=scheme)
    page = context.new_page()
    page.goto(address)
    sent(page, clip)
    page.click("#second")
    sent(page, clip, "b")
    playwright.expect(page.locator("#comparison")).to_be_visible()
    assert page.evaluate_handle("() => document.documentElement").evaluate("page => page.scrollWidth") <= width
    context.close()
