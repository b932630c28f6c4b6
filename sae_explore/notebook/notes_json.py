"""A visitor's notes as JSON, the same in a file, in a download and in an upload; and two sets of notes made one.

    {"format": "sae-explore notes", "version": 1, "bundle": "demo", "sae": "3f1a...",
     "labels": [{"feature": 12, "label": "days of the week", "note": "", "changed": "2025-11-25T08:00:00Z"}],
     "lists": [{"name": "Time", "note": "", "features": [{"feature": 12, "note": ""}], "changed": "..."}]}

`sae` says which SAE the numbers are of (see `notes.sae_of`): feature 12 of another one means something else. Only `labels` or `lists` and
the features' numbers must be there; a list may hold bare numbers.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime

from sae_explore.errors import InputError
from sae_explore.notebook.notes import (
    MAX_LABEL,
    MAX_LABELS,
    MAX_LIST_FEATURES,
    MAX_LISTS,
    MAX_NAME,
    TIME,
    Entry,
    Notes,
    OwnLabel,
    SavedList,
    checked,
    note_text,
    once,
    one_line,
)
from sae_explore.wording import count_of

FORMAT, VERSION = "sae-explore notes", 1
MAX_BYTES = 12 << 20  # more than notes.MAX_CHARACTERS can take


def to_json(notes: Notes, *, bundle: str, sae: str) -> dict:
    """The JSON described above, features in order of their numbers."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "bundle": bundle,
        "sae": sae,
        "labels": [
            {"feature": feature, "label": own.label, "note": own.note, "changed": own.changed}
            for feature, own in sorted(notes.labels.items())
        ],
        "lists": [
            {
                "name": found.name,
                "note": found.note,
                "features": [{"feature": entry.feature, "note": entry.note} for entry in found.entries],
                "changed": found.changed,
            }
            for found in notes.lists
        ],
    }


def read_json(data: bytes, *, d_sae: int, sae: str) -> Notes:
    """Notes from a file; InputError says in one sentence what is wrong with it."""
    if len(data) > MAX_BYTES:
        raise InputError(f"the file has {len(data):,} bytes; notes have at most {MAX_BYTES:,}")
    try:
        found = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, nested too deep, a number of thousands of digits
        raise InputError(f"the file is no JSON ({type(error).__name__}); it must be one that was saved here") from None
    return from_json(found, d_sae=d_sae, sae=sae)


def from_json(found: object, *, d_sae: int, sae: str) -> Notes:
    """The same from parsed JSON."""
    if not isinstance(found, dict) or not isinstance(found.get("labels", found.get("lists")), list):
        raise InputError("the JSON holds no labels and no lists; it must be a file that was saved here")
    if found.get("version", VERSION) != VERSION:
        raise InputError(f"the notes have version {_shown(found['version'])}; this program reads version {VERSION}")
    if found.get("sae", sae) != sae:
        raise InputError(
            f"these notes are of another SAE ({_shown(found['sae'])}, this one is {sae}), where the same numbers mean other features; "
            "delete the line “sae” from the file to read it all the same"
        )
    labels = {}
    for entry in _objects(found, "labels", MAX_LABELS):
        feature, label = _feature(entry.get("feature"), d_sae), one_line(entry.get("label", ""), "a label", MAX_LABEL)
        own = OwnLabel(label, note_text(entry.get("note", "")), _time(entry.get("changed")))
        if own.label or own.note:
            labels[feature] = own
    lists: dict[str, SavedList] = {}
    for entry in _objects(found, "lists", MAX_LISTS):
        name = one_line(entry.get("name", ""), "the name of a list", MAX_NAME, empty=False)
        if name in lists:
            raise InputError(f"two lists are called “{name}”")
        entries = [_entry(e, d_sae) for e in _listed(entry, "features", MAX_LIST_FEATURES)]
        lists[name] = SavedList(name, note_text(entry.get("note", "")), once(entries), _time(entry.get("changed")))
    return checked(Notes(labels, tuple(lists.values())))


def _listed(found: dict, key: str, most: int) -> list:
    listed = found.get(key, [])
    if not isinstance(listed, list) or len(listed) > most:
        raise InputError(f"the {key} of the notes are no list of at most {most:,}")
    return listed


def _objects(found: dict, key: str, most: int) -> list[dict]:
    listed = _listed(found, key, most)
    if not all(isinstance(entry, dict) for entry in listed):
        raise InputError(f"one of the {key} is no object")
    return listed


def _entry(value: object, d_sae: int) -> Entry:
    """An entry of a list; a bare number will do."""
    if isinstance(value, dict):
        return Entry(_feature(value.get("feature"), d_sae), note_text(value.get("note", "")))
    return Entry(_feature(value, d_sae))


def _feature(value: object, d_sae: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < d_sae:
        raise InputError(f"{_shown(value)} is no feature; this bundle has features 0 to {d_sae - 1:,}")
    return value


def _time(value: object) -> str:
    """A time as written by `now`; anything else counts as unknown, which is older than all others."""
    try:
        return datetime.strptime(value, TIME).strftime(TIME)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""


def _shown(value: object) -> str:
    """A wrong value for a message: short, and nothing that is nested."""
    return repr(value[:40]) if isinstance(value, str) else str(value)[:40] if isinstance(value, int | float) else type(value).__name__


# ---- two sets of notes -------------------------------------------------------------------------------------------------


def merged(ours: Notes, theirs: Notes) -> tuple[Notes, str]:
    """(both together, what was done in a sentence). Of two labels for a feature the newer one stays, ours if neither is newer.
    Lists of the same name become one: ours, then what only theirs holds."""
    labels, added, replaced = dict(ours.labels), 0, 0
    for feature, own in theirs.labels.items():
        known = labels.get(feature)
        if known is None:
            added += 1
        elif own.changed <= known.changed or (own.label, own.note) == (known.label, known.note):
            continue
        else:
            replaced += 1
        labels[feature] = own
    lists, new, longer = {found.name: found for found in ours.lists}, 0, 0
    for found in theirs.lists:
        known = lists.get(found.name)
        if known is None:
            new += 1
            lists[found.name] = found
            continue
        joined = _joined(known, found)
        if joined != known:
            longer += 1
            lists[found.name] = joined
    kinds = (
        (added, "new label", None),
        (replaced, "newer label", None),
        (new, "new list", None),
        (longer, "list with changes", "lists with changes"),
    )
    did = ", ".join(count_of(n, *words) for n, *words in kinds if n)
    return checked(Notes(labels, tuple(lists.values()))), did or "nothing that was not here already"


def _joined(ours: SavedList, theirs: SavedList) -> SavedList:
    newer = theirs.changed > ours.changed
    said = {e.feature: e.note for e in theirs.entries}
    kept = tuple(replace(e, note=said[e.feature]) if said.get(e.feature) and (newer or not e.note) else e for e in ours.entries)
    note = theirs.note if theirs.note and (newer or not ours.note) else ours.note
    return replace(ours, note=note, entries=once((*kept, *theirs.entries)), changed=max(ours.changed, theirs.changed))
