"""A rater's way in a real browser, with the server and with a page of its own. Skips without Chromium."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pipeline import alone
from studies import SECRET, small_study

from vtlvlm.ratings.answers import Answers, steps_of
from vtlvlm.ratings.offline import write_pages
from vtlvlm.ratings.study_folder import Study

sync = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'vtlvlm[browser]'")
pytest.importorskip("starlette")
CHROMIUM = Path("/usr/bin/chromium")
if not CHROMIUM.exists():
    pytest.skip("needs Chromium: apt-get install chromium", allow_module_level=True)
sync.expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync.sync_playwright() as play:
        found = play.chromium.launch(executable_path=str(CHROMIUM), headless=True, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield found
        found.close()


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return small_study(tmp_path / "study")


class Serving:
    """``vtlvlm study serve`` in a process of its own."""

    def __init__(self, study: Study, *more: str, port: int = 0) -> None:
        command = [sys.executable, "-m", "vtlvlm", "study", "serve", str(study.folder), "--port", str(port), *more]
        self.process = subprocess.Popen(command, env=alone(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        found = re.search(r"http://\S+:(\d+)/\S*", self.said)
        assert found, self.said
        self.link, self.port = found[0], int(found[1])

    def end(self, kill: bool = False) -> None:
        self.process.kill() if kill else self.process.terminate()
        self.process.wait(timeout=20)
        assert self.process.stdout is not None
        self.process.stdout.close()


def watched(browser: Any, **given: Any) -> tuple[Any, list[str], list[str]]:
    """A page, the addresses that it asks for, and what it complains of."""
    page = browser.new_page(**given)
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return page, asked, complaints


def one_step(page: Any, study: Study, number: int, name: str, check: int) -> None:
    """Answer what the page shows, by the keyboard."""
    if name == "identify":
        sync.expect(page.get_by_text("Which action is this?")).to_be_visible()
        assert page.locator("video").count() == 0
        assert page.locator(".cards li").count() == 2
        page.keyboard.press("2")
    elif check:
        sync.expect(page.get_by_text("A short check")).to_be_visible()
        for _ in range(3):
            page.keyboard.press(str(check))
    else:
        sync.expect(page.locator("video")).to_be_visible()
        page.locator("video").evaluate("e => e.readyState >= 2 || new Promise(done => e.addEventListener('loadeddata', done))")
        for key in "432":
            page.keyboard.press(key)
    assert page.evaluate("document.activeElement.id") == "next"
    page.keyboard.press("Enter")


def session_of(page: Any, study: Study, slot: int, steps: list[tuple[int, str]]) -> None:
    for number, name in steps:
        sync.expect(page.locator("#place")).to_have_text(f"Trial {number + 1} of {len(study.orders[slot])}")
        one_step(page, study, number, name, study.orders[slot][number].target)


def test_a_rater_and_a_kill(browser: Any, study: Study) -> None:
    """From consent to thanks; the server is killed between two answers, and the rater goes on with the code."""
    steps: list[tuple[int, str]] = [*steps_of(study.orders[0])]
    server = Serving(study)
    assert "0 of 4 places taken" in server.said
    page, asked, complaints = watched(browser)
    page.goto(server.link)
    page.get_by_role("button", name="I agree: begin").click()
    session_of(page, study, 0, steps[:7])
    sync.expect(page.locator("#place")).to_have_text(f"Trial {steps[7][0] + 1} of {len(study.orders[0])}")
    code = page.locator("#code b").text_content()
    server.end(kill=True)
    page.keyboard.press("1" if steps[7][1] == "identify" else "4")
    while page.locator("fieldset:not(:has(:checked))").count():
        page.keyboard.press("4")
    page.get_by_role("button", name="Next").click()
    sync.expect(page.locator("#said")).to_contain_text("The server does not answer. Your answer is still here")
    assert complaints, "the browser notes the lost connection"
    complaints.clear()
    assert len(Answers(study).sessions()[0].answers) == 7
    again = Serving(study, port=server.port)
    assert "1 of 4 places taken" in again.said
    page.get_by_role("button", name="Next").click()  # the same page goes on
    sync.expect(page.locator("#place")).to_have_text(f"Trial {steps[8][0] + 1} of {len(study.orders[0])}")
    page.reload()
    page.get_by_label("Your code").fill(code.upper())
    page.get_by_role("button", name="Continue").click()
    session_of(page, study, 0, steps[8:])
    sync.expect(page.get_by_role("heading", name="Thank you")).to_be_visible()
    (found,) = Answers(study).sessions()
    assert found.code == code
    assert [(answer.trial, answer.step) for answer in found.answers] == steps
    assert not complaints
    assert all(url.startswith(f"http://127.0.0.1:{server.port}/") for url in asked)
    assert not [word for word in SECRET for url in asked if word.lower() in url.lower()]
    page.close()
    again.end()


def test_withdrawal_deletes_the_file(browser: Any, study: Study) -> None:
    server = Serving(study)
    page, _, complaints = watched(browser)
    page.goto(server.link)
    page.get_by_role("button", name="I agree: begin").click()
    session_of(page, study, 0, [*steps_of(study.orders[0])][:1])
    sync.expect(page.locator("video")).to_be_visible()
    assert len(Answers(study).codes()) == 1
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Withdraw").click()
    sync.expect(page.locator("#said")).to_have_text("Your answers are deleted.")
    assert Answers(study).codes() == []
    assert not complaints
    page.close()
    server.end()


def test_a_choice_is_needed(browser: Any, study: Study) -> None:
    """Nothing is chosen beforehand, and nothing is sent without a choice; the mouse works as the keys do."""
    server = Serving(study, "--token")
    page, _, complaints = watched(browser, viewport={"width": 390, "height": 844}, has_touch=True)
    page.goto(server.link)  # the secret link
    page.get_by_role("button", name="I agree: begin").click()
    sync.expect(page.get_by_text("Which action is this?")).to_be_visible()
    assert page.locator("input:checked").count() == 0
    page.get_by_role("button", name="Next").click()
    sync.expect(page.locator("#said")).to_have_text("Please choose one.")
    page.get_by_text("cannot tell").click()
    page.get_by_role("button", name="Next").click()
    sync.expect(page.locator("video")).to_be_visible()
    page.locator("fieldset").nth(0).get_by_text("good").click()
    page.get_by_role("button", name="Next").click()
    sync.expect(page.locator("#said")).to_have_text("Please answer all questions.")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing sticks out on a phone
    assert [answer.choice for answer in Answers(study).sessions()[0].answers] == [-1]
    assert not complaints
    page.close()
    server.end()


def test_a_page_without_a_server(browser: Any, study: Study, tmp_path: Path) -> None:
    """Answered from the file, left and taken up again, saved, and imported."""
    from vtlvlm.cli import main

    file = write_pages(study, tmp_path / "pages")[1]
    steps: list[tuple[int, str]] = [*steps_of(study.orders[1])]
    page, asked, complaints = watched(browser)
    page.goto(file.as_uri())
    page.get_by_role("button", name="I agree: begin").click()
    session_of(page, study, 1, steps[:5])
    page.reload()
    page.get_by_role("button", name="Continue").click()  # the code is filled in
    session_of(page, study, 1, steps[5:])
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save my answers").click()
    saved = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(saved)
    assert re.fullmatch(r"[a-z0-9]{8}\.jsonl", saved.name)
    assert main(["study", "import", str(study.folder), str(saved)]) == 0
    (found,) = Answers(study).sessions()
    assert (found.slot, [(answer.trial, answer.step) for answer in found.answers]) == (1, steps)
    assert all(answer.ms >= 0 for answer in found.answers)
    assert json.loads(saved.read_text().splitlines()[0])["study"] == study.hash
    assert all(url.startswith(("file:", "data:")) for url in asked)
    assert not complaints
    page.close()
