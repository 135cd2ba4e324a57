"""Progress goes to stderr, says where the work stands, and costs nothing where nobody looks."""

import io
import json
import subprocess
import sys
import threading

import pytest

import whence.progress
from whence.errors import UnknownNameError
from whence.progress import JsonReporter, Progress, RichReporter, set_reporter, stage


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def unasked(monkeypatch):
    """No reporter chosen yet, in this process or in its environment."""
    monkeypatch.setattr(whence.progress, "_asked", None)
    monkeypatch.delenv("WHENCE_PROGRESS", raising=False)
    return monkeypatch


@pytest.fixture
def recorded():
    clock, stream = Clock(), io.StringIO()
    return clock, Progress(JsonReporter(stream), clock=clock), lambda: lines(stream.getvalue())


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_json_events_hold_pace_and_time_to_go(recorded):
    clock, progress, events = recorded
    with progress.stage("train", total=10, unit="epoch") as work:
        for _ in range(4):
            clock.now += 2.0
            work.advance()
    assert events()[0] == {
        "event": "start", "stage": "train", "done": 0, "total": 10, "elapsed_s": 0.0, "eta_s": None, "unit": "epoch",
    }  # fmt: skip
    assert [event["event"] for event in events()] == ["start", *["progress"] * 4, "end"]
    # 4 of 10 in 8 seconds: 2 seconds each, 6 to go.
    assert (events()[4]["done"], events()[4]["elapsed_s"], events()[4]["eta_s"]) == (4, 8.0, 12.0)


def test_json_events_are_throttled_but_start_and_end_always_come(recorded):
    clock, progress, events = recorded
    with progress.stage("fast", total=1000) as work:
        for _ in range(1000):
            clock.now += 0.0031
            work.advance()
    assert [event["event"] for event in events()] == ["start", "progress", "progress", "progress", "end"]
    assert events()[-1]["done"] == 1000
    assert events()[-1]["eta_s"] == 0.0


def test_stages_nest_and_end_in_any_order(recorded):
    _, progress, events = recorded
    with progress.stage("outer"):
        late = progress.stage("late").__enter__()
        with progress.stage("inner"):
            pass
    with progress.stage("next"):
        late.__exit__(None, None, None)
    named = [(event["event"], event["stage"]) for event in events()]
    assert ("start", "outer/late/inner") in named
    assert ("start", "outer/late/next") in named  # `late` was still under way
    assert progress.stack == []


def test_threads_nest_their_own_stages(recorded):
    _, progress, events = recorded

    def work():
        with progress.stage("elsewhere"):
            pass

    with progress.stage("here"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert {event["stage"] for event in events()} == {"here", "elsewhere"}


def test_notes_come_with_the_next_event(recorded):
    _, progress, events = recorded
    with progress.stage("train") as work:
        work.note(loss=0.5, device=object)
        work.note(loss=0.25)
    assert events()[-1]["facts"] == {"loss": 0.25, "device": str(object)}


def test_errors_pass_through_and_are_named(recorded):
    _, progress, events = recorded
    with pytest.raises(ZeroDivisionError), progress.stage("outer"), progress.stage("inner"):
        _ = 1 / 0
    assert [(event["stage"], event.get("failed")) for event in events()[-2:]] == [
        ("outer/inner", "ZeroDivisionError"),
        ("outer", "ZeroDivisionError"),
    ]


def test_a_closed_stderr_does_not_end_the_work():
    stream = io.StringIO()
    stream.close()
    with Progress(JsonReporter(stream, interval_s=0)).stage("long") as work:
        work.advance()
    assert work.done == 1


# Who reports


def run(capsys):
    with stage("train", total=1) as work:
        work.advance()
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_silent_without_a_terminal_when_nobody_asked(unasked, capsys):
    assert run(capsys) == ""


@pytest.mark.parametrize("wanted", ["auto", "json"])
def test_json_lines_without_a_terminal_when_asked(unasked, capsys, wanted):
    set_reporter(wanted)
    assert [event["event"] for event in lines(run(capsys))] == ["start", "end"]
    unasked.setattr(whence.progress, "_asked", None)
    unasked.setenv("WHENCE_PROGRESS", wanted)
    assert [event["event"] for event in lines(run(capsys))] == ["start", "end"]


@pytest.mark.parametrize(
    "asked, variable, kind",
    [
        (None, "", "rich"),
        ("auto", "", "rich"),
        ("auto", "silent", "silent"),
        (None, "json", "json"),
        ("silent", "json", "silent"),
        ("rich", "json", "rich"),
    ],
)
def test_asking_beats_the_environment_and_that_the_terminal(unasked, asked, variable, kind):
    unasked.setattr(sys, "stderr", Terminal())
    unasked.setenv("WHENCE_PROGRESS", variable)
    if asked:
        set_reporter(asked)
    assert whence.progress._kind() == kind


def test_workers_leave_reporting_to_their_parent(unasked):
    unasked.setattr(sys, "stderr", Terminal())
    unasked.setattr(whence.progress.multiprocessing, "parent_process", lambda: object())
    assert whence.progress._kind() == "silent"
    set_reporter("json")
    assert whence.progress._kind() == "json"


def test_no_stderr_at_all_is_silent(unasked):
    unasked.setattr(sys, "stderr", None)
    with stage("train"):
        pass
    set_reporter("json")
    with Progress(JsonReporter()).stage("train"):
        pass


def test_unknown_reporters_answer_with_the_nearest(unasked):
    with pytest.raises(UnknownNameError, match="Did you mean 'silent'"):
        set_reporter("silnt")
    unasked.setenv("WHENCE_PROGRESS", "jsn")
    with pytest.raises(UnknownNameError, match=r"WHENCE_PROGRESS.*Did you mean 'json'"):
        stage("train")


def test_rich_bars_go_to_stderr_and_show_what_was_noted(capsys):
    progress = Progress(RichReporter())
    with progress.stage("train [red]", total=3, unit="epoch") as outer:
        for _ in range(3):
            with progress.stage("batches") as inner:
                inner.advance(5)
            outer.advance()
        print("a result")
        outer.note(loss=0.123456)
    captured = capsys.readouterr()
    assert captured.out == "a result\n"
    assert "train [red]" in captured.err
    assert "3/3" in captured.err
    assert "loss 0.1235" in captured.err
    assert "batches" not in captured.err.splitlines()[-1]
    with progress.stage("again"):
        pass
    assert "again" in capsys.readouterr().err


def test_importing_and_silence_need_neither_torch_nor_rich():
    script = (
        "import sys, whence.progress as p\n"
        "with p.stage('x', total=2) as work: work.advance()\n"
        "print(sorted({'torch', 'rich', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("[]\n", "")
