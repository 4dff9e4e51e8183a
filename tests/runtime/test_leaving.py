"""Leaving a stream early, whatever its source, file or engine does at that moment."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from programs import LIMIT_S, command, run


def test_leaving_does_not_wait_for_a_source_that_hangs(fake_bundle: Path) -> None:
    program = """
        predictor = Predictor(sys.argv[1], backend="fake", batch_size=2)
        results = predictor.stream(hanging(8))
        next(results)
        time.sleep(0.3)  # by now the source has been asked for more than it has
        left_in_time(results)
        print(predictor(frame(2)).head_class)
        predictor.close()
    """
    assert run(fake_bundle, program).splitlines() == ["left", "hole"]


def test_leaving_does_not_wait_for_a_file_that_hangs(fake_bundle: Path) -> None:
    program = """
        read = pipeline.decode_frame
        pipeline.decode_frame = lambda source, *rest: for_ever() if isinstance(source, str) else read(source, *rest)
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with Predictor(sys.argv[1], backend="fake", batch_size=2) as predictor:
            results = predictor.stream([frame()] * 4 + ["dead"] * 20, decoders=2)
            try:
                for result in results:
                    pass
            except KeyboardInterrupt:
                left_in_time(results)
    """
    assert run(fake_bundle, program) == "left"


def test_leaving_does_not_wait_for_an_engine_that_hangs(fake_bundle: Path) -> None:
    program = """
        class Stuck(Engine):
            def run(self, frames, recipe):
                return for_ever() if len(self.batches) else super().run(frames, recipe)
        lifetime.PATIENCE_S = 0.2
        with Predictor(sys.argv[1], backend=Stuck(), batch_size=2) as predictor:
            results = predictor.stream(endless())
            next(results)
            left_in_time(results)
    """
    assert run(fake_bundle, program) == "in out left"


def test_a_source_that_returns_late_is_closed_by_its_own_thread(fake_bundle: Path) -> None:
    program = """
        come_back, closed = threading.Event(), threading.Event()
        def source():
            try:
                for number in range(8):
                    yield frame(number)
                come_back.wait()
                yield frame()
            finally:
                closed.set()
        predictor = Predictor(sys.argv[1], backend="fake", batch_size=2)
        results = predictor.stream(source())
        next(results)
        time.sleep(0.5)  # by now the source waits to come back
        results.close()
        print(closed.is_set())
        come_back.set()
        print(closed.wait(20))
        time.sleep(0.2)
        print([t.name for t in threading.enumerate() if t.name.startswith("sem-clip")])
    """
    assert run(fake_bundle, program).splitlines() == ["False", "True", "[]"]


def test_ctrl_c_leaves_a_stream_whose_source_hangs(fake_bundle: Path) -> None:
    program = """
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born ignoring it
        predictor = Predictor(sys.argv[1], backend="fake", batch_size=2)
        try:
            print("waiting", flush=True)
            for result in predictor.stream(hanging(0)):
                pass
        except KeyboardInterrupt:
            print("interrupted")
    """
    with subprocess.Popen(
        command(fake_bundle, program), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=LIMIT_S) == ("interrupted\n", "")
        assert process.returncode == 0


def test_an_error_of_a_signal_handler_is_not_a_frame_error(fake_bundle: Path) -> None:
    program = """
        import io
        from PIL import Image
        class TooLate(Exception):
            pass
        class Clock:
            def rings(self, *_):
                raise TooLate
        class File(io.BytesIO):
            def read(self, *size):
                os.kill(os.getpid(), signal.SIGALRM)
                return super().read(*size)
        signal.signal(signal.SIGALRM, Clock().rings)
        picture = io.BytesIO()
        Image.fromarray(frame()).save(picture, "PNG")
        with Predictor(sys.argv[1], backend="fake") as predictor:
            for ask in (predictor, predictor.submit):
                try:
                    ask(File(picture.getvalue()))
                except TooLate:
                    print("too late")
            print(predictor.submit(picture.getvalue()).result(20).head_class)
    """
    assert run(fake_bundle, program).splitlines()[:2] == ["too late", "too late"]


@pytest.mark.parametrize("where", ["here", "in its own thread", "in its engine"])
def test_a_stream_dropped_in_a_cycle_ends_wherever_it_is_collected(where: str, fake_bundle: Path) -> None:
    program = f"""
        dropped = threading.Event()
        class Collecting(Engine):
            def run(self, frames, recipe):
                if {where == "in its engine"} and dropped.is_set():
                    gc.collect()
                return FakeBackend.run(self, frames, recipe)
        def source():
            while True:
                if {where == "in its own thread"} and dropped.is_set():
                    gc.collect()
                yield frame()
        gc.disable()
        predictor = Predictor(sys.argv[1], backend=Collecting(), batch_size=2)
        cycle = {{}}
        cycle["self"], cycle["results"] = cycle, predictor.stream(source())
        next(cycle["results"])
        del cycle
        dropped.set()
        if {where == "here"}:
            gc.collect()
        for _ in range(200):
            left = [t.name for t in threading.enumerate() if t.name.startswith("sem-clip")]
            if not left:
                break
            # A thread that waits for the consumer collects nothing; one of these two does sooner or later.
            time.sleep(0.05)
            if _ == 40:
                gc.collect()
        print(left)
    """
    assert run(fake_bundle, program) == "[]"
