"""The shipped prompt file, files of a user's own, and every way in which such a file can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.errors import PromptError
from export.teaching.prompts import DEFAULT_FILE, load_prompts

PAPER_CLASSES = ["good", "bridge", "copper_residue", "hole", "infilm", "particle", "scratch"]
OWN = """
object = "SEM image"
templates = ["{}", "a dark photo of the {}"]

[generic]
states = ["{} with a {class} defect", "damaged {}"]

[classes.good]
states = ["perfect {}"]

[classes.residue]
states = ["{} with residue", "dirty {}", "{} after a bad clean"]
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "prompts.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_shipped_file_describes_the_seven_classes_of_the_paper() -> None:
    prompts = load_prompts()
    assert prompts.file == DEFAULT_FILE
    assert sorted(prompts.states) == sorted(PAPER_CLASSES)
    assert prompts.generic_classes(PAPER_CLASSES) == []
    assert prompts.generic


@pytest.mark.parametrize("name", PAPER_CLASSES)
def test_prompts_of_a_class_are_templates_times_states(name: str) -> None:
    prompts = load_prompts()
    found = prompts.for_class(name)
    assert len(prompts.states[name]) >= 4
    assert len(found) == len(set(found)) == len(prompts.templates) * len(prompts.states[name])
    assert all(prompts.subject in prompt for prompt in found)
    assert not any("{" in prompt or "}" in prompt for prompt in found)


def test_shipped_classes_share_no_prompt() -> None:
    prompts = load_prompts()
    found = [prompt for name in PAPER_CLASSES for prompt in prompts.for_class(name)]
    assert len(set(found)) == len(found)


def test_a_custom_file_is_read_verbatim(tmp_path: Path) -> None:
    prompts = load_prompts(write(tmp_path, OWN))
    assert prompts.for_class("good") == ["perfect SEM image", "a dark photo of the perfect SEM image"]
    assert prompts.for_class("residue") == [
        "SEM image with residue",
        "dirty SEM image",
        "SEM image after a bad clean",
        "a dark photo of the SEM image with residue",
        "a dark photo of the dirty SEM image",
        "a dark photo of the SEM image after a bad clean",
    ]


@pytest.mark.parametrize(
    ("name", "spoken"), [("void", "void"), ("metal_residue", "metal residue"), ("pin-hole", "pin hole")]
)
def test_a_class_without_a_section_gets_the_generic_states(tmp_path: Path, name: str, spoken: str) -> None:
    prompts = load_prompts(write(tmp_path, OWN))
    assert prompts.for_class(name)[:2] == [f"SEM image with a {spoken} defect", "damaged SEM image"]
    assert len(prompts.for_class(name)) == 4
    assert prompts.generic_classes(["good", name, "residue"]) == [name]


@pytest.mark.parametrize("generic", ["", "[generic]\nstates = []\n"])
def test_an_unknown_class_without_generic_states_names_what_to_add(tmp_path: Path, generic: str) -> None:
    start, end = OWN.index("[generic]"), OWN.index("[classes.good]")
    prompts = load_prompts(write(tmp_path, OWN[:start] + generic + OWN[end:]))
    assert prompts.for_class("good")
    with pytest.raises(PromptError, match=r'no prompts for class "void"; add a section \[classes\.void\]'):
        prompts.for_class("void")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('object = "SEM image"', "", "object must be a phrase"),
        ('object = "SEM image"', "object = 5", "object must be a phrase"),
        ('object = "SEM image"', 'object = "  "', "object must be a phrase"),
        ('templates = ["{}", "a dark photo of the {}"]', "", "templates must be a list of phrases"),
        ('templates = ["{}", "a dark photo of the {}"]', "templates = []", "templates must be a list of phrases"),
        ('templates = ["{}", "a dark photo of the {}"]', 'templates = "{}"', "templates must be a list of phrases"),
        ('templates = ["{}", ', 'templates = ["{}", 3, ', "templates must be a list of phrases"),
        ('templates = ["{}", ', 'templates = ["a photo", ', 'templates: "a photo" needs exactly one {}'),
        ('templates = ["{}", ', 'templates = ["{} in {}", ', 'templates: "{} in {}" needs exactly one {}'),
        ('"damaged {}"]', '"damaged"]', 'generic.states: "damaged" needs exactly one {}'),
        ('states = ["{} with a {class} defect", "damaged {}"]', "states = 1", "generic.states must be a list"),
        ('states = ["{} with a {class} defect", "damaged {}"]', "state = []", '"generic.state" is not known here'),
        ('states = ["perfect {}"]', "", "classes.good.states must be a list of phrases"),
        ('states = ["perfect {}"]', "states = []", "classes.good.states must be a list of phrases"),
        ('states = ["perfect {}"]', 'states = ["perfect"]', 'classes.good.states: "perfect" needs exactly one {}'),
        (
            'states = ["perfect {}"]',
            'states = ["perfect {}"]\ntemplates = ["{}"]',
            '"classes.good.templates" is not known here',
        ),
        ("object =", 'subject = "wafer"\nobject =', '"subject" is not known here'),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert OWN.count(old) == 1
    path = write(tmp_path, OWN.replace(old, new))
    with pytest.raises(PromptError) as caught:
        load_prompts(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize("generic", ["5", '"a"', "[]", "true"])
def test_generic_must_be_a_section(tmp_path: Path, generic: str) -> None:
    text = f'generic = {generic}\nobject = "x"\ntemplates = ["{{}}"]\n[classes.good]\nstates = ["{{}}"]\n'
    with pytest.raises(PromptError, match=r"generic must be a section \[generic\]"):
        load_prompts(write(tmp_path, text))


@pytest.mark.parametrize("classes", ["", "[classes]", "classes = 3", "classes = []"])
def test_a_file_without_classes_is_refused(tmp_path: Path, classes: str) -> None:
    with pytest.raises(PromptError, match=r"there is no section \[classes\.<name>\]"):
        load_prompts(write(tmp_path, f'object = "x"\ntemplates = ["{{}}"]\n{classes}\n'))


def test_a_class_that_is_no_section_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"classes\.good\.states must be a list of phrases"):
        load_prompts(write(tmp_path, 'object = "x"\ntemplates = ["{}"]\n[classes]\ngood = "{}"\n'))


@pytest.mark.parametrize("content", [b"object = ", b"\xff\xfe\x00", b"a = 1\na = 2\n"])
def test_files_that_are_not_toml_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(PromptError, match="is not readable TOML"):
        load_prompts(write(tmp_path, content))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="there is no prompt file"):
        load_prompts(tmp_path / "absent.toml")
    with pytest.raises(PromptError, match="is not readable TOML"):
        load_prompts(tmp_path)


def test_all_faults_are_listed_at_once(tmp_path: Path) -> None:
    with pytest.raises(PromptError) as caught:
        load_prompts(write(tmp_path, 'subject = 1\ntemplates = ["a"]\n[classes.good]\nstates = []\n'))
    for fault in ('"subject"', "object must", 'templates: "a"', "classes.good.states"):
        assert fault in str(caught.value)
