"""A visitor's notes: what is written comes back, hostile files are refused in a sentence, and of two writers neither loses anything."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_explore.errors import InputError
from sae_explore.explore import links
from sae_explore.notebook import notes, notes_store
from sae_explore.notebook.notes import Entry, Notes, OwnLabel, SavedList
from sae_explore.notebook.notes_json import MAX_BYTES, merged, read_json, to_json
from sae_explore.notebook.notes_store import FileStore, SessionStore

SAE, D_SAE = "0123456789abcdef", 64
OF = {"d_sae": D_SAE, "sae": SAE}
WORDS = st.text(max_size=40)
FEATURES = st.integers(0, D_SAE - 1)
TIMES = st.sampled_from(["", "2025-01-01T00:00:00Z", "2026-02-03T04:05:06Z"])


@st.composite
def some_notes(draw) -> Notes:
    """Notes as the app can make them: through the functions that change them."""
    made = Notes()
    for feature, label, note in draw(st.lists(st.tuples(FEATURES, WORDS, WORDS), max_size=5)):
        made = notes.with_label(made, feature, label, note)
    for name in draw(st.lists(st.sampled_from(["Time", "✎ <b>", "a b", "=1+1", "名前"]), unique=True, max_size=3)):
        entries = [Entry(f, notes.note_text(said)) for f, said in draw(st.lists(st.tuples(FEATURES, WORDS), max_size=6))]
        made = notes.with_list(made, name, note=draw(WORDS), entries=entries)
    times = {feature: OwnLabel(own.label, own.note, draw(TIMES)) for feature, own in made.labels.items()}
    return Notes(times, tuple(SavedList(s.name, s.note, s.entries, draw(TIMES)) for s in made.lists))


def as_bytes(found: Notes) -> bytes:
    return json.dumps(to_json(found, bundle="demo", sae=SAE), ensure_ascii=False).encode()


@given(some_notes())
def test_json_comes_back_as_it_was(found):
    assert read_json(as_bytes(found), **OF) == found


@given(some_notes(), some_notes())
def test_merging_loses_nothing_and_doing_it_twice_changes_nothing(ours, theirs):
    both, _ = merged(ours, theirs)
    assert set(both.labels) == set(ours.labels) | set(theirs.labels)
    for feature, own in both.labels.items():
        sides = [side.labels[feature] for side in (ours, theirs) if feature in side.labels]
        assert own in sides
        assert own.changed == max(side.changed for side in sides) or own == sides[0]
    assert [s.name for s in both.lists][: len(ours.lists)] == [s.name for s in ours.lists]
    for saved in both.lists:
        sides = [side.list_named(saved.name).features for side in (ours, theirs) if side.list_named(saved.name)]
        assert saved.features == list(dict.fromkeys(f for side in sides for f in side))
    assert merged(both, theirs)[0] == both
    assert merged(both, theirs)[1] == "nothing that was not here already"


def test_the_newer_label_stays_and_the_sentence_counts():
    ours = Notes(
        {1: OwnLabel("old", "", "2025-01-01T00:00:00Z"), 2: OwnLabel("new", "", "2026-01-01T00:00:00Z")}, (SavedList("L", "", (Entry(5),)),)
    )
    theirs = Notes(
        {1: OwnLabel("newer", "", "2026-01-01T00:00:00Z"), 2: OwnLabel("older", "", ""), 3: OwnLabel("third")},
        (SavedList("L", "n", (Entry(5, "said"), Entry(6))), SavedList("M")),
    )
    both, words = merged(ours, theirs)
    assert both.own_labels == {1: "newer", 2: "new", 3: "third"}
    assert both.list_named("L") == SavedList("L", "n", (Entry(5, "said"), Entry(6)))
    assert words == "1 new label, 1 newer label, 1 new list, 1 list with changes"


# ---- changes -----------------------------------------------------------------------------------------------------------


def test_lists_are_ordered_as_the_visitor_wants():
    found = notes.with_list(Notes(), "L", entries=[Entry(3), Entry(1), Entry(2), Entry(1, "again")])
    order = lambda made: made.list_named("L").features  # noqa: E731
    assert order(found) == [3, 1, 2]
    assert order(notes.moved(found, "L", 2, -1)) == [3, 2, 1]
    assert order(notes.moved(found, "L", 3, -1)) == [3, 1, 2]
    assert order(notes.moved(found, "L", 3, 1)) == [1, 3, 2]
    assert order(notes.moved(found, "L", 3, 9)) == [1, 2, 3]
    assert order(notes.moved(found, "L", 60, 1)) == [3, 1, 2]
    assert order(notes.without_feature(found, "L", 1)) == [3, 2]
    added = notes.with_features(found, "L", [2, 9], "why")
    assert added.list_named("L").entries == (Entry(3), Entry(1), Entry(2, "why"), Entry(9, "why"))
    assert notes.with_entry_note(added, "L", 9, "").list_named("L").entries[-1] == Entry(9)
    other = notes.renamed(added, "L", " N  ew ", "note")
    assert [(s.name, s.note) for s in other.lists] == [("N ew", "note")]
    assert notes.without_list(other, "N ew") == Notes()
    assert found.list_named("L").features == [3, 1, 2]  # nothing is changed in place


def test_a_feature_is_added_to_a_list_that_is_there_or_is_made():
    found = notes.added(notes.added(Notes(), " Brand  new ", 5, "why"), "Brand new", 2)
    assert [(s.name, s.entries) for s in found.lists] == [("Brand new", (Entry(5, "why"), Entry(2)))]


def test_an_empty_label_and_note_take_the_label_away():
    found = notes.with_label(Notes(), 3, "days", "")
    assert found.own_labels == {3: "days"}
    assert notes.with_label(found, 3, "", "only a note").own_labels == {}
    assert notes.with_label(found, 3, " ", "\n").labels == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda n: notes.with_label(n, 1, "x" * 121, ""),
        lambda n: notes.with_label(n, 1, "", "x" * 1_001),
        lambda n: notes.with_list(n, "  "),
        lambda n: notes.with_list(n, "L"),
        lambda n: notes.with_list(n, "x" * 61),
        lambda n: notes.with_features(n, "gone", [1]),
        lambda n: notes.with_features(n, "L", list(range(201))),
        lambda n: notes.renamed(n, "L", "M", ""),
        lambda n: _many_lists(n),
    ],
)
def test_what_is_too_much_or_not_there_is_refused_in_a_sentence(change):
    start = notes.with_list(notes.with_list(Notes(), "L"), "M")
    with pytest.raises(InputError) as refused:
        change(start)
    assert "\n" not in str(refused.value)


def _many_lists(found: Notes) -> Notes:
    for i in range(notes.MAX_LISTS):
        found = notes.with_list(found, f"list {i}")
    return found


@given(st.text())
def test_words_from_outside_are_made_harmless(text):
    for shown in (notes.one_line(text, "it", 10**6), notes.note_text(text[:900])):
        assert all(c.isprintable() or c in "\u200c\u200d\n" for c in shown)
    assert notes.one_line("family \u200d \u202eevil\u2066 \ud800 \x1b[0m a\tb", "it", 99) == "family \u200d evil [0m a b"


# ---- hostile files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b"1" * 5_000,
        b"[]",
        b"{}",
        b'{"labels": 3}',
        b'{"labels": [1]}',
        b'{"labels": [{"feature": 64, "label": "x"}]}',
        b'{"labels": [{"feature": 64}]}',
        b'{"labels": [{"feature": true, "label": "x"}]}',
        b'{"labels": [{"feature": "1", "label": "x"}]}',
        b'{"labels": [{"feature": 1, "label": 7}]}',
        b'{"labels": [{"feature": 1, "label": ["x"]}]}',
        b'{"labels": [{"feature": 1, "label": "x", "note": null}]}',
        b'{"labels": [], "version": 2}',
        b'{"labels": [], "sae": "another"}',
        b'{"lists": [{"name": "", "features": []}]}',
        b'{"lists": [{"name": "a", "features": 3}]}',
        b'{"lists": [{"name": "a", "features": [1.5]}]}',
        b'{"lists": [{"name": "a"}, {"name": "a"}]}',
        json.dumps({"lists": [{"name": "a", "features": [1] * 201}]}).encode(),
        json.dumps({"labels": [{"feature": 1, "label": "x" * 121}]}).encode(),
        b" " * (MAX_BYTES + 1),
        b'{"labels": []}' + b" " * MAX_BYTES,
    ],
)
def test_a_wrong_file_is_refused_in_a_short_sentence(data):
    with pytest.raises(InputError) as refused:
        read_json(data, **OF)
    assert len(str(refused.value)) < 250


def test_a_file_written_by_hand_may_be_short():
    found = read_json(b'\xef\xbb\xbf{"lists": [{"name": "a", "features": [3, {"feature": 2, "note": "n"}, 3]}]}', **OF)
    assert found == Notes({}, (SavedList("a", "", (Entry(3), Entry(2, "n"))),))
    assert read_json(b'{"labels": [{"feature": 1, "label": "x", "changed": "yesterday"}]}', **OF).labels == {1: OwnLabel("x")}


# ---- files -------------------------------------------------------------------------------------------------------------


def test_a_file_keeps_the_notes_of_each_sae_apart(tmp_path):
    first, second = (FileStore(tmp_path, "demo", sae=sae, d_sae=D_SAE) for sae in (SAE, "f" * 16))
    assert first.read() == Notes()
    assert not (tmp_path / "labels").exists()
    made = first.change(lambda now: notes.with_label(now, 3, "days", ""))
    assert first.read() == made
    assert second.read() == Notes()
    second.change(lambda now: notes.with_list(now, "L", entries=[Entry(1)]))
    assert first.read() == made
    assert FileStore(tmp_path, "other", sae=SAE, d_sae=D_SAE).read() == Notes()


@pytest.mark.parametrize("what", ["time", "size", "another file"])
def test_a_file_that_another_process_has_changed_is_read_anew(tmp_path, what):
    """Told by any of its time, its size and which file it is."""
    store = FileStore(tmp_path, "demo", sae=SAE, d_sae=D_SAE)
    store.change(lambda now: notes.with_label(now, 3, "days", ""))
    assert store.read().own_labels == {3: "days"}
    data, at = store.path.read_bytes(), store.path.stat().st_mtime_ns
    changed = data.replace(b"days", b"weeks" if what == "size" else b"week")
    if what == "another file":
        (tmp_path / "new").write_bytes(changed)
        (tmp_path / "new").replace(store.path)
    else:
        store.path.write_bytes(changed)
    os.utime(store.path, ns=(at, at + (1 if what == "time" else 0)))
    assert store.read().own_labels == {3: "weeks" if what == "size" else "week"}


def test_notes_of_the_latest_few_saes_are_kept(tmp_path):
    stores = [FileStore(tmp_path, "demo", sae=f"{i:016x}", d_sae=D_SAE) for i in range(10)]
    for i, store in enumerate(stores):
        store.change(lambda now, i=i: notes.with_label(now, i, "mine", ""))
    assert [store.read().own_labels for store in stores] == [{}, {}, *({i: "mine"} for i in range(2, 10))]


def test_a_change_that_is_refused_changes_nothing(tmp_path):
    store = FileStore(tmp_path, "demo", sae=SAE, d_sae=D_SAE)
    store.change(lambda now: notes.with_label(now, 3, "days", ""))
    before = store.path.read_bytes()
    with pytest.raises(InputError):
        store.change(lambda now: notes.with_label(now, 3, "x" * 200, ""))
    assert store.path.read_bytes() == before
    assert sorted(p.name for p in store.path.parent.iterdir()) == [".demo.json.lock", "demo.json"]


@pytest.mark.parametrize("data", [b"", b"no json", b"[]", b'{"saes": {}}', b'{"version": 1, "saes": []}', b'{"version": 9, "saes": {}}'])
def test_a_damaged_file_is_named_and_left_alone(tmp_path, data):
    store = FileStore(tmp_path, "demo", sae=SAE, d_sae=D_SAE)
    store.path.parent.mkdir()
    store.path.write_bytes(data)
    for attempt in (store.read, lambda: store.change(lambda now: now)):
        with pytest.raises(InputError, match=r"labels/demo\.json"):
            attempt()
    assert store.path.read_bytes() == data


_WRITER = """
import sys
from pathlib import Path
from sae_explore.notebook import notes
from sae_explore.notebook.notes_store import FileStore
store = FileStore(Path(sys.argv[1]), "demo", sae="0123456789abcdef", d_sae=64)
for feature in range(int(sys.argv[2]), 60, 2):
    store.change(lambda now: notes.with_features(notes.with_label(now, feature, f"label {feature}", ""), "both", [feature]))
"""


def test_two_processes_at_once_lose_nothing(tmp_path):
    store = FileStore(tmp_path, "demo", sae=SAE, d_sae=D_SAE)
    store.change(lambda now: notes.with_list(now, "both"))
    root = Path(__file__).resolve().parents[1]
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path), str(first)], cwd=root) for first in (0, 1)]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    found = store.read()
    assert found.own_labels == {feature: f"label {feature}" for feature in range(60)}
    both = found.list_named("both").features
    assert sorted(both) == list(range(60))
    assert [f for f in both if f % 2] == list(range(1, 60, 2))  # each in its own order


def test_two_threads_at_once_lose_nothing_where_files_have_no_locks(tmp_path, monkeypatch):
    """The second one begins while the first has read the notes and not yet written them."""
    monkeypatch.setattr(notes_store, "fcntl", None)
    store = FileStore(tmp_path, "demo", sae=SAE, d_sae=D_SAE)
    second = threading.Thread(target=store.change, args=(lambda now: notes.with_label(now, 2, "second", ""),))

    def edit(now: Notes) -> Notes:
        second.start()
        second.join(0.3)  # it waits for this one to have ended
        return notes.with_label(now, 1, "first", "")

    store.change(edit)
    second.join(60)
    assert store.read().own_labels == {1: "first", 2: "second"}


def test_notes_of_a_session_are_its_own():
    one, other = {}, {}
    SessionStore(one, "demo", sae=SAE).change(lambda now: notes.with_label(now, 3, "mine", ""))
    assert SessionStore(one, "demo", sae=SAE).read().own_labels == {3: "mine"}
    assert SessionStore(one, "demo", sae="f" * 16).read() == Notes()
    assert SessionStore(other, "demo", sae=SAE).read() == Notes()


# ---- links -------------------------------------------------------------------------------------------------------------


@given(some_notes())
def test_a_whole_list_travels_in_a_link(found):
    for saved in found.lists:
        query = links.query_of(
            bundle="demo", features=saved.features, name=saved.name, note=saved.note, notes=[e.note for e in saved.entries]
        )
        link = links.read_link(query, ["demo"])
        assert not link.problems
        assert notes.from_link(link, D_SAE) == SavedList(saved.name, saved.note, saved.entries)


def test_notes_too_long_for_a_link_are_left_out_and_features_that_are_not_here_dropped():
    query = links.query_of(bundle="demo", features=[5, 70], name="L", notes=["x" * links.MAX_LINK_TEXT, "y"])
    assert query == {"bundle": "demo", "features": "5,70", "list": "L"}
    assert notes.from_link(links.read_link(query, ["demo"]), D_SAE) == SavedList("L", "", (Entry(5),))


@pytest.mark.parametrize("raw", ["x", "{}", "[1]", '["a"]', "[" * 9_000, '["a","b","c"]', f'["{"x" * 12_000}","b"]'])
def test_wrong_notes_in_a_link_are_named(raw):
    link = links.read_link({"features": "1,2", "list": "L", "notes": raw}, ["demo"])
    assert (link.features, link.notes, len(link.problems)) == ((1, 2), (), 1)
