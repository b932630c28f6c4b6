"""Builds as processes of their own: begun, watched, cancelled, killed, gone on with, and never two at once."""

import functools
import io
import json
import os
import signal
import threading
import time
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from build_checks import CONTEXT, write_corpus

from sae_explore.building import build_jobs
from sae_explore.building.build import build
from sae_explore.building.build_progress import job_folder, read_progress, write_end
from sae_explore.building.build_request import BuildRequest
from sae_explore.building.build_work import work_folder
from sae_explore.building.presets import PRESETS, request_for
from sae_explore.bundles import default_bundle
from sae_explore.command_line import build_options
from sae_explore.errors import InputError
from sae_explore.files.bundle_files import alone, read_manifest, write_json
from sae_explore.texts.uploads import check_upload

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals")
HOOK = "blocks.1.hook_resid_post"
GONE = {"pid": 2**22 + 1, "mark": "1", "heartbeat": 0.0}  # no process has this number


@pytest.fixture
def request_of(tmp_path, corpus_texts, gpt2_folder):
    path = tmp_path / "texts.jsonl"
    write_corpus(path, corpus_texts, 12)
    return BuildRequest("b", str(gpt2_folder), HOOK, texts=(str(path),), latents=32, k=3, epochs=600, batch_tokens=300, context=CONTEXT)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = tmp_path / "cache"
    found.mkdir()
    yield found
    for job in build_jobs.jobs(found):
        if job.running:
            os.kill(job.process["pid"], signal.SIGKILL)


def until(what, seconds: float = 600.0):
    """What a process brings about, looked for again and again."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def ended(cache, name: str = "b"):
    return until(lambda: (job := build_jobs.job_named(cache, name)) and not job.running and job)


def test_cancelled_and_killed_and_gone_on_with_a_build_ends_the_same(request_of, cache, tmp_path):
    build(request_of, cache=tmp_path / "undisturbed")
    expected = {"sae": 2.0, "store": 1.0}
    job = build_jobs.start(request_of, cache=cache, expected=expected)
    assert (job.state, job.request, job.expected, job.launched) == ("running", request_of, expected, True)
    assert os.getsid(job.process["pid"]) == job.process["pid"] != os.getsid(0)  # it outlives this process's terminal
    for other in (request_of, replace(request_of, name="other")):
        with pytest.raises(InputError, match=r"bundle 'b' is being built (already|now, and one build at a time)"):
            build_jobs.start(other, cache=cache)
    with pytest.raises(InputError, match="cancel that first"):
        build_jobs.remove(cache, "b")

    until(lambda: "epoch" in build_jobs.job_named(cache, "b").text)
    build_jobs.cancel(cache, "b")
    job = build_jobs.job_named(cache, "b")
    assert (job.state, job.stage, job.unfinished, job.error) == ("cancelled", "sae", True, "")
    assert {"texts", "tokens"} <= set(job.seconds)
    with pytest.raises(InputError, match="unfinished build 'b' with other settings"):
        build_jobs.start(replace(request_of, k=4), cache=cache)

    job = build_jobs.resume(cache, "b")
    assert (job.state, job.expected) == ("running", expected)
    until(lambda: (found := read_progress(job_folder(cache, "b"))) and found["pid"] == job.process["pid"] and found["stage"])
    os.killpg(job.process["pid"], signal.SIGKILL)
    job = ended(cache)
    assert job.state == "stopped"
    assert "killed, as systems do when memory runs out" in job.error

    build_jobs.start(request_of, cache=cache)  # the same again goes on
    job = ended(cache)
    assert job.state == "done", (job, build_jobs.log_tail(cache, "b"))
    assert job.share == 1.0
    assert read_manifest(cache / "b") == read_manifest(tmp_path / "undisturbed" / "b")
    assert default_bundle.ordered_names(cache) == ["b"]
    with pytest.raises(InputError, match="there is a bundle 'b' already"):
        build_jobs.start(request_of, cache=cache)
    build_jobs.remove(cache, "b")
    assert build_jobs.jobs(cache) == []
    assert read_manifest(cache / "b")["sae"]["d_sae"] == 32


def test_a_build_that_fails_says_why_and_its_uploads_stay_until_it_is_removed(request_of, cache):
    upload = check_upload("my texts.csv", io.BytesIO(b"text,category\nA first text,x\nA second one,y\n"))
    build_jobs.start(replace(request_of, texts=(upload.spec("b"),), context=500), cache=cache, uploads=[upload])
    assert (cache / "uploads" / "b" / upload.digest / "my_texts.csv").read_bytes().startswith(b"text,category")
    job = ended(cache)
    assert job.state == "failed"
    assert "a context of 500 tokens is more than the 128 positions" in job.error
    assert any("a context of 500 tokens" in line for line in build_jobs.log_tail(cache, "b"))
    build_jobs.tidy(cache)
    assert (cache / "uploads" / "b").is_dir()
    build_jobs.remove(cache, "b")
    assert [p for p in cache.rglob("*") if p.is_file()] == []


# ---- what is read from the disk ----------------------------------------------------------------------------------------


def planted(cache, name: str, request: BuildRequest, **progress) -> None:
    """A build as it lies on the disk."""
    write_json(job_folder(cache, name) / "job.json", {"request": asdict(request), "started": 1.0, **GONE})
    if progress:
        write_end(job_folder(cache, name), {"started": 2.0, "text": "x", "stage": "sae", "share": 0.5, "seconds": {}, **GONE}, **progress)


@pytest.mark.parametrize(
    ("progress", "state"),
    [
        ({"state": "running"}, "stopped"),  # its process is gone
        ({"state": "failed", "error": "no"}, "failed"),
        ({"state": "cancelled"}, "cancelled"),
        ({}, "stopped"),
    ],
)
def test_states(cache, request_of, progress, state):
    planted(cache, "b", request_of, **progress)
    (job,) = build_jobs.jobs(cache)
    assert (job.name, job.state, job.request, job.unfinished) == ("b", state, request_of, True)
    assert build_jobs.running(cache) is None


def test_a_process_that_ended_before_it_could_say_anything(cache, request_of):
    planted(cache, "b", request_of)
    file = job_folder(cache, "b") / "job.json"
    write_json(file, {**json.loads(file.read_text()), "exit": 2})
    (job_folder(cache, "b") / "log.txt").write_text("warning: x\nerror: the disk is full\n\n")
    job = build_jobs.job_named(cache, "b")
    assert (job.state, job.error) == ("failed", "the disk is full")


def test_a_finished_build_is_forgotten_with_its_bundle(cache, request_of):
    planted(cache, "b", request_of, state="done")
    assert build_jobs.jobs(cache) == []
    write_json(cache / "b" / "manifest.json", {})
    assert [job.state for job in build_jobs.jobs(cache)] == ["done"]


def test_an_unfinished_build_of_the_terminal_can_be_gone_on_with(cache, request_of):
    write_json(work_folder(cache, "b") / "state.json", {"request": asdict(request_of), "done": {"texts": {}}})
    (job,) = build_jobs.jobs(cache)
    assert (job.state, job.request, job.launched) == ("stopped", request_of, False)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"request": 3}', '{"request": {"name": "b", "nonsense": 1}}', '{"request": {"name": "../x", "model": "m"}}']
)
def test_settings_that_cannot_be_read_can_be_removed_only(cache, content):
    work_folder(cache, "b").mkdir()
    (work_folder(cache, "b") / "state.json").write_text(content)
    for job in build_jobs.jobs(cache):
        assert job.request is None
        with pytest.raises(InputError, match="cannot be read; remove it"):
            build_jobs.resume(cache, "b")
    build_jobs.remove(cache, "b")
    assert not work_folder(cache, "b").exists()


@pytest.mark.parametrize("name", ["", "..", "../b", "a/b", "-x", ".hidden", "a b", "models", "uploads", "x" * 65, "b\n", "b;rm", "$(x)"])
def test_names_that_are_none(cache, request_of, name):
    (cache / "keep").mkdir()
    for act in (
        functools.partial(build_jobs.start, replace(request_of, name=name), cache=cache),
        functools.partial(build_jobs.remove, cache, name),
        functools.partial(build_jobs.resume, cache, name),
        functools.partial(build_jobs.cancel, cache, name),
        functools.partial(build_jobs.log_tail, cache, name),
    ):
        with pytest.raises(InputError, match="no bundle name"):
            act()
    assert (cache / "keep").is_dir()


def test_uploads_of_no_build_are_removed(cache, request_of):
    planted(cache, "failed", replace(request_of, name="failed"), state="failed")
    for name in ("failed", "nobody", "..x"):
        (cache / "uploads" / name / "h").mkdir(parents=True)
    build_jobs.tidy(cache)
    assert [p.name for p in (cache / "uploads").iterdir()] == ["failed"]


# ---- the command -------------------------------------------------------------------------------------------------------


def asked_for(arguments: list[str]) -> BuildRequest:
    """What the command line makes of them."""
    from sae_explore.__main__ import _parser

    args = _parser().parse_args(arguments)
    return request_for(args.name, preset=args.preset, **build_options(args))


@pytest.mark.parametrize("name", [*PRESETS, "mine"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": "-x/y z;`rm`", "hook": "blocks.3.hook_resid_pre"},
        {"texts": ("embedded", "hf:a/b?column=c&n=3", "uploads/b/h/x y.csv?column=a%20b"), "max_tokens": 7, "lr": 1e-3},
        {"sae": "/a folder/$HOME", "batch_size": 4, "store_texts": ("embedded",), "revision": "abc", "center": "yes"},
    ],
)
def test_the_command_asks_for_the_request(name, changes):
    request = replace(request_for(name), **changes)
    assert asked_for(build_jobs.command_of(request)) == request


def test_the_command_is_short_where_it_can_be():
    for name in PRESETS:
        assert build_jobs.command_of(request_for(name)) == ["build", name]
    own = replace(request_for("gpt2-topk"), name="gpt2")
    assert asked_for(build_jobs.command_of(own)) == own  # trained here, whatever the preset of that name takes


def test_two_that_start_a_build_at_once_do_not_both_look(tmp_path, monkeypatch):
    """The second one asks whether a build is running while the first one has asked and not yet begun its own."""
    inside, most, seconds = [], [], []

    def start() -> None:
        with build_jobs._only_one(tmp_path, "demo"):
            inside.append(1)
            most.append(len(inside))
            if not seconds:
                seconds.append(threading.Thread(target=start))
                seconds[0].start()
                seconds[0].join(0.3)  # it waits for the first one
            inside.pop()

    start()
    seconds[0].join(60)
    assert most == [1, 1]
    with alone(tmp_path / ".jobs", "unused"), pytest.raises(InputError, match="another build is being started at this moment"):
        start()  # another process holds it


def test_the_end_of_a_build_is_not_noted_over_the_beginning_of_the_next(tmp_path, monkeypatch):
    """The next one begins when the file has been looked at and the end not yet been written."""
    file, read, seconds = tmp_path / "job.json", build_jobs._read, []
    write_json(file, {"pid": 1})

    def read_and_begin(path) -> dict:
        found = read(path)
        seconds.append(threading.Thread(target=build_jobs._begun, args=(file, {"pid": 2})))
        seconds[0].start()
        seconds[0].join(0.3)  # it waits for the end to be written
        return found

    monkeypatch.setattr(build_jobs, "_read", read_and_begin)
    build_jobs._wait_for(SimpleNamespace(pid=1, wait=lambda: 0), file, {"pid": 1})
    seconds[0].join(60)
    assert read(file) == {"pid": 2}
