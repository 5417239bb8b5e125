"""evtws with Chromium's DevTools: replies by session and id, events, targets that go, replies of 20 MB."""

from __future__ import annotations

import threading

import pytest

import evtws
from tests.timing import MS, SOON

from .devtools import DevTools, result_of, value_of
from .servers import Chromium

BIG = 20 << 20


def test_a_command_gets_its_reply(devtools: DevTools) -> None:
    """A command to the browser, which has no session, is answered by its id."""
    assert "Chrome" in devtools.ask("Browser.getVersion")["product"]


def test_a_refused_command_gets_the_error(devtools: DevTools) -> None:
    """What the browser refuses is a reply with an error."""
    with pytest.raises(RuntimeError, match=r"'No\.such' wasn't found"):
        devtools.ask("No.such")


def test_the_same_id_may_be_in_flight_in_two_sessions(devtools: DevTools) -> None:
    """Two sessions' calls with one id, in flight together, each get their own reply."""
    sessions = [devtools.open_page()[1] for _ in range(2)]
    wait = "new Promise(done => globalThis.done = done)"
    number = 7
    first, second = (devtools.connection.submit(devtools.evaluate(wait, session, number)) for session in sessions)
    assert len(devtools.connection.pending) == 2
    devtools.ask("Runtime.evaluate", sessions[1], expression="done('second')")
    assert value_of(second.result(SOON)) == "second"
    assert not first.done()
    devtools.ask("Runtime.evaluate", sessions[0], expression="done('first')")
    assert value_of(first.result(SOON)) == "first"


def test_replies_may_come_out_of_order(devtools: DevTools) -> None:
    """A fast evaluation is answered before the slow one that was asked first."""
    _, session = devtools.open_page()
    ended: list[str] = []
    slow, fast = devtools.connection.submit_many(
        [
            devtools.evaluate("new Promise(done => setTimeout(done, 100, 'slow'))", session),
            devtools.evaluate("'fast'", session),
        ]
    )
    for future in (slow, fast):
        future.add_done_callback(lambda done: ended.append(value_of(done.result())))
    assert (value_of(slow.result(SOON)), value_of(fast.result(SOON))) == ("slow", "fast")
    assert devtools.connection.drain(SOON)
    assert ended == ["fast", "slow"]


def test_an_event_comes_before_the_reply_that_caused_it(devtools: DevTools) -> None:
    """What a page logs while it evaluates is an event: it goes to on_message and answers nothing."""
    _, session = devtools.open_page()
    devtools.ask("Runtime.enable", session)
    devtools.ask("Runtime.evaluate", session, expression="console.log('said')")
    event = devtools.event("Runtime.consoleAPICalled")
    assert event["sessionId"] == session
    assert event["params"]["args"][0]["value"] == "said"


def test_an_evaluation_whose_target_closes_ends_in_an_error_that_says_so(devtools: DevTools) -> None:
    """The calls of a session whose target closes end by an error, those of other sessions do not."""
    target, session = devtools.open_page()
    _, other = devtools.open_page()
    never = "new Promise(() => {})"
    alive = devtools.connection.submit(devtools.evaluate("new Promise(done => globalThis.done = done)", other))
    doomed = [devtools.connection.submit(devtools.evaluate(never, session)) for _ in range(3)]
    devtools.ask("Target.closeTarget", targetId=target)
    for future in doomed:
        with pytest.raises(RuntimeError, match="The target closed"):
            result_of(future.result(SOON))
    assert devtools.event("Target.detachedFromTarget")["params"]["sessionId"] == session
    devtools.ask("Runtime.evaluate", other, expression="done('alive')")
    assert value_of(alive.result(SOON)) == "alive"


def test_a_call_of_a_session_that_is_over_is_refused(devtools: DevTools) -> None:
    """A command for a session whose target has closed is answered by the browser."""
    target, session = devtools.open_page()
    devtools.ask("Target.closeTarget", targetId=target)
    devtools.event("Target.detachedFromTarget")
    with pytest.raises(RuntimeError, match="Session with given id not found"):
        devtools.ask("Runtime.evaluate", session, expression="1")


def test_a_waiting_thread_is_freed_by_removing_its_request(devtools: DevTools) -> None:
    """A request that is taken out of the queue, by whoever knows that no reply will come, raises RequestCancelled."""
    _, session = devtools.open_page()
    never = devtools.evaluate("new Promise(() => {})", session)
    waiter = threading.Timer(20 * MS, devtools.connection.remove_from_queue, (never,))
    waiter.start()
    with pytest.raises(evtws.RequestCancelled):
        devtools.connection.request(never)
    waiter.join()


def test_a_reply_of_20_megabytes_comes_whole(devtools: DevTools) -> None:
    """A reply under `max_size` comes whole, however many frames and reads it takes."""
    _, session = devtools.open_page()
    reply = devtools.connection.request(devtools.evaluate(f"'0123456789'.repeat({BIG // 10})", session))
    assert value_of(reply) == "0123456789" * (BIG // 10)


def test_a_reply_over_max_size_ends_the_connection(chromium: Chromium) -> None:
    """A reply over `max_size` is refused by its size, and the request is told so."""
    tools = DevTools(chromium, max_size=1 << 20)
    with tools.connection as connection:
        _, session = tools.open_page()
        with pytest.raises(evtws.MessageTooBig) as caught:
            connection.request(tools.evaluate(f"'x'.repeat({BIG})", session))
        assert caught.value.size > caught.value.limit == 1 << 20
        assert caught.value.message is not None
