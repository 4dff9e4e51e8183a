"""runtime.watched: a command ends with the process that began it, also where that one is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from commandline import posix

from runtime.packages import child_command, child_environment

CHILD = """
import sys, time
from pathlib import Path
import runtime.watched as watched
watched.PATIENCE_S = {patience}
if {deaf}:
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
watched.end_with_parent()
print("began", flush=True)
time.sleep({seconds})
Path(sys.argv[1]).write_text("late")
"""
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]], stdin=subprocess.PIPE)
print(child.pid, flush=True)
child.wait()
"""


def child(seconds: float, deaf: bool = False) -> str:
    return CHILD.format(patience=0.2, seconds=seconds, deaf=deaf)


@posix
def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    for deaf in (False, True):
        out = tmp_path / f"{deaf}.txt"
        words = [sys.executable, "-c", PARENT, child(60, deaf), str(out)]
        with subprocess.Popen(words, env=child_environment(), stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            lines = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
            assert "began" in lines
            parent.send_signal(signal.SIGKILL)
            assert parent.stdout.read() == ""  # ends once the child is gone, which holds the other end
        assert not out.exists()


def test_it_runs_a_command_and_takes_its_status() -> None:
    words = child_command("runtime.watched", "recipes", "/no/such/bundle")
    with subprocess.Popen(
        words, env=child_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(60) == 2
    assert "/no/such/bundle" in said
