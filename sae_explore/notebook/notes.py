"""A visitor's own words about a bundle's features: labels, notes, and lists of features. Plain values, and how they change.

`notes_json` writes, reads and merges them; `notes_store` keeps them. Whatever comes in is checked and bounded; control characters and
those that turn the direction of writing are taken out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from sae_explore.errors import InputError
from sae_explore.explore.links import MAX_LINK_FEATURES, Link

MAX_LABEL, MAX_NAME, MAX_NOTE = 120, 60, 1_000  # characters
MAX_LABELS, MAX_LISTS = 5_000, 100
MAX_CHARACTERS = 2_000_000  # of all labels, names and notes together
MAX_LIST_FEATURES = MAX_LINK_FEATURES  # a whole list fits into a link
TIME = "%Y-%m-%dT%H:%M:%SZ"
_JOINERS = "\u200c\u200d"  # parts of words and emoji


@dataclass(frozen=True)
class OwnLabel:
    """What a visitor says about a feature; one of the two may be empty."""

    label: str = ""
    note: str = ""
    changed: str = ""  # UTC, ISO 8601


@dataclass(frozen=True)
class Entry:
    """A feature in a list."""

    feature: int
    note: str = ""


@dataclass(frozen=True)
class SavedList:
    """Features in an order that the visitor chose, each once."""

    name: str
    note: str = ""
    entries: tuple[Entry, ...] = ()
    changed: str = ""

    @property
    def features(self) -> list[int]:
        return [entry.feature for entry in self.entries]


@dataclass(frozen=True)
class Notes:
    """Everything that a visitor said about one SAE; not to be changed, each change makes another one."""

    labels: Mapping[int, OwnLabel] = field(default_factory=dict)
    lists: tuple[SavedList, ...] = ()

    @property
    def own_labels(self) -> dict[int, str]:
        """Labels to show in place of others."""
        return {feature: own.label for feature, own in self.labels.items() if own.label}

    def list_named(self, name: str) -> SavedList | None:
        return next((found for found in self.lists if found.name == name), None)


def sae_of(manifest: Mapping) -> str:
    """Which SAE a bundle holds, in 16 characters: the same SAE over other texts has the same."""
    return manifest["files"]["sae/sae_weights.safetensors"]["sha256"][:16]


def now() -> str:
    """The time as it is written down."""
    return datetime.now(UTC).strftime(TIME)


def from_link(link: Link, d_sae: int) -> SavedList:
    """The list that a link carries, what does not fit into this bundle left out."""
    said = dict(zip(link.features, link.notes or [""] * len(link.features), strict=True))
    entries = [Entry(feature, note_text(note[:MAX_NOTE])) for feature, note in said.items() if feature < d_sae]
    return SavedList(
        one_line(link.name[:MAX_NAME], "the name", MAX_NAME) or "List from a link", note_text(link.note[:MAX_NOTE]), once(entries)
    )


# ---- words from outside ------------------------------------------------------------------------------------------------


def one_line(text: str, what: str, most: int, *, empty: bool = True) -> str:
    """A label or a name: one line of characters that can be seen. InputError if it is too long, or empty though it must not be."""
    return _bounded(" ".join(_seen(_text(text)).split()), what, most, empty)


def note_text(text: str, what: str = "a note") -> str:
    """A note: lines of characters that can be seen."""
    lines = [" ".join(_seen(line).split()) for line in _text(text).replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    return _bounded("\n".join(lines).strip(), what, MAX_NOTE, True)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise InputError(f"a label, name or note is a {type(value).__name__}, not a text")
    return value


def _seen(text: str) -> str:
    return "".join(c if c.isprintable() or c in _JOINERS else " " if c.isspace() else "" for c in text)


def _bounded(text: str, what: str, most: int, empty: bool) -> str:
    if len(text) > most or not (text or empty):
        raise InputError(f"{what} has {len(text):,} characters; allowed are {0 if empty else 1} to {most:,}")
    return text


# ---- changes -----------------------------------------------------------------------------------------------------------


def with_label(notes: Notes, feature: int, label: str, note: str) -> Notes:
    """With this label and note for the feature; both empty take them away."""
    own = OwnLabel(one_line(label, "the label", MAX_LABEL), note_text(note, "the note"), now())
    labels = {f: kept for f, kept in notes.labels.items() if f != feature}
    if own.label or own.note:
        labels[feature] = own
    return checked(replace(notes, labels=labels))


def with_list(notes: Notes, name: str, *, note: str = "", entries: Sequence[Entry] = ()) -> Notes:
    """With a new list at the end; InputError if there is one of this name."""
    name = one_line(name, "the name of a list", MAX_NAME, empty=False)
    if notes.list_named(name):
        raise InputError(f"there is a list “{name}” already; choose another name")
    made = SavedList(name, note_text(note), once(entries), now())
    return checked(replace(notes, lists=(*notes.lists, made)))


def without_list(notes: Notes, name: str) -> Notes:
    return replace(notes, lists=tuple(found for found in notes.lists if found.name != name))


def renamed(notes: Notes, name: str, new_name: str, note: str) -> Notes:
    """The list with another name and note."""
    new_name = one_line(new_name, "the name of a list", MAX_NAME, empty=False)
    if new_name != name and notes.list_named(new_name):
        raise InputError(f"there is a list “{new_name}” already; choose another name")
    return _changed(notes, name, lambda found: replace(found, name=new_name, note=note_text(note)))


def with_features(notes: Notes, name: str, features: Sequence[int], note: str = "") -> Notes:
    """The list with these features at its end, in their order; those that it holds stay where they are (and take a note that is given)."""

    def added(found: SavedList) -> SavedList:
        said = note_text(note)
        kept = tuple(replace(e, note=said) if said and e.feature in features else e for e in found.entries)
        return replace(found, entries=once((*kept, *(Entry(f, said) for f in features))))

    return _changed(notes, name, added)


def added(notes: Notes, name: str, feature: int, note: str = "") -> Notes:
    """The feature at the end of the list of this name, which is made if there is none."""
    name = one_line(name, "the name of a list", MAX_NAME, empty=False)
    return with_features(notes if notes.list_named(name) else with_list(notes, name), name, [feature], note)


def without_feature(notes: Notes, name: str, feature: int) -> Notes:
    return _changed(notes, name, lambda found: replace(found, entries=tuple(e for e in found.entries if e.feature != feature)))


def moved(notes: Notes, name: str, feature: int, by: int) -> Notes:
    """The feature `by` places later in the list (earlier if negative), as far as there is room."""

    def move(found: SavedList) -> SavedList:
        entries = list(found.entries)
        at = next((i for i, e in enumerate(entries) if e.feature == feature), None)
        if at is not None:
            entries.insert(max(0, at + by), entries.pop(at))
        return replace(found, entries=tuple(entries))

    return _changed(notes, name, move)


def with_entry_note(notes: Notes, name: str, feature: int, note: str) -> Notes:
    said = note_text(note)
    return _changed(
        notes,
        name,
        lambda found: replace(found, entries=tuple(replace(e, note=said) if e.feature == feature else e for e in found.entries)),
    )


def _changed(notes: Notes, name: str, change: Callable[[SavedList], SavedList]) -> Notes:
    """One list changed; InputError if another process took it away meanwhile."""
    if notes.list_named(name) is None:
        raise InputError(f"there is no list “{name}” any more")
    return checked(
        replace(notes, lists=tuple(replace(change(found), changed=now()) if found.name == name else found for found in notes.lists))
    )


def once(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Each feature once, where it stands first."""
    return tuple({entry.feature: entry for entry in reversed(entries)}[f] for f in dict.fromkeys(e.feature for e in entries))


def checked(notes: Notes) -> Notes:
    """The same; InputError if there is more than may be kept."""
    if len(notes.labels) > MAX_LABELS:
        raise InputError(f"there are {len(notes.labels):,} labels; at most {MAX_LABELS:,} are kept")
    if len(notes.lists) > MAX_LISTS:
        raise InputError(f"there are {len(notes.lists):,} lists; at most {MAX_LISTS:,} are kept")
    for found in notes.lists:
        if len(found.entries) > MAX_LIST_FEATURES:
            raise InputError(f"the list “{found.name}” has {len(found.entries):,} features; at most {MAX_LIST_FEATURES:,} fit")
    characters = sum(len(own.label) + len(own.note) for own in notes.labels.values())
    characters += sum(len(found.name) + len(found.note) + sum(len(e.note) for e in found.entries) for found in notes.lists)
    if characters > MAX_CHARACTERS:
        raise InputError(f"labels and notes have {characters:,} characters together; at most {MAX_CHARACTERS:,} are kept")
    return notes
