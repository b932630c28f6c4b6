"""The file that says how far a build is: written by its process, read by anyone, and true to what became of it."""

import json
import os
import subprocess
import sys
import threading

import pytest

from sae_explore.building import build_progress
from sae_explore.building.build_progress import FILE, ProgressFile, is_alive, job_folder, process_mark, read_progress, write_end
from sae_explore.errors import InputError

linux = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="processes are told apart by /proc")


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [1_000.0]
    monkeypatch.setattr(build_progress.time, "time", lambda: now[0])
    return now


@pytest.fixture
def folder(tmp_path):
    return job_folder(tmp_path, "b")


def test_nothing_is_written_before_the_first_report(folder):
    with ProgressFile(folder):
        assert not folder.exists()
    assert not folder.exists()
    with pytest.raises(InputError), ProgressFile(folder):
        raise InputError("the build is refused")
    assert not folder.exists()


def test_a_running_build_and_its_end(folder, clock):
    with ProgressFile(folder) as report:
        report("texts", "reading", None)
        found = read_progress(folder)
        assert (found["state"], found["pid"], found["started"], found["heartbeat"]) == ("running", os.getpid(), 1_000.0, 1_000.0)
        assert is_alive(found)
        assert found["cwd"] == os.getcwd()
        clock[0] = 1_004.0
        report("sae", "residuals", 0.5)
        clock[0] = 1_010.0
        report("texts", "again", 0.0)
        clock[0] = 1_011.0
    found = read_progress(folder)
    assert (found["state"], found["stage"], found["text"], found["share"], found["heartbeat"]) == ("done", "texts", "again", 1.0, 1_011.0)
    assert found["seconds"] == {"texts": 5.0, "sae": 6.0}  # 1000 to 1004 and 1010 to 1011; 1004 to 1010


def test_what_is_left_is_counted_from_the_part_of_a_stage(folder, clock):
    with ProgressFile(folder) as report:
        for at, share in ((1.0, 0.2), (2.0, 0.9), (3.0, None), (4.0, 0.1), (5.0, 0.3)):
            clock[0] = at
            report("sae", f"at {at}", share)
    assert read_progress(folder)["part_started"] == 4.0


def test_it_is_written_by_itself_as_a_sign_of_life(folder, monkeypatch):
    monkeypatch.setattr(build_progress, "_EVERY", 0.01)
    monkeypatch.setattr(build_progress, "_SIGN_OF_LIFE", 0.0)
    written, enough = [], threading.Event()
    original = build_progress.write_json

    def count(path, value):
        original(path, value)
        written.append(value["text"])
        if len(written) >= 4:
            enough.set()

    monkeypatch.setattr(build_progress, "write_json", count)
    with ProgressFile(folder) as report:
        report("sae", "a long step", None)
        assert enough.wait(20)
    assert set(written) == {"a long step", ""}  # the first one before the report is taken in


@pytest.mark.parametrize(
    ("error", "state", "said"),
    [
        (InputError("there is no such column"), "failed", "there is no such column"),
        (ZeroDivisionError("oh"), "failed", "ZeroDivisionError: oh"),
        (KeyboardInterrupt(), "cancelled", None),
    ],
)
def test_how_it_ended(folder, error, state, said):
    def fail():
        with ProgressFile(folder) as report:
            report("tokens", "reading", 0.5)
            raise error

    with pytest.raises(type(error)):
        fail()
    found = read_progress(folder)
    assert (found["state"], found.get("error"), found["share"]) == (state, said, 0.5)


def test_the_file_of_a_build_begun_since_is_left_alone(folder):
    with ProgressFile(folder) as report:
        report("texts", "reading", None)
        write_end(folder, read_progress(folder), pid=1, text="another")
    assert (read_progress(folder)["pid"], read_progress(folder)["text"]) == (1, "another")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": "1"}', "\xff"])
def test_a_file_that_is_none_is_nothing(folder, content):
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes(content.encode("latin-1"))
    assert read_progress(folder) is None


@linux
def test_a_process_is_known_by_its_number_and_its_start():
    mine = {"pid": os.getpid(), "mark": process_mark(os.getpid())}
    assert is_alive(mine)
    assert not is_alive({**mine, "mark": "1"})  # another process that had this number before
    assert not is_alive({**mine, "mark": None})
    ended = subprocess.Popen([sys.executable, "-S", "-c", "pass"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # ended, but nobody has taken leave of it
    assert process_mark(ended.pid) is None
    assert not is_alive({"pid": ended.pid, "mark": "1"})
    ended.wait()


def test_the_file_is_json_for_others_too(folder):
    with ProgressFile(folder) as report:
        report("texts", "“Ünïcode” \n <b>", None)
    assert json.loads((folder / FILE).read_text(encoding="utf-8"))["text"] == "“Ünïcode” \n <b>"
