"""A visitor of a running app: a session over the websocket that browsers use, without a browser.

What comes back for a page is compared by its elements: place on the page -> contents as Streamlit sent them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlencode

from streamlit.proto.Alert_pb2 import Alert
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.WidgetStates_pb2 import WidgetState, WidgetStates
from websockets.sync.client import connect

PATIENCE = 300.0  # seconds without a word after which the app counts as hanging
_SECONDS = re.compile(rb"\b\d+\.\d+ s\b")  # what something took
_DRAWN = re.compile(rb"(?<![0-9a-f-])[0-9a-f]{32}(?![0-9a-f-])")  # the number of a download that is made when it is asked for
_SIDEBAR, _BUILDING = 1, b"A bundle is being built"


@dataclass(frozen=True)
class Answer:
    """What a page shows: place -> element, and the problems that it says."""

    elements: dict[tuple[int, ...], bytes]
    problems: tuple[str, ...]

    def differs_from(self, other: Answer) -> list[str]:
        """The places where two answers are not the same, with the beginning of what is there.

        The sidebar says that a build runs, for everybody: from there on it is not compared.
        """
        note = min((place for place, element in self.elements.items() if place[0] == _SIDEBAR and _BUILDING in element), default=())
        return [
            f"{'.'.join(map(str, place))}: {_shown(self.elements.get(place))} instead of {_shown(other.elements.get(place))}"
            for place in sorted(self.elements.keys() | other.elements.keys())
            if self.elements.get(place) != other.elements.get(place) and not (note and place[0] == _SIDEBAR and place >= note)
        ]


def _shown(element: bytes | None) -> str:
    return "nothing" if element is None else repr(element[:160])


class Visit:
    """One session; use as a context manager."""

    def __init__(self, url: str):
        address = url.replace("http", "ws", 1) + "/_stcore/stream"
        self._connection = connect(address, subprotocols=["streamlit"], max_size=None, compression=None, open_timeout=PATIENCE)
        self._page, self._query = "", ""
        self._ids: dict[tuple[str, str], str] = {}  # (kind, label) -> id of a widget on the page

    def __enter__(self) -> Visit:
        self._socket = self._connection.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.__exit__(*error)

    def open(self, page: str, **params: str) -> Answer:
        """Go to a page by its name ("" is the first one) and address."""
        self._page, self._query = page, urlencode(params)
        return self._run(ClientState(query_string=self._query, page_name=page))

    def rerun(self) -> Answer:
        """The same page again."""
        return self._run(ClientState(query_string=self._query, page_name=self._page))

    def submit(self, text: str) -> Answer:
        """Have an own text analysed, with the form of the first page."""
        (area,) = [known for (kind, _), known in self._ids.items() if kind == "text_area"]
        states = [WidgetState(id=area, string_value=text), WidgetState(id=self._ids["button", "Analyse"], trigger_value=True)]
        return self._run(ClientState(query_string=self._query, page_name=self._page, widget_states=WidgetStates(widgets=states)))

    def forget(self) -> None:
        """Have the app empty its caches, for everybody: as if it had just been started."""
        self._socket.send(BackMsg(clear_cache=True).SerializeToString())
        self.open("about")  # when this has come, that is done

    def _run(self, state: ClientState) -> Answer:
        self._socket.send(BackMsg(rerun_script=state).SerializeToString())
        elements: dict[tuple[int, ...], bytes] = {}
        problems: list[str] = []
        begun = False
        while True:
            message = ForwardMsg.FromString(self._socket.recv(timeout=PATIENCE))
            kind = message.WhichOneof("type")
            if kind == "new_session":
                begun = True
                elements.clear()
                self._ids.clear()
            elif not begun:  # the end of the run before
                continue
            elif kind == "page_info_changed":
                self._query = message.page_info_changed.query_string
            elif kind == "delta":
                self._place(message, elements, problems)
            elif kind == "script_finished" and message.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY:
                return Answer(elements, tuple(problems))
            elif kind == "script_finished" and message.script_finished != ForwardMsg.FINISHED_EARLY_FOR_RERUN:
                return Answer(elements, (*problems, f"the script ended with status {message.script_finished}"))

    def _place(self, message: ForwardMsg, elements: dict, problems: list[str]) -> None:
        place, delta = tuple(message.metadata.delta_path), message.delta
        if delta.WhichOneof("type") == "new_transient":  # a spinner over the place: it comes or not, as long as the answer takes
            return
        for below in [known for known in elements if known[: len(place)] == place]:
            del elements[below]
        elements[place] = _DRAWN.sub(b"#", _SECONDS.sub(b"# s", delta.SerializeToString(deterministic=True)))
        if delta.WhichOneof("type") != "new_element":
            return
        kind = delta.new_element.WhichOneof("type")
        if kind == "exception":
            problems.append(f"{delta.new_element.exception.type}: {delta.new_element.exception.message}")
        elif kind == "alert" and delta.new_element.alert.format == Alert.ERROR:
            problems.append(delta.new_element.alert.body)
        elif kind in ("button", "text_area"):
            widget = getattr(delta.new_element, kind)
            self._ids[kind, widget.label] = widget.id
