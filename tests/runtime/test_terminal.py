"""runtime.terminal: control characters are escaped, on every stdout and stderr, and without one."""

from __future__ import annotations

import io
import sys

import pytest

from runtime.errors import PredictorError
from runtime.terminal import MOST_SHOWN, Reasons, markdown_text, message, plain_streams, printable, require_stdout, show


class Broken(io.StringIO):
    """A stream whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("größe 桥接 😀 a|b", "größe 桥接 😀 a|b"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\nerror: forged\r\t", "a\\nerror: forged\\r\\t"),
        ("\x9b2J\x07\x7f", "\\x9b2J\\x07\\x7f"),
        ("evil\u202egnp.exe\u2066\u200b\u2028", "evil\\u202egnp.exe\\u2066\\u200b\\u2028"),
        ("lone \ud800 and \udcff", "lone \\ud800 and \\udcff"),
        ("\U000e0041", "\\U000e0041"),
        ("C:\\new", "C:\\new"),
    ],
)
def test_printable_keeps_a_name_on_its_line(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text).isprintable()


def test_message_keeps_own_line_breaks_and_escapes_those_of_names() -> None:
    assert message("2 faults:\n  - a\n  - b\nerror: forged") == "2 faults:\n  - a\n  - b\\nerror: forged"


@pytest.mark.parametrize(
    "value",
    [10**4400, None, [[["\x1b"]]], "x" * 5000, 10**400, {"a\n": 1}],
    ids=["unprinted", "none", "lists", "long", "digits", "object"],
)
def test_show_gives_one_line_for_any_value_of_a_file(value: object) -> None:
    line = show(value)
    assert line.isprintable()
    assert len(line) <= MOST_SHOWN + 4


def test_show_of_endlessly_nested_lists_gives_one_line() -> None:
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    assert show(value) == "unknown"


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("line break", "line break"),
        ("sem_tiny", "sem_tiny"),
        ("a|b", "a\\|b"),
        ("a\nb", "a\\\\nb"),
        ("<img src=x>", "\\<img src=x\\>"),
        ("__init__", "\\__init_\\_"),
        ("*[a](b)*`c`", "\\*\\[a\\](b)\\*\\`c\\`"),
        ("$x$ &lt;", "\\$x\\$ \\&lt;"),
    ],
)
def test_markdown_text_escapes_markup_in_a_name(text: str, cell: str) -> None:
    assert markdown_text(text) == cell


def test_a_plain_stream_escapes_controls_and_keeps_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with plain_streams():
        print("one\ttwo\n\x1b[2Jthree\rfour\u202e")
        sys.stderr.write("\r50 %")
        sys.stderr.write("\x1b[A\x1b[A")
        sys.stderr.write("\x1b[A\x1b[2J")
    assert sys.stdout is out
    assert sys.stderr is err
    assert out.getvalue() == "one\ttwo\n\\x1b[2Jthree\\rfour\\u202e\n"
    assert err.getvalue() == "\r50 %\x1b[A\x1b[A\\x1b[A\\x1b[2J"


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "gr\\xf6\\xdfe \\u6865"), ("cp1252", "größe \\u6865")])
def test_a_character_that_cannot_be_encoded_is_escaped(
    encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding, newline="\n"))
    with plain_streams():
        print("größe 桥", flush=True)
    assert raw.getvalue() == f"{shown}\n".encode(encoding)


def test_without_streams_output_is_lost_and_not_redirected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with plain_streams():
        print("to nobody")
        print("to nobody", file=sys.stderr, flush=True)
        assert not sys.stderr.isatty()
        with pytest.raises(PredictorError, match="there is no stdout to write to: take a file"):
            require_stdout("take a file")
    assert sys.stderr is None


def test_a_broken_stderr_is_silent_and_a_broken_stdout_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Broken())
    monkeypatch.setattr(sys, "stderr", Broken())
    with plain_streams():
        print("words", file=sys.stderr)
        print("more words", file=sys.stderr)
        with pytest.raises(BrokenPipeError):
            print("results")


def test_the_first_reasons_are_kept_in_words_and_the_others_counted() -> None:
    reasons = Reasons(2)
    assert reasons.lines("not read: ", " frames") == []
    for text in ("a\nb", "c", "d", "e"):
        reasons.add(ValueError(text))
    assert reasons.count == 4
    assert reasons.lines("not read: ", " frames") == ["not read: a\\nb", "not read: c", "and 2 more frames"]
