"""Chromium's DevTools as the tests speak them: commands by session and id, events, calls that are never answered."""

from __future__ import annotations

import json
import queue
from itertools import count
from typing import Any

import evtws
from evtws import Message
from tests.timing import SOON

from .servers import Chromium

#: Bytes of a reply.
MAX_SIZE = 40 << 20


def session_and_id(message: Message) -> tuple[str | None, int] | None:
    """A `match_key`: ids are counted in each session by itself, and the browser's own calls have no session."""
    params = message.params
    return (params.get("sessionId"), params["id"]) if "id" in params else None


class DevTools:
    """A DevTools connection. A call in a session whose target goes is never answered: it is told of that here."""

    def __init__(self, server: Chromium, **options: Any) -> None:
        #: The events, oldest first.
        self.events: queue.Queue[Any] = queue.Queue()
        self._ids = count(1)
        self._over: set[str] = set()
        self.connection = evtws.Connection(
            match_key=session_and_id,
            split=self._with_the_end_of_calls,
            on_message=lambda message, _: self.events.put(message.params),
            **{"max_size": MAX_SIZE, "request_timeout": SOON, **options},
        )
        self.connection.dial(server.url)

    def _with_the_end_of_calls(self, message: Message) -> list[Message]:
        """A `split`: behind the event that a session is over comes an error for each of its calls, as a reply."""
        params = message.params = json.loads(message.body)
        if params.get("method") == "Target.detachedFromTarget":
            session, error = params["params"]["sessionId"], {"code": -32000, "message": "The target closed"}
            self._over.add(session)
            over = [call.params["id"] for call in self.connection.pending if call.params.get("sessionId") == session]
            return [message, *(Message.json({"id": number, "sessionId": session, "error": error}) for number in over)]
        if "error" in params and "sessionId" not in params:
            self._name_the_session(params)
        return [message]

    def _name_the_session(self, params: dict[str, Any]) -> None:
        # What comes too late for its session is refused without the session's name.
        for call in self.connection.pending:
            if call.params["id"] == params["id"] and call.params.get("sessionId") in self._over:
                params["sessionId"] = call.params["sessionId"]

    def message(self, method: str, session: str | None = None, number: int | None = None, **params: Any) -> Message:
        """A command for the session, None: the browser; `number` is its id, None: the next one."""
        command = {"id": number or next(self._ids), "method": method, "params": params}
        return Message.json(command | ({"sessionId": session} if session else {}))

    def ask(self, method: str, session: str | None = None, **params: Any) -> Any:
        """The result of a command; raises RuntimeError with what the reply says against it."""
        return result_of(self.connection.request(self.message(method, session, **params)))

    def evaluate(self, expression: str, session: str, number: int | None = None) -> Message:
        """The command that evaluates an expression, awaiting its promise."""
        options = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        return self.message("Runtime.evaluate", session, number, **options)

    def open_page(self) -> tuple[str, str]:
        """The target and the session of a new page."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        return target, self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def event(self, method: str) -> Any:
        """The next event of that name; those before it are passed over."""
        while True:
            event = self.events.get(timeout=SOON)
            if event["method"] == method:
                return event


def result_of(reply: Message) -> Any:
    """What a reply holds; raises RuntimeError where that is an error."""
    if "error" in reply.params:
        raise RuntimeError(reply.params["error"]["message"])
    return reply.params["result"]


def value_of(reply: Message) -> Any:
    """The value of an evaluated expression."""
    return result_of(reply)["result"]["value"]
