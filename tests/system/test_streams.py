"""Standard streams that nothing harmful passes, and that may fail."""

import errno
import io
import sys
import threading
import warnings
from pathlib import Path

import pytest
from pipeline import shell
from videos import block_clips

from vtlvlm.system.streams import Stream, Unread, gist, harmless, one_line_each
from vtlvlm.system.text import plain, shown_lines


class Failing(io.StringIO):
    """Takes one text, then none."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        if self.getvalue():
            raise OSError(self.number, "gone")
        return super().write(text)


def test_control_characters_appear_as_escapes_and_lines_stay() -> None:
    assert shown_lines("a\x1b[31m\tb\n\x9b2Jc\r") == "a\\x1b[31m\tb\n\\x9b2Jc\r"
    page = io.StringIO()
    Stream(page).write("\x1b]0;title\x07 red\n")
    Stream(page).write("\x1b[A\x1b[A")  # two bars up
    assert page.getvalue() == "\\x1b]0;title\\x07 red\n\x1b[A\x1b[A"


def test_likenesses_of_what_an_encoding_lacks() -> None:
    assert plain("█ 3 × 4 – é → 走", "ascii") == "# 3 x 4 - \\xe9 -> \\u8d70"
    assert plain("█ é", "latin-1") == "# é"
    assert plain("█ é – 走", "utf-8") == "█ é – 走"


def test_work_goes_on_without_a_reader_unless_it_has_no_other_purpose() -> None:
    work = Stream(Failing(errno.EPIPE))
    for text in ("a", "b", "c"):
        assert work.write(text) == 1
    assert work.failure is not None
    vital = Stream(Failing(errno.EPIPE), vital=True)
    vital.write("a")
    with pytest.raises(Unread):
        vital.write("b")


def test_streams_are_the_callers_own_again(capsys: pytest.CaptureFixture[str]) -> None:
    own = sys.stdout, sys.stderr
    with harmless(vital=False):
        print("\x1b[2J")
        print("\x07", file=sys.stderr)
    assert (sys.stdout, sys.stderr) == own
    assert capsys.readouterr() == ("\\x1b[2J\n", "\\x07\n")


def test_warnings_and_errors_of_threads_are_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    def stumble() -> None:
        raise ValueError("in a\x1b thread\nsecond line")

    with one_line_each(debug=False):
        warnings.warn("two\nlines \x1b[1m", stacklevel=1)
        thread = threading.Thread(target=stumble)
        thread.start()
        thread.join()
    assert capsys.readouterr().err == ("vtlvlm: warning: two lines \\x1b[1m\nvtlvlm: warning: ValueError: in a\\x1b thread\n")


def test_the_gist_of_an_error_from_another_process() -> None:
    text = 'Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File "a"\nValueError: why\n'
    assert gist(ValueError(text.replace("Original ", "Original\n"))) == "ValueError: why"
    assert gist(ValueError("first\nsecond")) == "first"
    assert gist(ValueError("")) == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_user_writes_to_a_full_device(tmp_path: Path) -> None:
    """As coreutils' `echo > /dev/full`: a line, and a code that is not success."""
    videos = block_clips(tmp_path / "videos")
    for what in ("--help", "prepare --help", f"prepare {videos} --output {videos}/../index.parquet"):
        done = shell(f"vtlvlm {what} > /dev/full")
        assert done.returncode == 1
        assert done.stderr == b"vtlvlm: standard output: No space left on device; send it to another place\n"
    assert (tmp_path / "index.parquet").is_file()  # results do not hang on it


def test_user_closes_the_output(tmp_path: Path) -> None:
    """A closed descriptor's number goes to the next file, and prints land in it."""
    videos = block_clips(tmp_path / "videos")
    done = shell(f"vtlvlm prepare {videos} >&-")
    assert done.returncode == 1
    assert done.stderr == b"vtlvlm: standard output is closed; send it to a file or to /dev/null\n"
    done = shell(f"vtlvlm prepare {videos} --output {videos}/../index.parquet 2>&-")
    assert done.returncode == 0
    assert b"left out: none" in done.stdout
