"""The specification of evtws/correlation.py."""

import enum
import json
import types
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evtws.correlation import Correlation, in_order, json_params, keyed
from evtws.message import Message

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from("abid"), inner),
    max_leaves=8,
)


class Number(enum.IntEnum):
    """An int by another type, as users have for ids."""

    SEVEN = 7


class Word(str, enum.Enum):
    """A str by another type."""

    HELLO = "hello"


def msg(params: Any) -> Message:
    return Message("", params)


def key(path: str, params: Any) -> Any:
    """The key that a request with these params has."""
    return keyed(path)[0](msg(params))


def test_flat_path() -> None:
    """A path without a dot is a key of the params; int and str come as they are."""
    assert key("id", {"id": 7}) == 7
    assert key("id", {"id": "7"}) == "7"


def test_same_for_both_sides() -> None:
    """Plain paths read requests and responses alike."""
    for_request, for_response = keyed("id")
    assert for_request(msg({"id": 5})) == for_response(msg({"id": 5, "result": 1}))


def test_dotted_path() -> None:
    """A dotted path leads through nested mappings."""
    assert key("header.msg_id", {"header": {"msg_id": "a"}}) == "a"
    assert key("a.b.c", {"a": {"b": {"c": 3}}}) == 3


@pytest.mark.parametrize("path", ["id", "id.x", "a.id"])
@pytest.mark.parametrize(
    "params",
    [None, "id", b"id", 5, [], ["id"], {}, {"id": None}, {"a": None}, {"a": {}}, {"a": {"id": None}}],
)
def test_missing_or_null_is_no_key(path: str, params: Any) -> None:
    """Params that do not lead to a value, or that lead to null, give no key."""
    assert key(path, params) is None


@pytest.mark.parametrize("path", ["id", "a.id"])
def test_four_different_keys(path: str) -> None:
    """1, 1.0, true and "1" are four different keys."""
    values: list[Any] = [1, 1.0, True, "1"]
    assert len({key(path, {"id": value, "a": {"id": value}}) for value in values}) == 4


@pytest.mark.parametrize("path", ["id", "a.id"])
@pytest.mark.parametrize("value", [1, 0, -5, 2**70, 1.5, True, False, "", "1", Decimal("1"), b"1", (1, 2)])
def test_equal_values_equal_keys(path: str, value: Any) -> None:
    """Two messages with the same value, falsy ones too, have the same key."""
    first = key(path, {"id": value, "a": {"id": value}})
    assert first is not None
    assert first == key(path, {"id": value, "a": {"id": value}})


def test_enums_count_as_what_they_are_on_the_wire() -> None:
    """A key from an IntEnum or a str Enum equals the plain one that the response brings back."""
    assert key("id", {"id": Number.SEVEN}) == 7
    assert key("id", {"id": Word.HELLO}) == "hello"
    assert type(key("id", {"id": Number.SEVEN})) is int
    assert type(key("id", {"id": Word.HELLO})) is str


@pytest.mark.parametrize("value", [[1], {"a": 1}, {1}, ([],)])
def test_unhashable_is_no_key(value: Any) -> None:
    """A value that cannot be hashed is no key, alone or among several."""
    assert key("id", {"id": value}) is None
    assert keyed("id", "n")[0](msg({"id": value, "n": 1})) is None


def test_any_mapping() -> None:
    """Params may be any mapping, at every level."""
    proxy = types.MappingProxyType
    assert key("id", proxy({"id": 1})) == 1
    assert key("a.id", proxy({"a": proxy({"id": 1})})) == 1


def test_lists_are_not_entered() -> None:
    """A path leads through mappings only."""
    assert key("0", ["a"]) is None
    assert key("a.0", {"a": ["x"]}) is None


def test_several_paths_make_a_tuple() -> None:
    """Several paths make one key of all their values, and none when one of them is missing or null."""
    for_request, _ = keyed("channel", "head.id")
    assert for_request(msg({"channel": "c", "head": {"id": 1}})) == ("c", 1)
    assert for_request(msg({"channel": "c", "head": {"id": True}})) != ("c", 1)
    assert for_request(msg({"channel": "c"})) is None
    assert for_request(msg({"channel": None, "head": {"id": 1}})) is None


def test_different_places() -> None:
    """request= and response= say where each side has its key."""
    for_request, for_response = keyed(request="id", response="reply_to")
    assert for_request(msg({"id": 4})) == for_response(msg({"id": 9, "reply_to": 4})) == 4
    assert for_response(msg({"id": 4})) is None


def test_different_places_several() -> None:
    """request= and response= also take sequences of paths."""
    for_request, for_response = keyed(request=["id", "h.c"], response=("re", "c"))
    assert for_request(msg({"id": 4, "h": {"c": "x"}})) == for_response(msg({"re": 4, "c": "x"})) == (4, "x")


@pytest.mark.parametrize(
    "call",
    [
        lambda: keyed(),
        lambda: keyed(request="id"),
        lambda: keyed(response="id"),
        lambda: keyed("id", request="id"),
        lambda: keyed("id", request="id", response="id"),
        lambda: keyed(request=[], response=[]),
        lambda: keyed(5),  # type: ignore[arg-type]
        lambda: keyed(["id"]),  # type: ignore[arg-type]
    ],
)
def test_nonsense_raises_type_error(call: Callable[[], object]) -> None:
    """No path, half a pair, both forms at once or a path that is no str is a TypeError."""
    with pytest.raises(TypeError):
        call()


@pytest.mark.parametrize("path", ["", ".", "a..b", ".a", "a."])
def test_empty_segment(path: str) -> None:
    """A path with an empty segment is a ValueError that shows it."""
    with pytest.raises(ValueError, match="empty segment"):
        keyed("id", path)


def test_different_numbers_of_paths() -> None:
    """Different numbers of paths for requests and responses, whose keys never are equal, is a ValueError."""
    with pytest.raises(ValueError, match="different numbers"):
        keyed(request="id", response=["re", "c"])


@given(JSON)
def test_any_json_gives_a_hashable_key(params: Any) -> None:
    """Whatever JSON a server sends, reading the key raises nothing and gives None or something hashable."""
    for match_key in (keyed("id"), keyed("a.b"), keyed("id", "a.b")):
        hash(match_key[1](msg(params)))


@given(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), JSON)
def test_keys_are_equal_when_the_json_is(one: Any, other: Any) -> None:
    """Two values have the same key exactly when JSON writes them alike, and null has none."""
    first, second = key("id", {"id": one}), key("id", {"id": other})
    if first is None:
        assert one is None
    else:
        same = (type(one), one) == (type(other), other)
        assert (first == second) is same


def test_in_order_matches_everything() -> None:
    """in_order takes any response for the oldest request."""
    assert in_order(msg(None), msg(1)) is True


@pytest.mark.parametrize("body", ['{"a": [1, null]}', b'{"a": [1, null]}'])
def test_json_params(body: str | bytes) -> None:
    """json_params decodes text and binary bodies into params."""
    message = Message(body)
    json_params(message)
    assert message.params == {"a": [1, None]}


@pytest.mark.parametrize("body", ["", "{", "hello", b"\xff\xfe\xff", "[" * 200_000, "1" * 10_000])
def test_json_params_raises_value_error(body: str | bytes) -> None:
    """A body that is no JSON, nested too deeply, or a number of too many digits is a ValueError."""
    message = Message(body, "before")
    with pytest.raises(ValueError):
        json_params(message)
    assert message.params == "before"


def test_correlation_without_rules() -> None:
    """Without function and key nothing has a key and nothing is asked."""
    rule = Correlation()
    assert rule.match_msg is None
    assert not rule.has_key
    assert not rule.in_order
    assert rule.request_key(msg({"id": 1})) is None
    assert rule.response_key(msg({"id": 1})) is None
    assert rule.key_for_request(msg({"id": 1})) is None


def test_correlation_function() -> None:
    """match_msg is kept as it is, and in_order is known by identity."""

    def match(request: Message, response: Message) -> bool:
        return True

    assert Correlation(match).match_msg is match
    assert not Correlation(match).in_order
    assert Correlation(in_order).in_order


def test_correlation_one_key_function() -> None:
    """One key function serves for requests and responses."""
    rule = Correlation(match_key=lambda message: message.params["id"])
    assert rule.has_key
    assert rule.request_key(msg({"id": 3})) == rule.response_key(msg({"id": 3})) == 3
    assert rule.key_for_request(msg({"id": 3})) == 3


def test_correlation_pair_of_key_functions() -> None:
    """A pair of key functions is one for requests and one for responses."""
    rule = Correlation(match_key=keyed(request="id", response="re"))
    assert rule.key_for_request(msg({"id": 3})) == rule.response_key(msg({"re": 3})) == 3


def test_function_and_key_together() -> None:
    """match_msg and match_key go together."""
    rule = Correlation(lambda request, response: False, keyed("id"))
    assert rule.has_key
    assert rule.match_msg is not None


def test_in_order_and_key_exclude_each_other() -> None:
    """in_order with a key is a ValueError."""
    with pytest.raises(ValueError, match="in_order"):
        Correlation(in_order, keyed("id"))


@pytest.mark.parametrize("match_key", ["id", 5, (len,), (len, len, len), (len, "id")])
def test_match_key_must_be_callable(match_key: Any) -> None:
    """match_key that is neither a function nor a pair of them is a TypeError that names the option."""
    with pytest.raises(TypeError, match="match_key"):
        Correlation(match_key=match_key)


def test_match_msg_must_be_callable() -> None:
    """match_msg that is no function is a TypeError that names the option."""
    not_a_function: Any = "id"
    with pytest.raises(TypeError, match="match_msg"):
        Correlation(not_a_function)


def test_request_without_key() -> None:
    """A request without a key is a ValueError that does not show the body."""
    message = Message("secret", {})
    with pytest.raises(ValueError, match="has no key") as caught:
        Correlation(match_key=keyed("id")).key_for_request(message)
    assert "secret" not in str(caught.value)


def test_request_with_unhashable_key() -> None:
    """A request whose key cannot be hashed is a ValueError."""
    key_of: Any = lambda message: message.params  # noqa: E731
    with pytest.raises(ValueError, match="cannot be hashed"):
        Correlation(match_key=key_of).key_for_request(msg([1]))


def test_json_round_trip() -> None:
    """The key of a request equals the key of the reply that echoes its id through JSON."""
    rule = Correlation(match_key=keyed("id"))
    for value in (1, 1.5, True, "1"):
        reply = Message(json.dumps({"id": value}))
        json_params(reply)
        assert rule.key_for_request(msg({"id": value})) == rule.response_key(reply)
