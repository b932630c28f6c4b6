"""The Build page: choices and what is wrong with them, uploads, a running build, and what became of others. No process is started."""

import os
from dataclasses import asdict

import pytest
import sae_layouts as layouts
from app_driver import open_page, run, texts_of, unescaped
from test_uploads import TEXTS, file_of

from sae_explore import resources
from sae_explore.building import build_jobs
from sae_explore.building.build_jobs import Job
from sae_explore.building.build_progress import job_folder, process_mark, write_end
from sae_explore.building.build_request import BuildRequest
from sae_explore.building.build_work import work_folder
from sae_explore.building.presets import request_for
from sae_explore.bundles import default_bundle
from sae_explore.files.bundle_files import write_json
from sae_explore.views.build_status import seconds_left, share_done
from sae_explore.wording import sentence

pytest_plugins = ["bundle_fixtures"]
GONE = {"pid": 2**22 + 1, "mark": "1"}  # no process has this number
HOSTILE = '<script>x</script> **b** [l](javascript:1) :smile: $x$ `c` <img src=x onerror="x">'


@pytest.fixture
def cache(app_cache, tmp_path, monkeypatch):
    """The bundles in a cache folder of its own, and a machine whose speed is known."""
    for name in ("tiny", "planted"):
        (tmp_path / name).symlink_to(app_cache / name)
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(tmp_path))
    monkeypatch.setattr("sae_explore.building.estimate.product_rate", lambda: 1e11)
    return tmp_path


@pytest.fixture
def started(monkeypatch) -> list:
    """What would have been started."""
    found = []

    def start(request, **options):
        found.append((request.checked(), options))

    monkeypatch.setattr(build_jobs, "start", start)
    return found


def page(gpt2_folder, **more):
    """The page with the tiny model and the embedded texts chosen."""
    at = open_page("build")
    at.segmented_control(key="build_model").set_value("other")
    at = run(at)
    at.text_input(key="build_model_name").set_value(str(gpt2_folder))
    at = run(at)
    at.pills(key="build_texts").set_value(["embedded"])
    return run(at)


def plant(cache, name: str, *, request: BuildRequest | None = None, **progress) -> None:
    request = request or BuildRequest(name, "some/model", latents=64, k=6)
    mine = {"pid": os.getpid(), "mark": process_mark(os.getpid())} if progress["state"] == "running" and "pid" not in progress else GONE
    expected = {"model": 10.0, "sae": 60.0, "store": 20.0, "features": 5.0, "metrics": 5.0}
    write_json(job_folder(cache, name) / "job.json", {"request": asdict(request), "started": 1.0, "expected": expected, **mine})
    base = {"started": 2.0, "stage": "sae", "text": "epoch 1 of 2: loss 0.5, explained variance 0.612", "share": 0.5, "part_started": 2.0}
    write_end(job_folder(cache, name), {**base, "seconds": {"texts": 1.0, "model": 12.0}, "heartbeat": 3.0, **mine}, **progress)


# ---- choices -----------------------------------------------------------------------------------------------------------


def test_a_first_visit_offers_gpt2_with_an_estimate_and_starts_nothing(cache, started):
    at = open_page("build")
    shown = unescaped(texts_of(at))
    assert "GPT-2 small: 12 layers, 124 M parameters, to be fetched" in shown
    assert "Time: **about" in shown
    assert "Disk: **about" in shown
    assert "Memory: **about" in shown
    assert "python -m sae_explore build" in at.code[-1].value
    assert started == []


def test_what_is_chosen_is_what_is_built(cache, started, gpt2_folder):
    at = page(gpt2_folder)
    assert at.slider[0].max == 3
    at.slider[0].set_value(1)
    at.number_input(key="build_latents").set_value(64)
    at.number_input(key="build_k").set_value(6)
    at.number_input(key="build_epochs").set_value(2)
    at.number_input(key="build_batch").set_value(8)
    at.number_input(key="build_context").set_value(64)
    at.number_input(key="build_tokens").set_value(5)
    at.text_input(key="build_name").set_value("mine")
    at = run(run(at).button(key="build_start").click())
    ((request, options),) = started
    assert request == BuildRequest(
        "mine", str(gpt2_folder), "blocks.1.hook_resid_post", texts=("embedded",), latents=64, k=6, epochs=2, batch_size=8, context=64,
        max_tokens=5_000,
    )  # fmt: skip
    assert set(options["expected"]) == {"model", "sae", "store", "features", "map", "metrics"}
    assert options["replace"] is False


def test_a_bundle_is_replaced_only_when_that_is_said(cache, started, gpt2_folder):
    at = page(gpt2_folder)
    at.text_input(key="build_name").set_value("tiny")
    at = run(at)
    assert at.button(key="build_start").disabled
    at.checkbox(key="build_replace").check()
    run(run(at).button(key="build_start").click())
    assert started[0][1]["replace"] is True


@pytest.mark.parametrize("name", ["../x", "models", ".hidden", HOSTILE[:60], "a b"])
def test_names_that_are_none(cache, started, gpt2_folder, name):
    at = page(gpt2_folder)
    at.text_input(key="build_name").set_value(name)
    at = run(at)
    assert "is no bundle name" in at.error[0].value
    assert "<script>" not in at.error[0].value
    assert [b.key for b in at.button if b.key == "build_start"] == []


@pytest.mark.parametrize(
    ("model", "message"),
    [("./nowhere", "There is no model folder"), (HOSTILE, "is not understood"), ("user/not-here", None), ("", None)],
)
def test_models_that_are_none(cache, started, model, message):
    at = open_page("build")
    at.segmented_control(key="build_model").set_value("other")
    at = run(at)
    at.text_input(key="build_model_name").set_value(model)
    at = run(at)
    assert [message in unescaped(e.value) for e in at.error] == [True] * bool(message)
    assert [b.key for b in at.button if b.key == "build_start"] == []
    if model == "user/not-here":
        look = next(b for b in at.button if b.label.startswith("Look it up"))
        assert "HF_HUB_OFFLINE is set" in unescaped(run(look.click()).error[0].value)


def test_more_k_than_latents(cache, started, gpt2_folder):
    at = page(gpt2_folder)
    at.number_input(key="build_latents").set_value(16)
    assert "= 32 is more than the number of latents, 16" in unescaped(run(at).error[0].value)


def test_without_the_hub_it_is_said_before_anything_starts(cache, started):
    at = open_page("build")
    at = run(at.button(key="build_start").click())
    assert "would come from the Hugging Face Hub, but HF_HUB_OFFLINE is set" in unescaped(at.error[0].value)
    assert started == []


def test_what_cannot_be_started_is_said(cache, gpt2_folder):
    at = page(gpt2_folder)
    at.text_input(key="build_name").set_value("mine")
    at = run(at)
    write_json(work_folder(cache, "mine") / "state.json", {"request": asdict(BuildRequest("mine", "m")), "done": {"texts": {}}})
    at = run(at.button(key="build_start").click())
    assert "There is an unfinished build 'mine' with other settings" in unescaped(at.error[-1].value)
    assert build_jobs.running(cache) is None


# ---- a given SAE -------------------------------------------------------------------------------------------------------


def given(gpt2_folder, spec: str):
    at = page(gpt2_folder)
    at.segmented_control(key="build_sae_Train one").set_value("Another")
    at = run(at)
    assert not at.slider  # where it reads, the SAE says itself
    at.text_input(key="build_sae_given").set_value(spec)
    return run(at)


def test_an_sae_of_the_hub_or_of_this_machine_is_taken(cache, started, gpt2_folder, tmp_path, monkeypatch):
    layouts.write_openai(tmp_path / "saes/6.pt")
    layouts.write_sparsify(tmp_path / "saes/layers.1")
    for i, (spec, words) in enumerate(
        (
            (str(tmp_path / "saes/6.pt"), f"It has {layouts.M} features."),
            (str(tmp_path / "saes/layers.1"), f"It has {layouts.M} features, {layouts.K} of them active on a token."),
            ("user/saes:blocks.1", "not known before it is read; the estimate takes 24,576."),
        )
    ):
        at = given(gpt2_folder, spec)
        assert words in unescaped(texts_of(at))
        assert ("to fetch" in texts_of(at)) == spec.startswith("user/")
        at.text_input(key="build_name").set_value(f"mine-{i}")
        at = run(run(at).button(key="build_start").click())
        if spec.startswith("user/"):
            assert "The SAE would come from the Hugging Face Hub, but HF_HUB_OFFLINE is set" in unescaped(at.error[0].value)
            monkeypatch.setattr("sae_explore.building.build_choices.hub_problem", lambda **_: None)
            run(at.button(key="build_start").click())
        assert (started[-1][0].sae, started[-1][0].hook) == (spec, None)


def test_the_layer_of_a_given_sae_can_be_chosen(cache, started, gpt2_folder, tmp_path):
    layouts.write_openai(tmp_path / "saes/6.pt")
    at = given(gpt2_folder, str(tmp_path / "saes/6.pt"))
    at.checkbox(key="build_sae_place").check()
    at = run(at)
    at.slider[0].set_value(3)
    run(run(at).button(key="build_start").click())
    assert started[0][0].hook == "blocks.3.hook_resid_post"


@pytest.mark.parametrize(
    ("spec", "message"), [("./nowhere", "There is no SAE folder"), (HOSTILE, "SAE "), ("gpt2", "is not understood"), ("", None)]
)
def test_saes_that_are_none(cache, started, gpt2_folder, spec, message):
    at = given(gpt2_folder, spec)
    assert [message in unescaped(e.value) for e in at.error] == [True] * bool(message)
    assert "<script>" not in "".join(e.value for e in at.error)
    assert "Say which SAE it is to be." in texts_of(at)
    assert [b.key for b in at.button if b.key == "build_start"] == []


def test_a_build_that_lacks_the_layer_says_what_to_do_here(cache):
    plant(cache, "mine", state="failed", error="the files of the SAE 6.pt do not say where in the model it reads; say it with --hook")
    said = unescaped(texts_of(open_page("build")))
    assert "choose the layer." in said
    assert "--hook" not in said


# ---- texts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.parquet"])
def test_own_texts_by_upload(cache, started, gpt2_folder, name):
    at = page(gpt2_folder)
    at.pills(key="build_texts").set_value(["files"])
    at = run(at)
    at.file_uploader(key="build_files").set_value([(name, file_of(name).getvalue(), "application/octet-stream")])
    at = run(at)
    assert f"2 texts, {sum(map(len, TEXTS))} characters" in texts_of(at)
    run(at.button(key="build_start").click())
    request, options = started[0]
    (upload,) = options["uploads"]
    assert (upload.texts, request.texts) == (2, (f"uploads/{request.name}/{upload.digest}/{name}",))


def test_a_bad_upload_is_named_and_keeps_the_button_off(cache, started, gpt2_folder):
    at = page(gpt2_folder)
    at.pills(key="build_texts").set_value(["embedded", "files"])
    at = run(at)
    at.file_uploader(key="build_files").set_value([("<b>x</b>.csv", b"a,b\n1,2\n", "text/csv")])
    at = run(at)
    assert "has no column text or content" in unescaped(at.error[0].value)
    assert [b.key for b in at.button if b.key == "build_start"] == []
    at.text_input(key="build_column").set_value("b")
    at = run(at)
    assert not at.error
    run(at.button(key="build_start").click())
    assert started[0][0].texts[1].endswith("?column=b")


def test_a_data_set_of_the_hub(cache, gpt2_folder):
    at = page(gpt2_folder)
    at.pills(key="build_texts").set_value(["hub"])
    at = run(at)
    at.text_input(key="build_hub_name").set_value(HOSTILE)
    at = run(at)
    assert "is no name of a Hub data set" in unescaped(at.error[0].value)
    at.text_input(key="build_hub_name").set_value("user/set")
    at = run(at)
    assert not at.error
    assert "hf:user/set?n=1000" in at.code[-1].value


# ---- builds that run or ended ------------------------------------------------------------------------------------------


def test_a_running_build_is_seen_by_everybody_and_nothing_else_can_be_begun(cache):
    plant(cache, "mine", state="running")
    at = open_page("build")
    shown = unescaped(texts_of(at))
    assert "Building mine" in shown
    assert "explained variance 0.612" in shown
    assert [b.key for b in at.button if b.key in ("build_start", "build_cancel")] == ["build_cancel"]
    assert [bar.proto.value for bar in at.get("progress")][1:] == [50]  # of the stage


def test_what_is_left_follows_from_the_pace_so_far():
    expected = {"model": 10.0, "sae": 60.0, "store": 20.0, "features": 5.0, "metrics": 5.0}
    facts = {"started": 1_000.0, "expected": expected, "seconds": {"texts": 3.0, "model": 20.0}}
    job = Job("b", "running", None, stage="sae", share=0.25, part_started=1_030.0, **facts)
    # 10 s for a quarter leave 30 s; loading took twice as long as expected, so the 30 s after it will, too
    assert seconds_left(job, 1_040.0) == 30 + 2 * 30
    assert share_done(job, 1_040.0) == 40 / 130
    job = Job("b", "running", None, stage="sae", share=None, part_started=1_030.0, **facts)  # nothing known of this stage yet
    assert seconds_left(job, 1_040.0) == 2 * 60 + 2 * 30
    job = Job("b", "running", None, stage="features", started=1_000.0)  # begun in a terminal: nothing was expected
    assert seconds_left(job, 1_040.0) is None
    assert share_done(job, 1_040.0) == 5 / 9
    assert share_done(Job("b", "running", None, started=1_000.0), 1_040.0) == 0


@pytest.mark.parametrize(
    ("progress", "parts"),
    [
        ({"state": "failed", "error": f"no column {HOSTILE}"}, ["mine failed", "No column"]),
        ({"state": "running", **GONE}, ["mine was broken off", "was killed", "smaller batch, fewer latents"]),
        ({"state": "cancelled"}, ["mine was cancelled", "Finished and kept: read the texts, get and load the model"]),
    ],
)
def test_an_unfinished_build_can_be_gone_on_with_or_removed(cache, monkeypatch, progress, parts):
    plant(cache, "mine", **progress)
    (job_folder(cache, "mine") / "log.txt").write_text(f"error: {HOSTILE}\n")
    resumed = []
    monkeypatch.setattr(build_jobs, "resume", lambda _cache, name: resumed.append(name))
    at = open_page("build")
    shown = unescaped(texts_of(at))
    assert [part for part in parts if part not in shown] == []
    assert "<script>" not in texts_of(at)
    assert at.code[0].value == f"error: {HOSTILE}"  # shown as it is
    run(at.button(key="build_resume_mine").click())
    assert resumed == ["mine"]
    at = run(open_page("build").button(key="build_remove_mine").click())
    assert build_jobs.jobs(cache) == []
    assert "mine" not in texts_of(at)


def test_a_finished_build_shows_its_figures_and_opens(cache):
    plant(cache, "planted", state="done")
    at = open_page("build")
    shown = unescaped(texts_of(at))
    warnings = resources.get_bundle("planted").manifest["warnings"]
    assert warnings
    assert [w for w in warnings if unescaped(sentence(w)) not in shown] == []
    at = run(at.button(key="build_open_planted").click())
    assert at.session_state["bundle"] == "planted"
    at = run(open_page("build").button(key="build_hide_planted").click())
    assert build_jobs.jobs(cache) == []


def test_the_bundle_that_was_built_last_opens_first(cache):
    assert resources.bundle_names() == ["planted", "tiny"]
    default_bundle.make_default(cache, "tiny")
    assert resources.bundle_names() == ["tiny", "planted"]
    default_bundle.make_default(cache, "gone")
    assert resources.bundle_names() == ["planted", "tiny"]


def test_without_any_bundle_the_page_is_there(cache):
    for name in ("tiny", "planted"):
        (cache / name).unlink()
    at = open_page("build")
    assert at.button(key="build_start")
    assert any(b.key == "setup_gpt2" for b in at.sidebar.button)


# ---- where nothing may be built, and the way to GPT-2 ------------------------------------------------------------------


def test_in_public_nothing_can_be_built(cache, monkeypatch):
    monkeypatch.setenv("SAE_EXPLORE_PUBLIC", "1")
    at = open_page("build")
    assert [b.key for b in at.button if b.key in ("build_start", "setup_gpt2")] == []
    assert "estimate" not in texts_of(at).lower()


def test_gpt2_is_one_click_away(cache, started, monkeypatch):
    at = open_page("")
    at = run(at.button(key="setup_gpt2").click())
    assert "HF_HUB_OFFLINE is set" in unescaped(at.sidebar.error[0].value)
    assert started == []
    monkeypatch.setattr("sae_explore.building.build_choices.hub_problem", lambda **_: None)
    at = open_page("")
    at.button(key="setup_gpt2").click().run()
    request, options = started[0]
    assert request == request_for("gpt2").checked()
    assert options["expected"]["store"] > 0
    (cache / "gpt2").symlink_to((cache / "tiny").resolve())
    assert [b.key for b in open_page("").button if b.key == "setup_gpt2"] == []


def test_gpt2_that_is_being_built_is_said_on_every_page(cache):
    plant(cache, "gpt2", state="running", request=request_for("gpt2"))
    at = open_page("about")
    links = [link.proto.label for link in at.sidebar.get("page_link")]
    assert any("GPT-2 is being built: " in label for label in links), links
