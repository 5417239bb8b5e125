"""The specification of evtws/session.py, one decision at a time; test_session_model.py tries them together."""

import threading
from collections.abc import Callable

import pytest

from evtws.connection import Connection
from evtws.correlation import Correlation, MatchMsg, in_order
from evtws.errors import (
    ConnectionClosed,
    ConnectionLost,
    DialError,
    IllegalTransition,
    NotConnected,
    OutboxFull,
    PendingFull,
    PrepareError,
    StaleConnection,
    Written,
)
from evtws.keepalive import Keepalive
from evtws.message import InFlight, Message
from evtws.outbox import Outbox
from evtws.pending import Call, PendingQueue
from evtws.reconnect import Reconnect, ReconnectPolicy
from evtws.session import Loss, Session
from evtws.state import State
from evtws.testing import Server

from .timing import MS, SOON

CUT = ConnectionLost("cut")
CLOSED_BY_ME = ConnectionClosed(1000, by_peer=False)


class SendOnly(Call):
    wants_reply = False


class Waiting(Call):
    needs_timer = False


class Ticket:
    def __init__(self, written: Written) -> None:
        self.written = written


def any_match(request: Message, response: Message) -> bool:
    return True


def new(
    *,
    match_msg: MatchMsg = any_match,
    late_after: float | None = 5,
    max_pending: int | None = None,
    outbox: int = 0,
    retry: bool = False,
    ping_interval: float | None = None,
) -> Session:
    pending = PendingQueue(Correlation(match_msg), max_pending=max_pending, late_after=late_after)
    policy = Reconnect(ReconnectPolicy(wait=lambda state: 3.0), False) if retry else None
    return Session(pending, Keepalive(ping_interval), policy, Outbox(outbox))


def connecting(**options: object) -> Session:
    """A session whose first attempt is under way."""
    session = new(**options)  # type: ignore[arg-type]
    session.dial(100)
    assert session.tick(100).dial
    return session


def opened(**options: object) -> Session:
    session = connecting(**options)
    session.upgraded(None)
    assert session.opened(100) == []
    return session


def make(
    timeout: float | None = None, *, kind: type[Call] = Call, in_flight: InFlight = "fail", body: str = "x"
) -> Call:
    return kind(Message(body), 100, timeout, in_flight)


def sent(
    session: Session,
    timeout: float | None = None,
    *,
    kind: type[Call] = Call,
    in_flight: InFlight = "fail",
    written: Written = "yes",
) -> Call:
    """A call that was accepted and written."""
    call = make(timeout, kind=kind, in_flight=in_flight)
    assert session.submit(call, 100)
    call.ticket = Ticket(written)
    return call


def state_of(session: Session) -> State:
    return session.state


# -- the connection's life


def test_closed_before_the_first_dial() -> None:
    """A session begins CLOSED, with nothing to do."""
    session = new()
    assert session.state is State.CLOSED
    assert session.next_at is None
    assert session.tick(1e9).dial is False


def test_dial_is_due_at_once() -> None:
    """The first attempt is due when it is wished for, and asked for once."""
    session = new()
    session.dial(100)
    assert session.state is State.CONNECTING
    assert session.next_at == 100
    assert session.tick(100).dial
    assert not session.tick(101).dial
    assert session.next_at is None


def test_opened_counts() -> None:
    """An opening is counted and timed, and forgets what went wrong before."""
    session = connecting(retry=True)
    session.lost(DialError("refused"), 101)
    assert isinstance(session.last_error, DialError)
    session.upgraded(None)
    session.opened(105)
    assert state_of(session) is State.OPEN
    assert [session.openings, session.opened_at, session.last_error] == [1, 105, None]
    assert not session.preparing


@pytest.mark.parametrize(
    ("session", "signal"),
    [
        (new, lambda session: session.opened(100)),
        (new, lambda session: session.lost(CUT, 100)),
        (new, lambda session: session.ended(100)),
        (opened, lambda session: session.dial(100)),
        (opened, lambda session: session.opened(100)),
        (connecting, lambda session: session.dial(100)),
    ],
)
def test_illegal_signals_change_nothing(session: Callable[[], Session], signal: Callable[[Session], object]) -> None:
    """What the state does not allow raises IllegalTransition and changes nothing."""
    it = session()
    before = (it.state, it.last_error, it.openings, it.opened_at, it.retry_at)
    with pytest.raises(IllegalTransition):
        signal(it)
    assert (it.state, it.last_error, it.openings, it.opened_at, it.retry_at) == before


def test_loss_without_reconnect_is_the_end() -> None:
    """A lost connection that is not dialled again is CLOSED."""
    session = opened()
    assert session.lost(CUT, 101) == Loss(None, [], [])
    assert session.state is State.CLOSED
    assert session.last_error is CUT
    assert session.opened_at is None


def test_loss_with_reconnect_waits_for_the_next_attempt() -> None:
    """A lost connection that is dialled again is CONNECTING, and due when the policy says."""
    session = opened(retry=True)
    assert session.lost(CUT, 101).retry_at == 104
    assert session.state is State.CONNECTING
    assert session.next_at == 104
    assert not session.tick(103.9).dial
    assert session.tick(104).dial


def test_loss_that_may_not_be_retried() -> None:
    """A loss that may not be retried is the end, whatever the policy says."""
    session = opened(retry=True)
    assert session.lost(CUT, 101, may_retry=False).retry_at is None
    assert session.state is State.CLOSED


def test_loss_returns_the_waiters_of_pings() -> None:
    """Whoever waits for a pong is returned by the loss, and by the end after a wish to close."""
    session = opened()
    session.keepalive.sent(b"1", 100, "waiter", scheduled=False)
    assert session.lost(CUT, 101).pings == ["waiter"]
    session = opened()
    session.keepalive.sent(b"1", 100, "waiter", scheduled=False)
    session.close(CLOSED_BY_ME, 101, None)
    assert session.ended(102).pings == ["waiter"]


def test_close() -> None:
    """A wish to close ends what is pending, and is carried out by its deadline."""
    session = opened()
    call = sent(session)
    ((failed, error),) = session.close(CLOSED_BY_ME, 101, 106)
    assert failed is call
    assert isinstance(error, ConnectionClosed)
    assert (error.message, error.written) == (call.message, "yes")
    assert state_of(session) is State.CLOSING
    assert session.next_at == 106
    assert not session.tick(105.9).abort
    assert session.tick(106).abort
    assert session.ended(106) == Loss(None, [], [])
    assert state_of(session) is State.CLOSED


def test_close_without_a_deadline() -> None:
    """Without a deadline a wish to close is never broken off."""
    session = opened()
    session.close(CLOSED_BY_ME, 101, None)
    assert session.next_at is None
    assert not session.tick(1e9).abort


def test_close_again_changes_nothing() -> None:
    """A second wish to close, or one of a CLOSED session, changes nothing."""
    session = new()
    assert session.close(CLOSED_BY_ME, 100, 101) == []
    assert session.state is State.CLOSED
    session = opened()
    session.close(CLOSED_BY_ME, 101, 106)
    assert session.close(CLOSED_BY_ME, 101, 102) == []
    assert session.close_by == 106


def test_close_ends_a_backoff() -> None:
    """A wish to close during a backoff ends it: no further attempt is due."""
    session = opened(retry=True)
    session.lost(CUT, 101)
    session.close(CLOSED_BY_ME, 102, None)
    assert session.retry_at is None
    assert not session.tick(104).dial


@pytest.mark.parametrize("session", [new, connecting, opened])
def test_crash(session: Callable[..., Session]) -> None:
    """After a crash of the driver the session is CLOSED, and the calls that nobody will answer are returned."""
    it = session(outbox=1) if session is not new else new()
    call = make()
    if it.state is not State.CLOSED:
        it.submit(call, 100)
    failed = it.crash(CUT, 101)
    assert [one for one, _ in failed] == ([] if session is new else [call])
    assert it.state is State.CLOSED
    assert it.last_error is CUT
    assert len(it.pending) == 0


# -- reconnect_now


def test_reconnect_now_ends_a_backoff() -> None:
    """reconnect_now() makes the next attempt due at once."""
    session = opened(retry=True)
    session.lost(CUT, 101)
    session.reconnect_now(102)
    assert session.next_at == 102
    assert session.tick(102).dial


@pytest.mark.parametrize("preparing", [False, True])
def test_reconnect_now_dials_anew_once(preparing: bool) -> None:
    """After reconnect_now() the connection that is there, be it in preparation, is dialled anew at once, one time."""
    session = connecting() if preparing else opened()
    if preparing:
        session.upgraded(None)
    session.reconnect_now(101)
    assert session.lost(CLOSED_BY_ME, 102).retry_at == 102
    assert session.lost(CUT, 103).retry_at is None


def test_reconnect_now_during_an_attempt() -> None:
    """While an attempt is under way reconnect_now() asks for nothing more."""
    session = connecting()
    session.reconnect_now(101)
    assert session.next_at is None
    assert session.lost(CUT, 102).retry_at is None


def test_reconnect_now_when_closed() -> None:
    """reconnect_now() is NotConnected when CLOSING or CLOSED."""
    session = opened()
    session.close(CLOSED_BY_ME, 101, None)
    with pytest.raises(NotConnected, match="CLOSING"):
        session.reconnect_now(102)
    session.ended(103)
    with pytest.raises(NotConnected, match="CLOSED"):
        session.reconnect_now(104)


# -- accepting calls


def test_open_session_writes_at_once() -> None:
    """While OPEN a call is written at once, and pending from then on."""
    session = opened()
    call = make()
    assert session.submit(call, 101)
    assert call.sent_at == 101
    assert session.find(call.message) is call
    assert len(session.pending) == 1


def test_send_only_is_not_pending() -> None:
    """A message that nobody awaits a reply to is written and forgotten."""
    session = opened()
    call = make(1, kind=SendOnly)
    assert session.submit(call, 101)
    assert session.find(call.message) is None
    assert not session.cancel(call, 102)
    assert session.next_at is None
    assert session.tick(200).expired == []


@pytest.mark.parametrize("kind", [Call, SendOnly])
def test_pending_message_is_refused(kind: type[Call]) -> None:
    """A Message that is pending can neither be asked nor sent again meanwhile."""
    session = opened()
    call = sent(session)
    again = kind(call.message, 101, None)
    with pytest.raises(ValueError, match="pending"):
        session.submit(again, 101)
    assert list(session.pending) == [call]


def test_without_an_outbox() -> None:
    """While not OPEN a call is refused where there is no outbox, and nothing is kept of it."""
    session = connecting()
    call = make(1)
    with pytest.raises(NotConnected, match="outbox"):
        session.submit(call, 100)
    assert len(session.pending) == 0
    assert session.next_at is None


def test_full_outbox() -> None:
    """A call that finds no room in the outbox is refused, and nothing is kept of it."""
    session = connecting(outbox=1)
    first, second = make(), make()
    assert not session.submit(first, 100)
    with pytest.raises(OutboxFull):
        session.submit(second, 100)
    assert list(session.pending) == [first]


def test_full_queue() -> None:
    """A call above max_pending is refused; one that awaits no reply is not."""
    session = opened(max_pending=1)
    sent(session)
    with pytest.raises(PendingFull):
        session.submit(make(), 100)
    assert session.submit(make(kind=SendOnly), 100)


@pytest.mark.parametrize("state", ["CLOSING", "CLOSED"])
def test_closed_session_accepts_nothing(state: str) -> None:
    """When CLOSING or CLOSED every call is NotConnected, whatever the outbox."""
    session = opened(outbox=5)
    session.close(CLOSED_BY_ME, 101, None)
    if state == "CLOSED":
        session.ended(102)
    for direct in (False, True):
        with pytest.raises(NotConnected, match=state):
            session.submit(make(), 103, direct=direct)


def test_outbox_goes_out_in_order() -> None:
    """What waited is written when the connection opens, in the order in which it came."""
    session = connecting(outbox=5)
    calls = [make(), make(kind=SendOnly), make()]
    for call in calls:
        session.submit(call, 100)
    assert session.opened(105) == calls
    assert [call.sent_at for call in calls] == [105, 105, 105]
    assert len(session.outbox) == 0


def test_prepare_sends_directly() -> None:
    """What prepare sends goes straight out, before all that waits; others wait until it returns."""
    session = connecting(outbox=5)
    waiting, login, other = make(), make(), make()
    session.submit(waiting, 100)
    session.upgraded(None)
    assert session.submit(login, 101, direct=True)
    assert not session.submit(other, 101)
    assert session.opened(102) == [waiting, other]


def test_direct_is_for_prepare_alone() -> None:
    """Once prepare has returned, or before there is a connection, nothing is direct any more."""
    session = connecting(outbox=5)
    assert not session.submit(make(), 100, direct=True)
    session.upgraded(None)
    session.opened(101)
    session.draining = True
    with pytest.raises(NotConnected):
        session.submit(make(), 102, direct=True)


def test_draining_refuses_all_but_prepare() -> None:
    """While draining new calls are NotConnected, but a login goes out."""
    session = connecting(outbox=5)
    session.draining = True
    with pytest.raises(NotConnected, match="draining"):
        session.submit(make(), 100)
    session.upgraded(None)
    assert session.submit(make(), 100, direct=True)


# -- calls leave


def test_cancel() -> None:
    """A call that is cancelled is gone from the queue and the outbox, once."""
    session = connecting(outbox=5)
    request, plain = make(), make(kind=SendOnly)
    session.submit(request, 100)
    session.submit(plain, 100)
    assert session.find(plain.message) is plain
    assert session.cancel(request, 101)
    assert session.cancel(plain, 101)
    assert not session.cancel(request, 102)
    assert not session.cancel(plain, 102)
    assert session.opened(103) == []


def test_plain_send_that_could_not_be_written_is_cancelled() -> None:
    """A plain send that was withdrawn from the write buffer can be cancelled, since it was not written."""
    session = opened()
    call = make(kind=SendOnly)
    session.submit(call, 100)
    call.sent_at = None
    assert session.cancel(call, 101)


@pytest.mark.parametrize("written", ["no", "maybe", "yes"])
def test_in_flight_fail(written: Written) -> None:
    """With in_flight="fail" a loss ends what was written, and tells how much of it was; what waits, waits on."""
    session = connecting(retry=True, outbox=5)
    session.upgraded(None)
    waiting, login = make(), make()
    session.submit(waiting, 100)
    session.submit(login, 100, direct=True)
    login.ticket = Ticket(written)
    ((failed, error),) = session.lost(CUT, 101).failed
    assert failed is login
    assert isinstance(error, ConnectionLost)
    assert (error.message, error.written) == (login.message, written)
    assert session.opened(105) == [waiting]


def test_in_flight_resend() -> None:
    """With in_flight="resend" requests go out again in their order, before what waits, past the bounds."""
    session = opened(retry=True, outbox=1)
    first, second = sent(session, in_flight="resend"), sent(session, in_flight="resend")
    session.lost(CUT, 101)
    waiting = make()
    with pytest.raises(OutboxFull):
        session.submit(waiting, 102)
    session.cancel(first, 102)
    again = sent_again(session)
    assert again == [second]
    assert second.written == "yes", "of what was written before"


def sent_again(session: Session) -> list[Call]:
    session.upgraded(None)
    return session.opened(105)


def test_resends_go_before_newer_messages() -> None:
    """What is sent again goes before what came to the outbox meanwhile."""
    session = connecting(retry=True, outbox=5)
    newer, resent = make(), make(in_flight="resend")
    session.submit(newer, 100)
    session.upgraded(None)
    session.submit(resent, 100, direct=True)
    session.lost(CUT, 101)
    assert sent_again(session) == [resent, newer]


def test_in_flight_keep() -> None:
    """With in_flight="keep" a request stays pending and is not written again."""
    session = opened(retry=True)
    call = sent(session, in_flight="keep")
    assert session.lost(CUT, 101).failed == []
    assert sent_again(session) == []
    assert session.pending.claim(call, 106)


def test_in_flight_keep_unwritten() -> None:
    """With in_flight="keep" a request of which not a byte was written goes out on the next connection."""
    for options in ({}, {"match_msg": in_order}):
        session = opened(retry=True, **options)
        call = sent(session, in_flight="keep")
        call.ticket = None
        assert session.lost(CUT, 101).failed == []
        assert sent_again(session) == [call]
        assert session.pending.claim(call, 106)


def test_giving_up_ends_everything() -> None:
    """When no further attempt is made everything ends, what waits and what was to be sent again, too."""
    session = opened(retry=True, outbox=5)
    resent, kept = sent(session, in_flight="resend"), sent(session, in_flight="keep")
    session.lost(CUT, 101)
    plain = make(kind=SendOnly)
    session.submit(plain, 102)
    refused = DialError("refused")
    failed = session.lost(refused, 104, may_retry=False).failed
    assert [call for call, _ in failed] == [plain, resent, kept]
    assert [error.written for _, error in failed if isinstance(error, ConnectionLost)] == ["no", "yes", "yes"]
    assert {error.__cause__ for _, error in failed} == {refused}
    assert len(session.outbox) == len(session.pending) == 0


# -- an in_order line


def test_blocked_line_holds_later_calls() -> None:
    """While a request that ended without its reply heads the line, later messages wait, plain ones too."""
    session = opened(match_msg=in_order)
    first = sent(session)
    session.cancel(first, 101)
    later = [make(), make(kind=SendOnly), make()]
    assert [session.submit(call, 101) for call in later] == [False, False, False]
    assert session.next_at == 106
    assert session.unblocked(105.9) == []
    assert session.tick(106).writes == later
    assert session.next_at is None


def test_late_reply_unblocks_the_line() -> None:
    """The late reply that a line waits for lets the later messages out."""
    session = opened(match_msg=in_order)
    session.cancel(sent(session), 101)
    later = make()
    session.submit(later, 101)
    session.pending.next_in_line(102)
    assert session.unblocked(102) == [later]


def test_held_messages_keep_their_turn() -> None:
    """As long as messages are held back, those that come after are, too."""
    session = opened(match_msg=in_order)
    session.cancel(sent(session), 101)
    held, later = make(), make()
    session.submit(held, 101)
    session.pending.next_in_line(102)
    assert not session.submit(later, 102)
    assert session.unblocked(102) == [held, later]


def test_opening_with_a_blocked_line() -> None:
    """A login that was not answered heads the line when the connection opens: what waits is held back."""
    session = connecting(match_msg=in_order, outbox=5)
    session.upgraded(None)
    login, waiting = make(), make()
    session.submit(login, 100, direct=True)
    session.submit(waiting, 100)
    session.cancel(login, 101)
    assert session.opened(102) == []
    assert session.tick(106).writes == [waiting]


def test_overdue_for_ever_is_a_loss() -> None:
    """With late_after=None a line that is blocked ends the connection at once."""
    session = opened(match_msg=in_order, late_after=None)
    call = sent(session, 1)
    assert session.next_at == 101
    due = session.tick(101)
    assert due.expired == [call]
    assert isinstance(due.lost, ConnectionLost)
    assert session.next_at == 0
    session.lost(due.lost, 101)
    assert session.next_at is None


@pytest.mark.parametrize("late_after", [1, None])
def test_blocked_line_is_left_alone_while_not_open(late_after: float | None) -> None:
    """While CLOSING, or during prepare, a blocked line asks for nothing, since nothing can be done for it."""
    session = opened(match_msg=in_order, late_after=late_after)
    sent(session)
    session.close(CLOSED_BY_ME, 101, 110)
    assert session.next_at == 110
    assert session.tick(105).lost is None
    session = connecting(match_msg=in_order, late_after=late_after)
    session.upgraded(120)
    login = make()
    session.submit(login, 100, direct=True)
    session.cancel(login, 101)
    assert session.next_at == 120
    assert session.tick(105).lost is None


def test_waiters_look_again_when_a_line_blocks() -> None:
    """Whoever waits is told to look again when a call leaves an in_order line blocked."""
    session = opened(match_msg=in_order)
    first, second = sent(session, kind=Waiting), sent(session, kind=Waiting)
    session.cancel(second, 101)
    assert not is_sooner(session)
    session.pending.claim(first, 102)
    session.unblocked(102)
    assert is_sooner(session)


def is_sooner(session: Session) -> bool:
    return session.sooner


@pytest.mark.parametrize("leave", ["timeout", "remove", "cancel"])
def test_held_request_goes_out_in_time(leave: str) -> None:
    """On a live connection a caller who leaves the line holds the others back for late_after, and no longer."""
    with Server(lambda client, body: client.send("reply") if body == "b" else None) as server:
        connection = Connection(match_msg=in_order, late_after=100 * MS, ping_interval=None)
        connection.dial(server.url)
        with connection:
            message = Message("a")
            if leave == "timeout":
                with pytest.raises(TimeoutError):
                    connection.request(message, timeout=20 * MS)
            else:
                future = connection.submit(message, timeout=None)
                assert connection.remove_from_queue(message) if leave == "remove" else future.cancel()
            assert connection.request("b", timeout=SOON).body == "reply"


def test_overdue_reply_ends_a_live_connection() -> None:
    """On a live connection with late_after=None a caller who leaves the line ends it, though nothing else happens."""
    lost = threading.Event()
    with Server() as server:
        connection = Connection(
            match_msg=in_order,
            late_after=None,
            ping_interval=None,
            on_disconnected=lambda connection, error: lost.set(),
            on_error=lambda error: None,
        )
        connection.dial(server.url)
        with connection:
            with pytest.raises(TimeoutError):
                connection.request("a", timeout=20 * MS)
            assert lost.wait(SOON)


# -- time


def test_next_at_is_the_earliest() -> None:
    """What is due next is the earliest of all deadlines, retries, pings and lines."""
    session = opened(match_msg=in_order, ping_interval=20)
    assert session.next_at == 120
    sent(session, 15)
    assert session.next_at == 115
    call = make(kind=Waiting)
    session.submit(call, 100)
    blocked = opened(match_msg=in_order, ping_interval=20, late_after=4)
    blocked.cancel(sent(blocked), 101)
    assert blocked.next_at == 105


def test_prepare_is_due() -> None:
    """During prepare its deadline is due, and then the attempt is lost by PrepareError."""
    session = connecting()
    session.upgraded(110)
    assert session.next_at == 110
    assert session.tick(109.9).lost is None
    assert isinstance(session.tick(110).lost, PrepareError)
    session.opened(110)
    assert [session.next_at, session.tick(111).lost] == [None, None]


def test_prepare_without_a_deadline() -> None:
    """Without a deadline prepare may take as long as it likes."""
    session = connecting()
    session.upgraded(None)
    assert session.next_at is None
    assert session.tick(1e9).lost is None


def test_sooner() -> None:
    """Whoever waits is told to look again for a deadline that comes before all others, and for that only."""
    session = opened()
    for timeout, expected in ((None, False), (30, True), (40, False), (10, True)):
        session.sooner = False
        sent(session, timeout)
        assert session.sooner == expected
    session.sooner = False
    sent(session, 1, kind=Waiting)
    assert not is_sooner(session), "it watches its own deadline"


def test_expiry_takes_calls_out() -> None:
    """A call whose time is up is returned once and is pending no more; one that was answered is not."""
    session = opened()
    call, answered = sent(session, 10), sent(session, 10)
    session.pending.claim(answered, 105)
    assert session.expired(109.9) == []
    assert session.expired(110) == [call]
    assert session.expired(110) == []
    assert len(session.pending) == 0


@pytest.mark.parametrize("kind", [Call, SendOnly])
def test_calls_expire_in_the_outbox(kind: type[Call]) -> None:
    """What waits in the outbox expires there, plain sends too, in every state."""
    session = connecting(outbox=5)
    call = make(10, kind=kind)
    session.submit(call, 100)
    assert session.tick(110).expired == [call]
    assert session.opened(111) == []


def test_plain_send_that_went_out_does_not_expire() -> None:
    """A plain send that waited and was written in time does not expire afterwards."""
    session = connecting(outbox=5)
    call = make(10, kind=SendOnly)
    session.submit(call, 100)
    assert session.opened(105) == [call]
    assert session.tick(110).expired == []


def test_pings_are_due() -> None:
    """While OPEN a ping is due at each interval."""
    session = opened(ping_interval=20)
    assert not session.tick(119.9).ping
    assert session.tick(120).ping


def test_stale_connection_is_lost() -> None:
    """When a ping falls due and two are unanswered the connection is lost."""
    session = opened(ping_interval=20)
    for now in (120, 140):
        assert session.tick(now).ping
        session.keepalive.sent(b"%d" % now, now)
    due = session.tick(160)
    assert not due.ping
    assert isinstance(due.lost, StaleConnection)
    assert due.lost.unanswered == 2


def test_missing_pongs_are_not_judged_while_bytes_wait() -> None:
    """While bytes wait to be read, missing pongs mean nothing: another ping is sent."""
    session = opened(ping_interval=20)
    for now in (120, 140):
        session.keepalive.sent(b"%d" % now, now)
    due = session.tick(160, judge=False)
    assert due.ping
    assert due.lost is None
