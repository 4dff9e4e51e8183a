"""runtime.packages: this project's packages come first; child processes take nothing from the current folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from runtime.errors import PredictorError
from runtime.packages import OWN, ROOT, child_command, child_environment, own_packages_first

STRANGER = 'raise SystemExit("a stranger was run")\n'


@pytest.mark.parametrize("name", OWN)
def test_a_foreign_module_on_the_path_is_not_run(name: str, fake_bundle: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / f"{name}.py").write_text(STRANGER)
    program = f"import sys; sys.path.append({str(ROOT)!r}); from sem_clip import main; sys.exit(main())"
    for words in (["inspect", str(fake_bundle)], ["--help"], ["evaluate", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *words],
            cwd=here,
            env={**os.environ, "PYTHONPATH": "."},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "a stranger was run" not in done.stdout


def test_a_python_without_the_dependencies_names_the_command_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-S", str(ROOT / "sem_clip.py"), "inspect", "bundle"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "sem-clip is not installed for" in done.stderr


def test_a_name_that_was_taken_before_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stranger = ModuleType("export")
    stranger.__file__ = str(tmp_path / "export.py")
    monkeypatch.setitem(sys.modules, "export", stranger)
    with pytest.raises(PredictorError, match=r'another module is called "export", at .*export\.py, and hides'):
        own_packages_first()


def test_a_child_runs_this_code_and_nothing_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("export", "runtime", "json", "argparse", "numpy"):
        (tmp_path / f"{name}.py").write_text(STRANGER)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "shows.py").write_text("import json, sys, runtime\nprint(json.dumps([sys.path, runtime.__file__]))\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", str(elsewhere)]))
    done = subprocess.run(
        child_command("shows"), env=child_environment(), capture_output=True, text=True, check=True, timeout=120
    )
    path, file = json.loads(done.stdout)
    assert file == str(ROOT / "runtime" / "__init__.py")
    assert not {"", ".", str(tmp_path)} & set(path)


def test_no_module_but_packages_starts_python_by_itself() -> None:
    for package in OWN:
        for file in (ROOT / package).rglob("*.py"):
            if file.name != "packages.py":
                assert "sys.executable" not in file.read_text(encoding="utf-8"), file
