"""How a sender is told of its call's end: a wait, a Future, a callback, a stream."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from queue import Empty
from typing import Any

import pytest

from evtws import calls as room
from evtws.calls import Calling, InFuture, Reply, SendOnly, Streaming, Waiting
from evtws.errors import ConnectionLost, EvtwsError, ReplyTimeout, RequestCancelled, SlowConsumer
from evtws.message import Message
from evtws.task import Task

from .timing import MS, SOON

REPLY = Message("reply")
LOST = ConnectionLost("gone")


class Queue:
    """A queue with one call in it, and the callbacks that are run later."""

    def __init__(self) -> None:
        self._taken = threading.Lock()
        self.later: list[Task] = []
        self.reply = Reply(self.take, self.later.extend, self._wait)

    def take(self) -> bool:
        """Take the call out; True for the first who does."""
        return self._taken.acquire(blocking=False)

    def answer(self) -> None:
        if self.take():
            self.later.extend(self.reply.answer(REPLY))

    def fail(self, error: EvtwsError = LOST) -> None:
        if self.take():
            self.later.extend(self.reply.fail(error))

    def run(self) -> None:
        """Do what the callbacks thread does."""
        while self.later:
            task = self.later.pop(0)
            task.function(*task.arguments)

    @staticmethod
    def _wait(reply: Any, deadline: float | None) -> bool:
        return bool(reply.wait_until(deadline))


def timer(function: Callable[[], object]) -> threading.Thread:
    """A thread that does it in a moment."""
    thread = threading.Timer(5 * MS, function)
    thread.start()
    return thread


# -- a Future


def test_a_reply_is_its_result() -> None:
    """result gives the reply, whether it came before or comes while somebody waits; exception is None."""
    queue = Queue()
    queue.answer()
    assert queue.reply.result() is REPLY
    assert queue.reply.exception() is None
    assert queue.reply.done()
    assert queue.reply.has_ended
    late = Queue()
    thread = timer(late.answer)
    assert late.reply.result(SOON) is REPLY
    assert late.reply.result(0) is REPLY
    assert "finished" in repr(late.reply)
    thread.join()


def test_a_failure_is_its_exception() -> None:
    """result raises and exception gives what the request ended by, before and during a wait."""
    queue = Queue()
    queue.fail()
    assert queue.reply.exception() is LOST
    with pytest.raises(ConnectionLost, match="gone"):
        queue.reply.result()
    late = Queue()
    thread = timer(late.fail)
    assert late.reply.exception(SOON) is LOST
    with pytest.raises(ConnectionLost):
        late.reply.result()
    thread.join()


def test_waiting_for_a_result_is_bounded() -> None:
    """result and exception raise concurrent.futures.TimeoutError after the timeout; the Future lives on."""
    queue = Queue()
    before = time.monotonic()
    with pytest.raises(concurrent.futures.TimeoutError):
        queue.reply.result(20 * MS)
    assert time.monotonic() - before >= 19 * MS
    with pytest.raises(concurrent.futures.TimeoutError):
        queue.reply.exception(0)
    assert not queue.reply.done()
    assert not queue.reply.cancelled()
    assert not queue.reply.running()
    assert "pending" in repr(queue.reply)
    queue.answer()
    assert queue.reply.result() is REPLY


def test_wait_knows_all_ways_to_end() -> None:
    """concurrent.futures.wait and as_completed end for answered, failed and cancelled Futures alike."""
    queues = [Queue() for _ in range(6)]
    replies: list[Future[Message]] = [queue.reply for queue in queues]
    queues[0].answer()
    done, _ = concurrent.futures.wait(replies, SOON, concurrent.futures.FIRST_COMPLETED)
    assert done == {replies[0]}
    threads = [
        timer(queues[1].answer),
        timer(queues[2].fail),
        timer(replies[3].cancel),
        timer(queues[4].answer),
        timer(queues[5].fail),
    ]
    assert concurrent.futures.wait(replies, SOON).done == set(replies)
    assert set(concurrent.futures.as_completed(replies, SOON)) == set(replies)
    for thread in threads:
        thread.join()


def test_as_completed_gives_them_as_they_come() -> None:
    """as_completed yields each Future when it ends, a removed request among them."""
    queues = [Queue() for _ in range(3)]
    seen: list[int] = []
    queues[2].answer()
    replies: list[Future[Message]] = [queue.reply for queue in queues]
    for future in concurrent.futures.as_completed(replies, SOON):
        seen.append(replies.index(future))
        if len(seen) == 1:
            queues[0].fail(RequestCancelled("removed"))
        elif len(seen) == 2:
            queues[1].fail()
    assert seen == [2, 0, 1]


def test_a_coroutine_can_await_it() -> None:
    """asyncio.wrap_future gives the reply, the failure and the cancellation to a coroutine, both ways."""

    async def body() -> None:
        loop = asyncio.get_running_loop()
        answered, failed, removed, given_up = (Queue() for _ in range(4))
        wrapped = [asyncio.wrap_future(queue.reply, loop=loop) for queue in (answered, failed, removed, given_up)]
        answered.answer()
        failed.fail()
        removed.reply.cancel()
        threads = [threading.Thread(target=queue.run) for queue in (answered, failed, removed)]
        for thread in threads:
            thread.start()
        assert await wrapped[0] is REPLY
        with pytest.raises(ConnectionLost):
            await wrapped[1]
        with pytest.raises(asyncio.CancelledError):
            await wrapped[2]
        wrapped[3].cancel()
        await asyncio.sleep(0)
        assert given_up.reply.cancelled()
        for thread in threads:
            thread.join(SOON)

    asyncio.run(body())


def test_cancel_takes_the_request_out() -> None:
    """cancel removes a pending request and ends every wait with CancelledError; a second one changes nothing."""
    queue = Queue()
    waited: list[type[BaseException]] = []

    def wait() -> None:
        try:
            queue.reply.result(SOON)
        except BaseException as exc:
            waited.append(type(exc))

    thread = threading.Thread(target=wait)
    thread.start()
    assert queue.reply.cancel()
    thread.join(SOON)
    assert waited == [CancelledError]
    assert queue.reply.cancel()
    assert queue.reply.cancelled()
    assert queue.reply.done()
    assert not queue.take()
    with pytest.raises(CancelledError):
        queue.reply.exception()


def test_cancel_comes_too_late() -> None:
    """cancel of a Future that has its result is False and changes nothing."""
    queue = Queue()
    queue.answer()
    assert not queue.reply.cancel()
    assert queue.reply.result() is REPLY


def test_a_removed_request_is_a_cancelled_future() -> None:
    """A request that was removed from the queue is cancelled, and has no exception to raise but CancelledError."""
    queue = Queue()
    queue.fail(RequestCancelled("removed"))
    assert queue.reply.cancelled()
    with pytest.raises(CancelledError):
        queue.reply.result(SOON)


def test_done_callbacks_run_later() -> None:
    """Done-callbacks never run in the thread that ends or adds, but are queued, in order, each once."""
    queue = Queue()
    seen: list[Any] = []
    for number in range(2):
        queue.reply.add_done_callback(lambda future, number=number: seen.append((number, future)))  # type: ignore[misc]
    queue.answer()
    queue.reply.add_done_callback(lambda future: seen.append((2, future)))
    assert seen == []
    queue.run()
    assert seen == [(number, queue.reply) for number in range(3)]


def test_done_callbacks_hear_of_a_cancellation() -> None:
    """Cancelling queues the done-callbacks, too."""
    queue = Queue()
    seen: list[bool] = []
    queue.reply.add_done_callback(lambda future: seen.append(future.cancelled()))
    queue.reply.cancel()
    queue.run()
    assert seen == [True]


def test_the_thread_that_reads_is_woken() -> None:
    """Whoever waits while it reads is woken by `wake` when the Future ends."""
    for end in (Queue.answer, Queue.fail, lambda queue: queue.reply.cancel()):
        queue = Queue()
        woken: list[bool] = []
        queue.reply.wake = lambda queue=queue, woken=woken: woken.append(queue.reply.done())
        end(queue)
        assert woken == [True]


def test_answer_and_cancel_race_for_one_end() -> None:
    """Under a race of answer and cancel exactly one wins, and everybody who waits is told by it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    ends: set[str] = set()
    try:
        for number in range(150):
            queue = Queue()
            called: list[Any] = []
            results: list[Any] = []

            def wait(queue: Queue = queue, results: list[Any] = results) -> None:
                try:
                    results.append(queue.reply.result(SOON))
                except CancelledError as exc:
                    results.append(type(exc))

            def add(queue: Queue = queue, called: list[Any] = called) -> None:
                queue.reply.add_done_callback(called.append)

            actions = [wait, add, queue.answer, queue.reply.cancel, wait]
            threads = [threading.Thread(target=action) for action in actions[:: 1 if number % 2 else -1]]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(2 * SOON)
            queue.run()
            assert len(results) == 2
            assert set(results) == {CancelledError if queue.reply.cancelled() else REPLY}
            assert called == [queue.reply]
            ends.add(str(queue.reply.cancelled()))
    finally:
        sys.setswitchinterval(before)
    assert ends


def test_no_wake_up_is_lost() -> None:
    """A wait that begins at the very moment of the answer ends, whichever comes first."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(50):
            queues = [Queue() for _ in range(20)]

            def answer(queues: list[Queue] = queues) -> None:
                for queue in queues:
                    queue.answer()

            thread = threading.Thread(target=answer)
            thread.start()
            assert {queue.reply.result(SOON) for queue in queues} == {REPLY}
            thread.join()
    finally:
        sys.setswitchinterval(before)


def test_a_future_is_small() -> None:
    """A Reply that nobody waits for takes less than 60 % of a Future's memory."""

    def size(make: Callable[[], object]) -> float:
        gc.collect()
        tracemalloc.start()
        try:
            kept = [make() for _ in range(500)]
            return tracemalloc.get_traced_memory()[0] / len(kept)
        finally:
            tracemalloc.stop()

    def later(_tasks: Sequence[Task]) -> None:
        pass

    size(Future)
    assert size(lambda: Reply(bool, later, Queue._wait)) < 0.6 * size(Future)


def in_future() -> InFuture:
    """A call, and a Future that knows how to take it out of the queue."""
    call = InFuture(Message("q"), 0.0, None)
    call.future = Reply(lambda: call.ended_at is None, lambda _tasks: None, Queue._wait)
    return call


def test_an_ended_future_needs_no_garbage_collector() -> None:
    """Once ended, a call, its Future and the exception that result raised do not keep each other alive."""
    gc.collect()
    gc.disable()
    try:
        call = in_future()
        call.fail(ConnectionLost("mine"))
        with pytest.raises(ConnectionLost):
            call.future.result()
        reference = weakref.ref(call.future)
        del call
        assert reference() is None
    finally:
        gc.enable()


def test_a_call_passes_its_end_on_to_its_future() -> None:
    """InFuture ends its Future by a reply or an error."""
    for error in (None, LOST):
        queue = Queue()
        call = InFuture(Message("q"), 0.0, 5.0)
        call.future = queue.reply
        tasks = call.answer(REPLY) if error is None else call.fail(error)
        assert tasks == ()
        assert queue.reply.exception() is error
        assert call.deadline == 5.0


# -- a wait


def test_a_waiting_call_ends_by_its_reply_or_error() -> None:
    """wait_until returns True once the call has ended, and keeps the reply or the error."""
    for error in (None, LOST):
        call = Waiting(Message("q"), 0.0, None, "fail")
        assert not call.has_ended

        def end(call: Waiting = call, error: ConnectionLost | None = error) -> None:
            assert (call.answer(REPLY) if error is None else call.fail(error)) == ()

        thread = timer(end)
        assert call.wait_until(None)
        assert call.wait_until(0)
        call.wait_on()
        assert [call.has_ended] == [True]
        assert call.error is error
        assert call.reply is (REPLY if error is None else None)
        thread.join()


def test_a_wait_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """wait_until returns False at the deadline, also where it must wait in slices, and waits on without one."""
    call = Waiting(Message("q"), 0.0, None, "fail")
    for piece in (SOON, MS):
        monkeypatch.setattr(room, "_SLICE", piece)
        before = time.monotonic()
        assert not call.wait_until(before + 10 * MS)
        assert 9 * MS <= time.monotonic() - before < SOON
    thread = timer(lambda: call.answer(REPLY))
    assert call.wait_until(None)
    thread.join()


def test_whoever_reads_is_woken_by_the_end_of_its_call() -> None:
    """`wake` is called after the call has ended, if there is one."""
    call = Waiting(Message("q"), 0.0, None, "fail")
    woken: list[bool] = []
    call.wake = lambda: woken.append(call.has_ended)
    call.answer(REPLY)
    assert woken == [True]


# -- a callback, and nothing at all


def report(error: EvtwsError) -> Sequence[Task]:
    return (Task(print, (error,)),)


def test_a_callback_gets_the_reply() -> None:
    """The message's callback is queued with the reply and the connection; on_failure with the error."""
    connection: Any = object()
    message = Message("q", callback=print, on_failure=repr)  # type: ignore[arg-type]
    call = Calling(message, 0.0, None, "fail", connection=connection, report=report)
    assert call.answer(REPLY) == (Task(print, (REPLY, connection)),)
    assert call.fail(LOST) == (Task(repr, (LOST, connection)),)
    assert call.fail(RequestCancelled("removed")) == ()
    silent = Calling(Message("q", callback=print), 0.0, None, "fail", connection=connection, report=report)
    assert silent.fail(LOST) == report(LOST)


def test_a_message_without_reply_reports_its_failure() -> None:
    """SendOnly awaits no reply; its failure is reported, its removal is not."""
    call = SendOnly(Message("q"), 0.0, None, report)
    assert not call.wants_reply
    assert call.fail(LOST) == report(LOST)
    assert call.fail(RequestCancelled("removed")) == ()


# -- a stream


def stream(maxsize: int = 2) -> Streaming:
    return Streaming(Message("q"), 0.0, "fail", bool, maxsize)


def test_replies_are_taken_in_order() -> None:
    """take gives one reply after another, then None for ever once the stream has ended."""
    call = stream()
    first, second = Message("1"), Message("2")
    call.answer(first)
    assert not call.is_full
    call.answer(second)
    assert [call.is_full] == [True]
    call.end()
    assert [call.take(0), call.take(0), call.take(0), call.take(0)] == [first, second, None, None]


def test_taking_waits_for_a_reply() -> None:
    """take waits for a reply or the end, at most its timeout, and raises TimeoutError then."""
    call = stream()
    before = time.monotonic()
    with pytest.raises(TimeoutError):
        call.take(10 * MS)
    assert time.monotonic() - before >= 9 * MS
    thread = timer(lambda: call.answer(REPLY))
    assert call.take(None) is REPLY
    thread.join()
    thread = timer(call.end)
    assert call.take(SOON) is None
    thread.join()


class Late:
    """A queue whose first wait ends for want of time, just when something comes."""

    def __init__(self, queue: Any, comes: Callable[[], object]) -> None:
        self._queue, self._comes = queue, comes
        self.put, self.empty, self.qsize = queue.put, queue.empty, queue.qsize
        self._first = True

    def get(self, block: bool, timeout: float | None) -> Any:
        if self._first:
            self._first = False
            self._comes()
            raise Empty
        return self._queue.get(block, timeout)


def test_the_last_reply_comes_when_the_time_is_up() -> None:
    """A last reply that comes just when the time is up is taken, not lost."""
    call = stream()

    def comes() -> None:
        call.answer(REPLY)
        call.end()

    replies: Any = Late(call._replies, comes)
    call._replies = replies
    assert [call.take(0), call.take(0)] == [REPLY, None]


def test_two_threads_look_at_the_end() -> None:
    """Whoever finds the queue of an ended stream empty, since another thread looks at its end just now, has the end."""
    call = stream()
    call.ended = True
    assert call.take(None) is None


def test_what_ended_a_stream_comes_after_its_replies() -> None:
    """A failure is raised once the replies that came before it are taken."""
    call = stream(1)
    call.answer(REPLY)
    error = call.overflow()
    assert isinstance(error, SlowConsumer)
    assert error.dropped == 1
    assert call.overflowed
    assert call.fail(error) == ()
    assert call.take(0) is REPLY
    for _ in range(2):
        with pytest.raises(SlowConsumer):
            call.take(0)


def test_a_timeout_can_be_an_outcome() -> None:
    """A ReplyTimeout that ends a call is what its Future raises, and a TimeoutError as well."""
    queue = Queue()
    queue.fail(ReplyTimeout("late", waited=1.0, written="yes"))
    with pytest.raises(TimeoutError) as caught:
        queue.reply.result()
    assert isinstance(caught.value, ReplyTimeout)
