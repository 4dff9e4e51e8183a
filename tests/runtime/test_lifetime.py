"""The exit of the interpreter, forks, callbacks, and a Predictor that is dropped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from programs import LIMIT_S, command, run

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.mark.parametrize(
    "busy",
    [
        "futures = [predictor.submit(frame()) for _ in range(20)]",
        "results = predictor.stream(endless()); next(results)",
        "threading.Thread(target=lambda: [predictor(frame()) for _ in range(99)], daemon=True).start()",
        "threading.Thread(target=lambda: predictor.predict([frame()] * 99), daemon=True).start()",
        "threading.Thread(target=lambda: list(predictor.stream(endless())), daemon=True).start()",
        "threading.Thread(target=lambda: [predictor.submit(frame()).result() for _ in range(99)], daemon=True).start()",
    ],
    ids=["submit", "stream", "call", "predict", "stream of a daemon", "submit of a daemon"],
)
def test_the_exit_waits_for_the_running_batch_and_starts_no_other(busy: str, fake_bundle: Path) -> None:
    program = f"""
        engine = Engine(delay_s=0.3)
        predictor = Predictor(sys.argv[1], backend=engine, batch_size=2, max_delay_ms=0)
        {busy}
        engine.entered.wait()
    """
    said = run(fake_bundle, program).split()
    assert said[0] == "in"
    assert said.count("in") == said.count("out") <= 3


@pytest.mark.parametrize("holder", ["sys", "np", "threading", "types.ModuleType('late')", "type('Late', (), {})"])
def test_objects_torn_down_last_print_nothing(holder: str, fake_bundle: Path) -> None:
    program = f"""
        import types
        holder = {holder}
        holder.predictor = Predictor(sys.argv[1], backend="fake", batch_size=2)
        holder.results = holder.predictor.stream(endless())
        next(holder.results)
        holder.future = holder.predictor.submit(frame())
        holder.itself = holder
    """
    assert run(fake_bundle, program) == ""


def test_at_the_exit_waiting_frames_are_cancelled_and_running_ones_answered(fake_bundle: Path) -> None:
    program = """
        engine = Engine(delay_s=0.3)
        predictor = Predictor(sys.argv[1], backend=engine, batch_size=1, max_delay_ms=0)
        done = lambda future: os.write(1, b"cancelled " if future.cancelled() else b"answered ")
        for _ in range(3):
            predictor.submit(frame()).add_done_callback(done)
        engine.entered.wait()
    """
    assert run(fake_bundle, program).split() == ["in", "out", "answered", "cancelled", "cancelled"]


def test_an_exit_does_not_wait_for_an_engine_that_hangs(fake_bundle: Path) -> None:
    program = """
        class Stuck(Engine):
            def run(self, frames, recipe):
                self.entered.set()
                for_ever()
        lifetime.PATIENCE_S = 0.2
        engine = Stuck()
        predictor = Predictor(sys.argv[1], backend=engine, max_delay_ms=0)
        future = predictor.submit(frame())
        engine.entered.wait()
        print("end")
    """
    assert run(fake_bundle, program) == "end"


def test_a_thread_that_outlives_the_main_one_gets_its_answers(fake_bundle: Path) -> None:
    program = """
        predictor = Predictor(sys.argv[1], backend="fake", batch_size=2)
        def work():
            threading.main_thread().join()
            print(len(list(predictor.stream([frame()] * 9))), predictor.submit(frame(1)).result(20).head_class)
        results = predictor.stream(endless())
        next(results)
        predictor.submit(frame()).result(20)
        threading.Thread(target=work).start()
    """
    if sys.version_info >= (3, 12):
        pytest.skip("from 3.12 on no thread starts once the main one has ended")
    assert run(fake_bundle, program) == "9 bridge"


def test_a_function_at_exit_may_close_and_judging_raises(fake_bundle: Path) -> None:
    program = """
        def at_last():
            try:
                predictor(frame())
            except PredictorError as exc:
                print(exc)
            predictor.close()
        lifetime.atexit.unregister(lifetime._end)
        lifetime.atexit.register(at_last)
        lifetime.atexit.register(lifetime._end)
        predictor = Predictor(sys.argv[1], backend="fake")
        predictor.submit(frame()).result(20)
    """
    assert run(fake_bundle, program) == "the interpreter is exiting; no new batch starts"


@forks
@pytest.mark.parametrize("state", ["opened", "submitted", "streaming"])
def test_a_forked_child_is_refused_at_once_and_ends_well(state: str, fake_bundle: Path) -> None:
    program = f"""
        predictor = Predictor(sys.argv[1], backend="fake", batch_size=2, max_delay_ms=3_600_000)
        pending = results = None
        if {state == "submitted"}:
            predictor.predict([frame()])
            pending = predictor.submit(frame())
        if {state == "streaming"}:
            results = predictor.stream(endless())
            next(results)
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            uses = [
                lambda: predictor(frame()), lambda: predictor.predict([frame()]), lambda: predictor.stream([frame()]),
                lambda: predictor.submit(frame()), lambda: predictor.use(predictor.recipe),
            ]
            uses += [pending.result, pending.exception] if pending else []
            uses += [lambda: next(results)] if results else []
            refused = 0
            for use in uses:
                try:
                    use()
                except PredictorError as exc:
                    refused += "opened before a fork" in str(exc)
            print(refused == len(uses), flush=True)
            with Predictor(sys.argv[1], backend="fake") as own, predictor:
                print(own.submit(frame(1)).result(10).head_class, len(list(own.stream([frame()] * 9))), flush=True)
            del predictor, results, pending
            gc.collect()
            sys.exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        predictor.close()
        print(pending.result().head_class if pending else "good")
    """
    assert run(fake_bundle, program).splitlines() == ["True", "bridge 9", "7", "good"]


def test_callbacks_may_submit_while_the_queue_is_full(fake_bundle: Path) -> None:
    program = """
        predictor = Predictor(sys.argv[1], backend="fake", queue_size=1, batch_size=1, max_delay_ms=0)
        count, finished = 0, threading.Event()
        def again(future):
            global count
            count += 1
            if count == 50:
                finished.set()
            else:
                predictor.submit(frame()).add_done_callback(again)
        predictor.submit(frame()).add_done_callback(again)
        others = threading.Thread(target=lambda: [predictor.submit(frame()) for _ in range(50)])
        others.start()
        print(finished.wait(20))
        others.join()
        predictor.close()
    """
    assert run(fake_bundle, program) == "True"


def test_callbacks_that_multiply_are_refused_and_stop_nothing(fake_bundle: Path) -> None:
    program = """
        from runtime import QueueFullError
        predictor = Predictor(sys.argv[1], backend="fake", queue_size=2, batch_size=1, max_delay_ms=0)
        refused = threading.Event()
        def thrice(future):
            try:
                for _ in range(3):
                    predictor.submit(frame()).add_done_callback(thrice)
            except QueueFullError as exc:
                if not refused.is_set():
                    print(exc)
                refused.set()
            except PredictorError:
                pass  # it is closed by now
        predictor.submit(frame()).add_done_callback(thrice)
        refused.wait(20)
        predictor.close()
    """
    said = run(fake_bundle, program)
    assert said == "4 frames are waiting and a callback cannot wait for room: submit more slowly, or raise queue_size"


def test_callbacks_may_swap_close_and_exit(fake_bundle: Path) -> None:
    program = """
        engine = Engine()
        predictor = Predictor(sys.argv[1], backend=engine, batch_size=1, max_delay_ms=0)
        predictor.submit(frame()).add_done_callback(lambda future: sys.exit("ends nothing"))
        predictor.submit(frame()).add_done_callback(lambda future: predictor.use(predictor.recipe))
        more = []
        def close(future):
            predictor.close()
            predictor.close()
            more.append(engine.closed)
        first = predictor.submit(frame())
        first.add_done_callback(close)
        try:
            more += [predictor.submit(frame(1)).result(20).head_class]
        except PredictorError:
            pass
        predictor.close()
        print(first.result().head_class, engine.closed, threading.active_count())
    """
    done = subprocess.run(command(fake_bundle, program), capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert (done.returncode, done.stdout.splitlines()[-1].rpartition("out ")[2]) == (0, "good True 1")
    assert "a callback of submit raised an exit, which is ignored here" in done.stderr


def test_a_callback_that_closes_frees_the_engine_after_all_answers(fake_bundle: Path) -> None:
    program = """
        class Watched(Engine):
            def close(self):
                super().close()
                print(f"closed after {len(self.batches)}\\n", end="")  # one write: two threads print
        engine = Watched(delay_s=0.1)
        predictor = Predictor(sys.argv[1], backend=engine, batch_size=1, max_delay_ms=0)
        futures = [predictor.submit(frame(number)) for number in range(4)]
        futures[0].add_done_callback(lambda future: predictor.close())
        print(f"{[future.result(20).head_class for future in futures]}\\n", end="")
        predictor.close()
    """
    said = run(fake_bundle, program).replace("in ", "").replace("out ", "").splitlines()
    assert sorted(said) == ["['good', 'bridge', 'hole', 'good']", "closed after 4"]


def test_a_dropped_predictor_answers_what_was_submitted_and_ends(fake_bundle: Path) -> None:
    program = """
        engine = Engine(delay_s=0.1)
        predictor = Predictor(sys.argv[1], backend=engine, batch_size=1)
        predictor.itself = predictor
        futures = [predictor.submit(frame(number)) for number in range(3)]
        del predictor
        gc.collect()
        print([future.result(20).head_class for future in futures])
        for _ in range(100):
            if threading.active_count() == 1:
                break
            time.sleep(0.05)
        print(threading.active_count(), engine.closed)
    """
    said = run(fake_bundle, program).replace("in ", "").replace("out ", "").splitlines()
    assert said == ["['good', 'bridge', 'hole']", "1 True"]


@pytest.mark.parametrize("call", ["submit(frame())", "use(predictor.recipe)", "close()", "predict([frame()])"])
@pytest.mark.parametrize("who", ["source", "consumer"])
def test_sources_and_consumers_of_a_stream_may_use_the_predictor(call: str, who: str, fake_bundle: Path) -> None:
    program = f"""
        predictor = Predictor(sys.argv[1], backend="fake", batch_size=2, queue_size=1)
        def source():
            for number in range(12):
                if {who == "source"} and number == 5:
                    predictor.{call}
                yield frame(number)
        try:
            count = 0
            for result in predictor.stream(source()):
                count += 1
                if {who == "consumer"} and count == 5:
                    predictor.{call}
        except PredictorError as exc:
            print(exc)
        print(count)
        predictor.close()
    """
    said = run(fake_bundle, program).splitlines()
    if call != "close()":
        assert said == ["12"]
    else:
        assert said[-1].isdigit()
        assert int(said[-1]) >= 4
        assert said[:-1] == ["the Predictor is closed; open another one"] or said == ["12"]
