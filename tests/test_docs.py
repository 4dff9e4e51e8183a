"""README and docs: the commands parse, the links resolve, the sentences are short."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
from places import ROOT

import sem_clip
from runtime import cli

NAMES = ("README.md", "CONTRIBUTING.md", "RELEASE.md", "SECURITY.md")
PAGES = [*(ROOT / name for name in NAMES), *sorted((ROOT / "docs").glob("*.md"))]
LONGEST_README = 130
MEAN_WORDS, MOST_WORDS = 18, 35
LARGEST_PICTURE = {".png": 60_000, ".jpg": 140_000}
MODULES = ("benchmarks.", "export.")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
LINK_TEXT = re.compile(r"\[([^\]]*)\]\([^)\s]+\)")
INLINE = re.compile(r"`([^`]+)`")
FENCE = re.compile(r"^ *```")
FILE = re.compile(r"\b(?:export|runtime|calibration|benchmarks|tests|docs)/[\w/.-]*\.(?:py|md|toml|sh|png)\b")
BARE_FILE = re.compile(r"^\w+\.(?:py|sh)$")
WRAPPED = re.compile(r"\\\n\s*")
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


class ParsedError(BaseException):
    """Raised in place of running a command whose arguments parsed. No handler of the program catches it."""


def split_page(page: Path) -> tuple[list[str], str]:
    """The code blocks of a page, indented or fenced, and the text around them."""
    code: list[str] = []
    text: list[str] = []
    block: list[str] = []
    fenced = after_blank = False
    for line in [*page.read_text(encoding="utf-8").splitlines(), ""]:
        fence = bool(FENCE.match(line))
        indented = line.startswith("    ") and (after_blank or bool(block))
        if fence or fenced or indented:
            block += [] if fence else [line.strip()]
        if (fence and fenced) or (block and not (fence or fenced or indented)):
            code.append("\n".join(block))
            block = []
        if not (fence or fenced or indented):
            text.append(line)
        fenced ^= fence
        after_blank = not line.strip()
    return code, "\n".join(text)


def prose(text: str) -> Iterator[str]:
    """Paragraphs and list items, in one line each; headings, tables and link targets aside."""
    kept = [line for line in text.splitlines() if not line.lstrip().startswith(("|", "#", "!["))]
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", "\n".join(kept)):
        line = LINK_TEXT.sub(r"\1", paragraph)
        line = INLINE.sub("code", line).replace("\n", " ").strip(" -*")
        if line:
            yield re.sub(r"^\d+\. ", "", line)


def sentences(text: str) -> list[str]:
    """The sentences of the prose; an item that is no sentence counts as one."""
    found = [part for line in prose(text) for part in re.split(r"(?<=[.!?])[\"')*]* +(?=[\"'(*`]*[A-Z0-9a-z])", line)]
    return [part for part in found if re.search(r"\w", part)]


def commands(code: Sequence[str]) -> Iterator[list[str]]:
    """The words of each command line in blocks of code, without comments; `a && b | c` are three commands."""
    for block in code:
        for line in WRAPPED.sub("", block).splitlines():
            if not line.startswith(("sem-clip ", "python ", "pytest ", "make ", "bash ", "pip ")):
                continue
            words: list[str] = []
            for word in [*shlex.split(line, comments=True), "&&"]:
                if word in ("&&", "|", ";"):
                    yield words
                    words = []
                else:
                    words.append(word)


def run_until_parsed(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Hand `words` to the program that they name; it stops once its own parser has taken them."""
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, *given: Any, **named: Any) -> NoReturn:
        parse(parser, *given, **named)
        raise ParsedError

    arguments = cli._arguments

    def arguments_only(*given: Any) -> NoReturn:
        arguments(*given)
        raise ParsedError

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        patch.setattr(cli, "_arguments", arguments_only)
        patch.setattr(sys, "path", [*sys.path])
        if words[0] == "sem-clip":
            patch.setattr(sys, "argv", words)
            sem_clip.main()
        elif words[1] == "-m":
            patch.setattr(sys, "argv", words[2:])
            if not hasattr(sys.modules.get(words[2]), "__path__"):  # runpy warns of a module that is loaded
                patch.delitem(sys.modules, words[2], raising=False)
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
        else:
            patch.setattr(sys, "argv", words[1:])
            sys.path.insert(0, str(ROOT))
            runpy.run_path(str(ROOT / words[1]), run_name="__main__")


def is_ours(words: Sequence[str]) -> bool:
    """Whether a program of this project reads the arguments."""
    if words[0] == "sem-clip":
        return True
    if words[0] != "python" or len(words) < 2:
        return False
    return words[2].startswith(MODULES) if words[1] == "-m" else words[1] == "export/build_engine.py"


def fault_of(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What the parser has against a command line; empty if nothing."""
    try:
        run_until_parsed(words, monkeypatch)
    except ParsedError:
        return ""
    except SystemExit as exc:  # --help and --version end with 0
        return "" if exc.code in (None, 0) else capsys.readouterr().err.strip().splitlines()[-1]
    return "it ran without a parser"


def anchors(page: Path) -> set[str]:
    """The anchors that a forge gives to the headings of a page."""
    _, text = split_page(page)
    headings = [line.lstrip("#").strip().lower() for line in text.splitlines() if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


def test_split_page_separates_code_from_text(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A\n\ntext\n    wrapped\n\n    make b \\\n        c\n\n```python\nd\n```\nend\n")
    assert split_page(page) == (["make b \\\nc", "d"], "# A\n\ntext\n    wrapped\n\n\nend\n")


def test_sentences_leave_headings_tables_and_code_aside() -> None:
    text = "# Title.\n\nOne [two](x.md) `a. B`. Three four.\n\n| a. B |\n\n- Five six\n- Seven. 8 nine.\n"
    assert sentences(text) == ["One two code.", "Three four.", "Five six", "Seven.", "8 nine."]


def test_fault_of_finds_an_unknown_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert fault_of(["sem-clip", "predict", "bundle", "frames/"], monkeypatch, capsys) == ""
    assert "--colour" in fault_of(["sem-clip", "predict", "bundle", "frames/", "--colour"], monkeypatch, capsys)


@pages
def test_a_page_holds_no_unfinished_merge(page: Path) -> None:
    assert not re.findall(r"^(?:<{7}|>{7})", page.read_text(encoding="utf-8"), re.M)


@pages
def test_code_blocks_of_commands_parse(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="the commands that teach and measure import torch")
    asked = [words for words in commands(split_page(page)[0]) if is_ours(words)]
    faults = {shlex.join(words): fault_of(words, monkeypatch, capsys) for words in asked}
    assert {line: fault for line, fault in faults.items() if fault} == {}


@pages
def test_commands_inside_sentences_parse(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="the commands that teach and measure import torch")
    _, text = split_page(page)
    quoted = [line.strip() for line in INLINE.findall(text.replace("\n", " "))]
    # `sem-clip COMMAND` stands for any command.
    asked = [words for words in commands(quoted) if is_ours(words) and not words[1].isupper()]
    faults = {shlex.join(words): fault_of(words, monkeypatch, capsys) for words in asked}
    # A command that a sentence names may leave out what it needs, and no more.
    assert {line: fault for line, fault in faults.items() if fault and "arguments are required" not in fault} == {}


@pages
def test_make_targets_extras_and_scripts_exist(page: Path) -> None:
    code, text = split_page(page)
    asked = list(commands([*code, *INLINE.findall(text)]))
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {words[1] for words in asked if words[0] == "make" and len(words) > 1} <= targets
    assert [words[1] for words in asked if words[0] == "bash" and not (ROOT / words[1]).is_file()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"(?:sem-clip|'\.)\[([\w,-]+)\]", page.read_text(encoding="utf-8"))
    assert {extra for names in named for extra in names.split(",")} <= set(project["optional-dependencies"])


@pages
def test_links_resolve(page: Path) -> None:
    _, text = split_page(page)
    broken = []
    for link in LINK.findall(text):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pages
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    known = {path.name for folder in ("export", "runtime", "calibration", "benchmarks", "tests", "docs")
             for path in (ROOT / folder).rglob("*.*")}  # fmt: skip
    paths = {path for path in FILE.findall(text) if not (ROOT / path).exists()}
    assert paths | {name for name in INLINE.findall(text) if BARE_FILE.match(name) and name not in known} == set()


@pages
def test_pages_are_linked_from_the_readme_or_a_page(page: Path) -> None:
    links = {
        (other.parent / link.partition("#")[0]).resolve()
        for other in PAGES
        if other != page
        for link in LINK.findall(other.read_text(encoding="utf-8"))
    }
    assert page.name == "README.md" or page in links


@pages
def test_sentences_are_short(page: Path) -> None:
    long = [part for part in sentences(split_page(page)[1]) if len(part.split()) > MOST_WORDS]
    assert long == []


def test_sentences_of_all_pages_have_18_words_on_average() -> None:
    for chosen in ([ROOT / "README.md"], PAGES):
        counts = [len(part.split()) for page in chosen for part in sentences(split_page(page)[1])]
        assert sum(counts) / len(counts) <= MEAN_WORDS


def test_readme_has_at_most_130_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= LONGEST_README


def test_pictures_are_small() -> None:
    pictures = [path for path in (ROOT / "docs/pictures").iterdir() if path.suffix in LARGEST_PICTURE]
    assert pictures
    assert [picture.name for picture in pictures if picture.stat().st_size > LARGEST_PICTURE[picture.suffix]] == []
