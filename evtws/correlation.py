"""Does this message answer that request? By a function, by a key, or by order.

The three rules that a connection can be given, alone or the first two together:

* `match_msg(request, response) -> bool` is asked for one pending request after the other, oldest first.
* `match_key(message) -> hashable` (or a pair of functions, for requests and for responses) makes it a
  lookup, which costs the same among ten pending requests and a hundred thousand. Together with `match_msg`
  the key narrows and the function decides.
* `match_msg=in_order`, for protocols without ids.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from .message import Message

#: `(request, response) -> bool`: does the response answer the request?
MatchMsg = Callable[[Message, Message], bool]

#: `(message) -> key`: what a request and its response have in common; None is no key, and matches nothing.
KeyOf = Callable[[Message], Hashable | None]

#: One function for both, or one for requests and one for responses.
MatchKey = KeyOf | tuple[KeyOf, KeyOf]


def keyed(
    *paths: str,
    request: str | Sequence[str] | None = None,
    response: str | Sequence[str] | None = None,
) -> tuple[KeyOf, KeyOf]:
    """A `match_key` that reads the key from `message.params`, by dotted path: `keyed("header.msg_id")`.

    A path leads through mappings only. Several paths make the key a tuple: `keyed("channel", "id")`. Where
    requests and responses carry it in different places, say both: `keyed(request="id",
    response="reply_to")`, each a path or a sequence of paths.

    A path that is missing or leads to null is no key, as is a value that cannot be hashed. 1, 1.0, true and
    "1" are four different keys. A key name that contains a dot cannot be said; write a function instead.

    Raises TypeError when no path is given or both forms are, ValueError for a path with an empty segment
    and when requests and responses have different numbers of paths.
    """
    if not paths:
        if request is None or response is None:
            raise TypeError("keyed() takes paths, or both request= and response=")
        return _pair(_as_paths(request), _as_paths(response))
    if request is not None or response is not None:
        raise TypeError("keyed() takes either paths or request= and response=, not both")
    both = _key_of(_as_paths(paths))
    return both, both


def _as_paths(paths: str | Sequence[str]) -> list[list[str]]:
    split = [_segments(path) for path in ([paths] if isinstance(paths, str) else paths)]
    if not split:
        raise TypeError("keyed() takes at least one path")
    return split


def _segments(path: str) -> list[str]:
    if not isinstance(path, str):
        raise TypeError(f"a path is a str, not {type(path).__name__}")
    segments = path.split(".")
    if not all(segments):
        raise ValueError(f"the path {path!r} has an empty segment")
    return segments


def _pair(request: list[list[str]], response: list[list[str]]) -> tuple[KeyOf, KeyOf]:
    if len(request) != len(response):
        raise ValueError("request= and response= have different numbers of paths: no key could ever be equal")
    return _key_of(request), _key_of(response)


def _key_of(paths: list[list[str]]) -> KeyOf:
    readers = [_flat(path[0]) if len(path) == 1 else _nested(path) for path in paths]
    return readers[0] if len(readers) == 1 else _joined(readers)


def _flat(name: str) -> KeyOf:
    # Called for every message that arrives, as are the next two: the usual types are asked for first, since
    # asking an abstract class costs more than all the rest.
    def key(message: Message) -> Hashable | None:
        params = message.params
        if type(params) is not dict and not isinstance(params, Mapping):
            return None
        value = params.get(name)
        kind = type(value)
        return value if kind is int or kind is str else _distinct(value)

    return key


def _nested(segments: list[str]) -> KeyOf:
    def key(message: Message) -> Hashable | None:
        value = message.params
        for segment in segments:
            if type(value) is not dict and not isinstance(value, Mapping):
                return None
            value = value.get(segment)
        kind = type(value)
        return value if kind is int or kind is str else _distinct(value)

    return key


def _joined(readers: list[KeyOf]) -> KeyOf:
    def key(message: Message) -> Hashable | None:
        parts = tuple([read(message) for read in readers])
        return None if None in parts else parts

    return key


def _distinct(value: Any) -> Hashable | None:
    # Python holds 1, 1.0 and True to be one dict key, JSON does not. A subclass (an IntEnum, a StrEnum)
    # comes back from the wire as its plain base, so it counts as that.
    if value is None:
        return None
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    kind = "float" if isinstance(value, float) else type(value).__name__
    return (kind, value) if _is_hashable(value) else None


def _is_hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def in_order(request: Message, response: Message) -> bool:
    """A `match_msg` for protocols without ids: each response answers the oldest request.

    The queue of pending requests knows this very function and keeps the order whole: a request that timed
    out or was removed leaves a tombstone in its place, which takes the one response that is due to it.
    While a tombstone heads the line the later requests wait, until that response comes or `late_after`
    seconds have passed; with `late_after=None` the connection is closed as lost instead, for nobody can
    know any more whose response comes next.
    """
    return True


def json_params(message: Message) -> None:
    """A `msg_prep`: sets `message.params` to what the body says as JSON.

    Raises ValueError when the body is no JSON, nests too deeply, or has an integer of more digits than
    Python reads (`sys.set_int_max_str_digits`).
    """
    try:
        message.params = json.loads(message.body)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def _no_key(message: Message) -> None:
    return None


class Correlation:
    """A connection's rule for which request a message answers.

    `match_msg` is the function, or None; `request_key` and `response_key` read a message's key and return
    None where there is none, always so when `has_key` is false. `in_order` tells that every response
    answers the oldest request. With neither function nor key, nothing answers anything.

    Raises TypeError when an option cannot be called, ValueError when `in_order` is given together with
    `match_key`.
    """

    __slots__ = ("has_key", "in_order", "match_msg", "request_key", "response_key")

    def __init__(self, match_msg: MatchMsg | None = None, match_key: MatchKey | None = None) -> None:
        if match_msg is not None and not callable(match_msg):
            raise TypeError(f"match_msg is a function, not {type(match_msg).__name__}")
        self.in_order = match_msg is in_order
        self.has_key = match_key is not None
        if self.in_order and self.has_key:
            raise ValueError("in_order is for protocols without ids: leave match_key out")
        self.match_msg = match_msg
        self.request_key, self.response_key = (_no_key, _no_key) if match_key is None else _two(match_key)

    def key_for_request(self, message: Message) -> Hashable | None:
        """The key of a request about to be sent, None without `match_key`.

        Raises ValueError where `match_key` finds no key, or one that cannot be hashed: no response could be
        found to answer this request.
        """
        if not self.has_key:
            return None
        key = self.request_key(message)
        if key is None:
            raise ValueError(f"{message!r} has no key by which match_key could find its reply")
        if not _is_hashable(key):
            raise ValueError(f"{message!r} has a key that cannot be hashed, a {type(key).__name__}")
        return key


def _two(match_key: MatchKey) -> tuple[KeyOf, KeyOf]:
    pair: tuple[KeyOf, ...] = match_key if isinstance(match_key, tuple) else (match_key, match_key)
    if len(pair) == 2 and all(map(callable, pair)):
        return pair[0], pair[1]
    raise TypeError("match_key is a function or a pair of functions")
