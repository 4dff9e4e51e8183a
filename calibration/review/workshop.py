"""Teaching again, and judging again, from the review page: one job at a time, in the background.

Teaching runs `sem-clip teach` in a process of its own, which needs torch and may take all memory it likes. It writes a
candidate beside the corrections; the bundle keeps its recipe until the candidate is accepted. Judging runs here.
"""

from __future__ import annotations

import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runtime.crew import Worker
from runtime.errors import SemClipError
from runtime.files import read_bounded
from runtime.jsonfields import parse_json
from runtime.packages import child_command, child_environment
from runtime.recipe import Recipe
from runtime.recipe_history import accept, go_back, read_history

from .judging import judge_again
from .session import Session
from .web import Answer, Asked, ReviewError, json_answer, only, text_in

MOST_LINES = 400
_MOST_LINE = 2000
_MOST_REPORT = 64 * 2**20
_PATIENCE_S = 5.0


@dataclass(slots=True, eq=False)
class Job:
    """What runs, or ran last. state: "idle", "running", "done" or "failed". what: "teach" or "judge"."""

    number: int = 0
    what: str = "teach"
    state: str = "idle"
    note: str = ""
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=MOST_LINES))
    before_after: Mapping[str, Any] | None = None
    recipe: str | None = None
    warning: str | None = None


class Workshop:
    """Handlers of /api/teach, /api/judge and /api/recipes. `close` ends what runs.

    store: the file to which judging adds; None for JSON lines. weights: of the encoder, where the package does not hold
    them. engine: the arguments of a Predictor, made anew for each use.
    """

    def __init__(
        self,
        session: Session,
        store: Path | None,
        weights: Path | None = None,
        engine: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._session, self._store, self._weights, self._engine = session, store, weights, engine
        self._lock = threading.Lock()
        self._job = Job()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: Worker | None = None
        self._ending = threading.Event()
        beside = session.log.path
        self._candidate, self._report = beside.with_suffix(".taught.safetensors"), beside.with_suffix(".taught.json")
        self._take_up()

    # ---- what the page asks --------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """Whether the page can teach, and why not."""
        why_not = self._why_not()
        return {"can_teach": not why_not, "why_not": why_not, "can_judge": not self._why_not_judge()}

    def state(self, _: Asked) -> Answer:
        """The job that runs, or ran last."""
        with self._lock:
            job = self._job
            shown = {
                name: getattr(job, name) for name in ("what", "state", "note", "before_after", "recipe", "warning")
            }
            return json_answer({"job": job.number, **shown, "lines": list(job.lines)})

    def teach(self, asked: Asked) -> Answer:
        """Begin to teach a candidate on the old supports and the corrected frames."""
        only(asked.body, "note")
        note = text_in(asked.body, "note", needed=False)
        if why_not := self._why_not():
            raise ReviewError(why_not, 409)
        if not len(self._session.log):
            raise ReviewError("nothing is corrected yet, so there is nothing new to teach", 409)
        return self._begin("teach", note, self._teach)

    def judge(self, asked: Asked) -> Answer:
        """Begin to judge the store's frames again, by the bundle's recipe."""
        only(asked.body)
        if why_not := self._why_not_judge():
            raise ReviewError(why_not, 409)
        with self._lock:
            self._require_decided()
        return self._begin("judge", "", self._judge)

    def accept(self, asked: Asked) -> Answer:
        """Make the candidate the bundle's recipe; the old one stays in its history."""
        only(asked.body, "note")
        note = text_in(asked.body, "note", needed=False)
        bundle, _ = self._session.require_bundle()
        with self._lock:
            job = self._taught()
            line = accept(bundle, self._candidate, note or job.note, self._session.who)
            self._session.reload()
            self._forget()
        return json_answer({"accepted": line.to_dict()})

    def discard(self, asked: Asked) -> Answer:
        """Forget the candidate."""
        only(asked.body)
        with self._lock:
            self._taught()
            self._forget()
        return json_answer({"discarded": True})

    def recipes(self, _: Asked) -> Answer:
        """The recipes that the bundle has had, oldest first."""
        bundle, recipe = self._session.require_bundle()
        lines, present = [line.to_dict() for line in read_history(bundle)], recipe.sha256()
        last = max((line["number"] for line in lines if line["sha256"] == present), default=None)
        return json_answer({"recipes": [{**line, "current": line["number"] == last} for line in lines]})

    def back(self, asked: Asked) -> Answer:
        """Take a recipe of the history back."""
        only(asked.body, "number", "note")
        number = asked.body.get("number")
        if isinstance(number, bool) or not isinstance(number, int):
            raise ReviewError("number must be that of a recipe in the history")
        bundle, _ = self._session.require_bundle()
        with self._lock:
            self._require_idle()
            self._require_decided()  # the candidate follows the recipe in use
            line = go_back(bundle, number, text_in(asked.body, "note", needed=False), self._session.who)
            self._session.reload()
        return json_answer({"accepted": line.to_dict()})

    def close(self) -> None:
        """End what runs, and wait a moment for it."""
        self._ending.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
        if self._thread is not None:
            self._thread.join(_PATIENCE_S)

    # ---- the job -------------------------------------------------------------------------------------------------

    def _why_not(self) -> str:
        """Why the page cannot teach; "" if it can."""
        if self._session.bundle is None or self._session.data is None:
            return "to teach, start `sem-clip review` with --bundle DIR and --data DIR, the frames that taught it"
        if find_spec("torch") is None or find_spec("export") is None:
            return 'teaching needs torch: pip install "sem-clip[export]"'
        return ""

    def _why_not_judge(self) -> str:
        if self._session.bundle is None:
            return "to judge again, start `sem-clip review` with --bundle DIR"
        return "" if self._store is not None else "JSON lines are not added to: write a store with --store FILE"

    def _require_idle(self) -> None:
        if self._job.state == "running":
            raise ReviewError("a job is running: wait until it is done", 409)

    def _require_decided(self) -> None:
        if self._job.what == "teach" and self._job.state == "done":
            raise ReviewError("a candidate waits: accept or discard it first", 409)

    def _taught(self) -> Job:
        """The job whose candidate may be accepted. Raises ReviewError without one."""
        if self._job.what != "teach" or self._job.state != "done":
            raise ReviewError("there is no candidate: teach first", 409)
        return self._job

    def _forget(self) -> None:
        self._job = Job(self._job.number)
        with suppress(OSError):  # a file that stays is nothing that can be accepted
            self._remove_files()

    def _remove_files(self) -> None:
        for file in (self._candidate, self._report):
            file.unlink(missing_ok=True)

    def _begin(self, what: str, note: str, work: Callable[[Job], None]) -> Answer:
        with self._lock:
            self._require_idle()
            job = self._job = Job(self._job.number + 1, what, "running", note)

        def run() -> None:
            try:
                work(job)
                state = "done"
            except (SemClipError, OSError) as exc:
                state = "failed"
                self._tell(job, f"error: {exc}")
            except BaseException:
                state = "failed"
                self._tell(job, "error: the server failed: its terminal tells how")
                raise
            finally:
                with self._lock:
                    job.state = state

        self._thread = Worker(run, "sem-clip-review")
        self._thread.start()
        return json_answer({"job": job.number})

    def _tell(self, job: Job, line: str) -> None:
        with self._lock:
            job.lines.append(line[:_MOST_LINE])

    def _teach(self, job: Job) -> None:
        """Run `sem-clip teach`. Raises ReviewError if it fails."""
        self._remove_files()  # a candidate of before must not pass for the new one
        words = [self._session.bundle, "--data", self._session.data, "--corrections", self._session.log.path]
        words += ["--out", self._candidate, "--json", self._report, "--force"]
        words += ["--weights", self._weights] if self._weights is not None else []
        command = child_command("runtime.watched", "teach", *map(_absolute, words))
        with subprocess.Popen(
            command,
            env=child_environment(),
            stdin=subprocess.PIPE,  # held open: its end tells the child that this process is gone
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            self._process = process
            if self._ending.is_set():  # `close` looked before there was a process
                process.terminate()
            assert process.stdout is not None
            while line := process.stdout.readline(_MOST_LINE):
                if text := line.decode("utf-8", "backslashreplace").strip():
                    self._tell(job, text)
        if process.returncode:
            raise ReviewError(f"teaching ended with status {process.returncode}")
        report = self._read_report()
        with self._lock:
            job.before_after, job.recipe = report.get("judged"), self._candidate.name
            job.warning = report.get("warning")

    def _read_report(self) -> dict[str, Any]:
        """What `sem-clip teach --json` wrote. Raises ReviewError."""
        try:
            report = parse_json(read_bounded(self._report, _MOST_REPORT, _unread), [])
        except (ValueError, RecursionError) as exc:
            raise ReviewError(f"{self._report.name} cannot be read ({exc})") from exc
        if not isinstance(report, dict):
            raise ReviewError(f"{self._report.name} holds no figures")
        return report

    def _take_up(self) -> None:
        """Offer a candidate that an earlier run of the server left, if it follows the recipe in use; else name it."""
        recipe = self._session.recipe
        if recipe is None or not self._candidate.is_file():
            return
        self._job.lines.append(f"{self._candidate.name} was taught in an earlier run of the server")
        try:
            report = self._read_report()
            if (report.get("old_recipe"), report.get("new_recipe")) != (
                recipe.sha256(),
                Recipe.load(self._candidate).sha256(),
            ):
                raise ReviewError("it does not follow the recipe in use")
        except SemClipError as exc:
            self._tell(self._job, f"it is not offered ({exc}); the next teaching replaces it")
            return
        self._job.number, self._job.state = 1, "done"
        self._job.before_after, self._job.recipe = report.get("judged"), self._candidate.name
        self._job.warning = report.get("warning")

    def _judge(self, job: Job) -> None:
        assert self._store is not None
        self._session.reload()  # `sem-clip recipes` may have put another recipe there
        judge_again(self._session, self._store, self._engine(), lambda line: self._tell(job, line), self._ending.is_set)


def _absolute(word: object) -> str:
    return str(word.absolute()) if isinstance(word, Path) else str(word)


def _unread(path: Path, reason: str) -> Any:
    return ReviewError(f"{path.name}: {reason}")
