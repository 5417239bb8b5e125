"""The pytest plugin, in runs of pytest inside this process (pytest's `pytester`)."""

import importlib.metadata
import socket
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

import pytest_evtws
from evtws.testing import tls_contexts

from .timing import MS, SOON

PREFACE = """
import socket, threading, warnings
import pytest
import evtws
from evtws.testing import Server

def dial(server):
    connection = evtws.Connection(match_msg=evtws.in_order, request_timeout=20)
    connection.dial(server.url)
    return connection
"""


class Keeper:
    """Gives the tests of the inner run a place for what they leave behind, and cleans up after that run."""

    def __init__(self) -> None:
        self.kept = ExitStack()
        self.over = threading.Event()

    @pytest.fixture
    def keep(self) -> ExitStack:
        """Closes at the end of the outer test."""
        return self.kept

    @pytest.fixture
    def thread(self) -> threading.Thread:
        """A thread that runs until the end of the outer test, once it is started."""
        thread = threading.Thread(target=self.over.wait, args=[SOON], name="mine", daemon=True)
        self.kept.callback(self._finish, thread)
        return thread

    def _finish(self, thread: threading.Thread) -> None:
        self.over.set()
        if thread.ident is not None:
            thread.join(SOON)


class Inner:
    """Runs a test file that uses the plugin."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self._pytester = pytester
        self.keeper = Keeper()

    def run(self, body: str, *arguments: str) -> pytest.RunResult:
        """The result of a run of these tests."""
        self._pytester.makepyfile(PREFACE + textwrap.dedent(body))
        # Of each run that fails, the plugin of Hypothesis takes a second to import it anew.
        quick = ("-p", "no:hypothesispytest")
        return self._pytester.runpytest_inprocess(*quick, *arguments, plugins=[self.keeper])

    def fails(self, body: str, *lines: str) -> None:
        """The one test passes, but fails at its end with lines that hold these words."""
        result = self.run(body)
        result.assert_outcomes(passed=1, errors=1)
        for line in lines:
            result.stdout.fnmatch_lines([f"*{line}*"])


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[Inner]:
    """A run of pytest inside this process, which gives leaks little time."""
    tls_contexts()  # pytester forgets the modules that a run imported, but cryptography can be imported once only
    monkeypatch.setattr(pytest_evtws, "GRACE", 300 * MS)
    inner = Inner(pytester)
    with inner.keeper.kept:
        yield inner
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        pytest_evtws._forget_earlier_failure()


def test_is_found_by_pytest() -> None:
    """Installing evtws is all it takes: the plugin is an entry point."""
    (entry,) = {point.value for point in importlib.metadata.entry_points(group="pytest11", name="evtws")}
    assert entry == "pytest_evtws"


def test_imports_evtws_late() -> None:
    """Importing the plugin imports nothing of evtws, whose lines are measured only if they are imported later."""
    program = "import pytest_evtws, sys; sys.exit('evtws' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_fixtures_explain_themselves(inner: Inner) -> None:
    """`pytest --fixtures` shows each fixture with its docstring."""
    result = inner.run("", "--fixtures")
    for name in ("evtws_server", "evtws_tls_server", "evtws_fault_proxy", "evtws_no_leaks"):
        result.stdout.re_match_lines([rf"{name} -- .*pytest_evtws\.py:\d+", r"    \w+"])


# What the fixtures are


def test_servers(inner: Inner) -> None:
    """The servers run without a script, which a test sets; each test has its own."""
    result = inner.run(
        """
        @pytest.mark.parametrize("fixture", ["evtws_server", "evtws_tls_server"])
        @pytest.mark.parametrize("word", ["one", "two"])
        def test_answer(fixture, word, request):
            server = request.getfixturevalue(fixture)
            server.on_message = lambda client, body: client.send(f"{body} {word}")
            with evtws.connect(server.url, ssl=server.client_ssl, match_msg=evtws.in_order) as connection:
                assert connection.request("hello", timeout=20).body == f"hello {word}"
            assert server.received == ["hello"]
            assert server.url.startswith("wss" if fixture == "evtws_tls_server" else "ws:")
        """,
        "-W",
        "error",
    )
    result.assert_outcomes(passed=4)


def test_fault_proxies(inner: Inner) -> None:
    """A test makes as many proxies as it likes, in front of any server; they are closed after it."""
    result = inner.run(
        """
        def test_through(evtws_fault_proxy, evtws_server, evtws_tls_server):
            for server in (evtws_server, evtws_tls_server, evtws_server):
                server.on_message = lambda client, body: client.send(body)
                proxy = evtws_fault_proxy(server)
                url = proxy.url_of(server.url)
                with evtws.connect(url, ssl=server.client_ssl, match_msg=evtws.in_order) as connection:
                    assert connection.request("hello", timeout=20).body == "hello"
                assert proxy.connections == 1
            assert evtws_server.dials == 2
        """,
        "-W",
        "error",
    )
    result.assert_outcomes(passed=1)


def test_script_errors_fail_the_test(inner: Inner) -> None:
    """What a script function raised fails the test at its end."""
    inner.fails(
        """
        def test_script(evtws_server):
            def script(client, body):
                raise LookupError("in the script")
            evtws_server.on_message = script
            with dial(evtws_server) as connection, pytest.raises(evtws.ConnectionLost):
                connection.request("hello")
        """,
        "LookupError: in the script",
    )


# What fails a test


@pytest.mark.parametrize("fixture", ["evtws_server", "evtws_tls_server", "evtws_fault_proxy", "evtws_no_leaks"])
def test_a_thread_that_runs_on(inner: Inner, fixture: str) -> None:
    """With any of the fixtures, a thread that the test leaves running fails it, by name."""
    inner.fails(
        f"""
        def test_thread({fixture}, thread):
            thread.start()
        """,
        "the test left a thread running: <Thread(mine, started daemon *)>: end it and join() it",
    )


def test_a_socket_that_stays_open(inner: Inner) -> None:
    """A socket that something still holds fails the test, with its addresses."""
    inner.fails(
        """
        def test_socket(evtws_server, keep):
            keep.enter_context(socket.create_connection(("127.0.0.1", evtws_server.port)))
        """,
        "the test left a socket open: <socket.socket fd=*laddr=('127.0.0.1', *>: close() it",
    )


@pytest.mark.parametrize("holder", ["None", "held"])
def test_a_socket_of_nobody(inner: Inner, holder: str) -> None:
    """A socket that the test let go of, unclosed, fails it, though Python closes it; even out of a circle."""
    inner.fails(
        f"""
        def test_socket(evtws_server):
            held = [socket.create_connection(("127.0.0.1", evtws_server.port))]
            held.append({holder})
        """,
        "the test did not close what it opened: unclosed <socket.socket fd=*laddr=('127.0.0.1', *>",
    )


def test_a_connection_that_stays_open(inner: Inner) -> None:
    """A connection that something still holds fails the test, by its thread, although the server ends it by then."""
    inner.fails(
        """
        def test_connection(evtws_server, keep):
            keep.enter_context(dial(evtws_server))
        """,
        "the test left a thread running: <Thread(evtws-io*, started daemon *)>: close() the connection",
    )


def test_a_connection_of_nobody(inner: Inner) -> None:
    """A connection that the test let go of, unclosed, fails it."""
    inner.fails(
        """
        def test_connection(evtws_server):
            connection = dial(evtws_server)
            assert connection.is_connected
        """,
        "the test did not close what it opened: a Connection was dropped without close()",
    )


def test_a_server_that_stays_open(inner: Inner) -> None:
    """A server of the test's own that is not closed fails it."""
    inner.fails(
        """
        def test_server(evtws_no_leaks, keep):
            keep.enter_context(Server())
        """,
        "the test left a thread running: <Thread(evtws-testing-server, *)>: close() the server or the proxy",
    )


def test_without_a_list_of_descriptors(inner: Inner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system does not list a process's descriptors, the sockets that Python knows are looked at."""
    monkeypatch.setattr(pytest_evtws, "_DESCRIPTORS", "/nowhere")
    inner.fails(
        """
        def test_socket(evtws_server, keep):
            keep.enter_context(socket.create_connection(("127.0.0.1", evtws_server.port)))
        """,
        "the test left a socket open: <socket.socket fd=*laddr=('127.0.0.1', *>: close() it",
    )


def test_what_cannot_be_looked_at_has_a_number() -> None:
    """A descriptor that is closed before it is described goes by its number."""
    with socket.socket() as sock:
        number = sock.fileno()
    assert pytest_evtws._describe_socket(number) == f"the test left a socket open: descriptor {number}: close() it"


# What does not


def test_what_was_there_before(inner: Inner) -> None:
    """Threads and sockets that were there before the test may stay, and may go."""
    result = inner.run(
        """
        @pytest.fixture(scope="module", params=["stays", "goes"])
        def earlier(request):
            with Server() as server:
                yield server.close if request.param == "goes" else lambda: None

        def test_before(earlier, evtws_server):
            with dial(evtws_server):
                earlier()
        """,
        "-W",
        "error",
    )
    result.assert_outcomes(passed=2)


def test_fixtures_of_the_user(inner: Inner) -> None:
    """What a fixture opens on top of ours it may close after the test."""
    result = inner.run(
        """
        @pytest.fixture
        def connection(evtws_server):
            with dial(evtws_server) as connection:
                yield connection

        def test_ping(connection):
            assert connection.ping() < 20
        """,
        "-W",
        "error",
    )
    result.assert_outcomes(passed=1)


def test_what_a_proxy_holds(inner: Inner) -> None:
    """What a proxy of the fixture still holds after the test is no leak of the test."""
    result = inner.run(
        """
        def test_half_open(evtws_server, evtws_fault_proxy):
            proxy = evtws_fault_proxy(evtws_server)
            connection = evtws.Connection(close_timeout=0)
            connection.dial(proxy.url_of(evtws_server.url))
            proxy.half_open_all()
            connection.close()
            assert evtws_server.connections
            evtws_fault_proxy(evtws_server).down()
        """,
        "-W",
        "error",
    )
    result.assert_outcomes(passed=1)


def test_threads_have_time_to_end(inner: Inner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that ends a moment after the test is no leak."""
    monkeypatch.setattr(pytest_evtws, "GRACE", SOON)
    result = inner.run(
        f"""
        def test_timer(evtws_server):
            threading.Timer({50 * MS}, int).start()
        """
    )
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize("earlier", ["traceback", "circle"])
def test_leaks_of_an_earlier_test(inner: Inner, earlier: str) -> None:
    """What a test before left open, in the traceback of its failure or in a circle, is not blamed on the next one."""
    result = inner.run(
        """
        import gc, sys

        def test_traceback():
            sys.last_type = sys.last_traceback = sys.last_exc = None
            sys.last_value = socket.socket()  # pytest keeps a failure there, with its traceback

        def test_circle():
            circle = [socket.socket()]
            circle.append(circle)

        def test_next(evtws_server):
            gc.collect()
        """,
        "-W",
        "ignore::ResourceWarning",
        "-k",
        f"{earlier} or next",
    )
    result.assert_outcomes(passed=2, deselected=1)


def test_tests_without_the_fixtures(inner: Inner) -> None:
    """A test that uses none of the fixtures is left alone."""
    result = inner.run(
        """
        def test_alone(thread):
            thread.start()
        """
    )
    result.assert_outcomes(passed=1)


def test_other_warnings_are_passed_on(inner: Inner) -> None:
    """Other warnings are pytest's to report, and what the test expects is the test's."""
    result = inner.run(
        """
        def test_warns(evtws_server):
            warnings.warn("passed on")
            warnings.warn("unclosed file", ResourceWarning)
            with pytest.warns(ResourceWarning, match="unclosed <socket"):
                socket.create_connection(("127.0.0.1", evtws_server.port))
        """,
        "-W",
        "always",
    )
    result.assert_outcomes(passed=1, warnings=2)
    result.stdout.fnmatch_lines(["*UserWarning: passed on", "*ResourceWarning: unclosed file"])
