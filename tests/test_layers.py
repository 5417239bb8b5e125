"""The floors of the house: imports go down only, and each third-party package has one gate."""

import ast
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "evtws"
PLUGIN = PACKAGE.parent / "pytest_evtws.py"

FLOORS = [
    "errors message task",
    "state correlation tombstones pending timers outbox keepalive reconnect session diagnosis masking frames events",
    "resolve wire nonblocking proxy target dial handshake door write_queue transport polled_opening polled_websocket",
    "poller callbacks calls options stats life pulse router reader sender opening ending engine stream processes "
    "connection peer",
    "testing __main__ __init__ demo",
]

#: The one room that may import a third-party package.
GATES = {
    "tenacity": "reconnect",
    "websocket": "dial",
    "wsproto": "handshake",
    "python_socks": "proxy",
    "trustme": "testing",
}

FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}


def is_type_checking(node: ast.AST) -> bool:
    """Whether this is `if TYPE_CHECKING:`, whose imports do not happen."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports that happen, those inside functions too."""
    for node in ast.iter_child_nodes(tree):
        if is_type_checking(node):
            assert isinstance(node, ast.If)
            for other in node.orelse:
                yield from imports(ast.Module([other], []))
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        else:
            yield from imports(node)


def imported(module: str, source: str, modules: Collection[str]) -> Iterator[str]:
    """The dotted names that `module` imports, a package of evtws by its `__init__`."""
    package = module.split(".")[:-1]
    for node in imports(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (found_as(alias.name, modules) or alias.name for alias in node.names)
            continue
        above = package[: len(package) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        for alias in node.names:
            yield found_as(f"{base}.{alias.name}", modules) or found_as(base, modules) or base


def names_in(node: ast.Import | ast.ImportFrom) -> list[str]:
    """The dotted names of modules in one absolute import."""
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or "."]


def found_as(name: str, modules: Collection[str]) -> str | None:
    """The name under which a module of evtws stands among `modules`, None where it does not."""
    return next((known for known in (name, f"{name}.__init__") if known in modules), None)


def room(module: str) -> str:
    """The room of a module: evtws.dial is in dial, evtws.testing.server in testing."""
    return module.split(".")[1]


def faults(sources: Mapping[str, str]) -> list[str]:
    """What breaks the rules in these sources, by dotted module name."""
    found = [f"{module} is on no floor" for module in sources if room(module) not in FLOOR_OF]
    below: dict[str, set[str]] = {module: set() for module in sources}
    for module, source in sources.items():
        for name in imported(module, source, sources):
            top = name.split(".")[0]
            if top == "evtws":
                below[module].add(name)
                if FLOOR_OF.get(room(name), 99) > FLOOR_OF.get(room(module), 99):
                    found.append(f"{module} imports {name}, which is above it")
            elif top not in sys.stdlib_module_names and GATES.get(top) != room(module):
                found.append(f"{module} imports {name} and is not its gate")
    return found + circles(below)


def circles(below: Mapping[str, set[str]]) -> list[str]:
    """The modules that import themselves by way of others."""

    def reached(module: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(below[module])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting.extend(below.get(name, ()))
        return seen

    return [f"{module} imports itself in a circle" for module in below if module in reached(module)]


def house() -> dict[str, str]:
    """The sources of evtws by dotted name."""
    names = {path: path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py")}
    return {".".join(["evtws", *parts]): path.read_text(encoding="utf-8") for path, parts in names.items()}


def test_house_keeps_the_rules() -> None:
    """In evtws imports go down, never in a circle, and third-party packages come in by their gate."""
    sources = house()
    assert "evtws.errors" in sources
    assert faults(sources) == []


def test_pytest_plugin_imports_late() -> None:
    """The pytest plugin, which is no module of evtws, imports of evtws the testing kit alone, and within functions."""
    tree = ast.parse(PLUGIN.read_text(encoding="utf-8"))
    at_once = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert not any(name.startswith("evtws") for node in at_once for name in names_in(node))
    names = {name for node in imports(tree) for name in names_in(node)}
    assert {name for name in names if name.split(".")[0] not in sys.stdlib_module_names} == {"evtws.testing", "pytest"}


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("evtws.state", "from .connection import Connection", "above"),
        ("evtws.state", "from . import connection", "above"),
        ("evtws.state", "import evtws.connection", "above"),
        ("evtws.state", "from evtws.connection import Connection", "above"),
        ("evtws.state", "def f():\n    from .connection import Connection", "above"),
        ("evtws.state", "from . import __version__", "above"),
        ("evtws.dial", "from .testing import Server", "above"),
        ("evtws.dial", "from .testing.server import Server", "above"),
        ("evtws.session", "from .pending import PendingQueue", "circle"),
        ("evtws.state", "import evtws", "above"),
        ("evtws.testing.server", "from . import __version__", "circle"),
        ("evtws.state", "import tenacity", "gate"),
        ("evtws.dial", "from tenacity.wait import wait_base", "gate"),
        ("evtws.testing.server", "import wsproto.events", "gate"),
        ("evtws.state", "try:\n    import numpy\nexcept ImportError:\n    pass", "gate"),
        ("evtws.utils", "", "no floor"),
    ],
)
def test_faults_are_found(module: str, source: str, fault: str) -> None:
    """An import that goes up, around in a circle or past a gate is found, as is a file on no floor."""
    sources = {
        "evtws.__init__": "__version__ = ''",
        "evtws.pending": "from .session import Session",
        "evtws.session": "",
        "evtws.connection": "",
        "evtws.testing.__init__": "from .server import Server",
        "evtws.testing.server": "",
        module: source,
    }
    assert any(fault in text for text in faults(sources))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("evtws.testing.__init__", "from .wire import Wire\nfrom . import wire"),
        ("evtws.connection", "from .state import State\nfrom . import errors\nimport threading"),
        ("evtws.session", "from .state import State"),
        (
            "evtws.message",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .connection import C",
        ),
        ("evtws.message", "if typing.TYPE_CHECKING:\n    from .connection import C\nelse:\n    import json"),
        (
            "evtws.testing.server",
            "from ..frames import Decoder\nfrom .wire import Wire\nfrom .. import errors",
        ),
        ("evtws.reconnect", "import tenacity\nfrom tenacity.wait import wait_base"),
        ("evtws.__main__", "from . import __version__\nfrom .testing import Server"),
    ],
)
def test_what_is_allowed(module: str, source: str) -> None:
    """Imports that go down, within a floor, through the gate or for types alone are no fault."""
    rooms = ["__init__", "errors", "state", "frames", "connection", "testing.__init__", "testing.wire"]
    assert faults({**{f"evtws.{name}": "" for name in rooms}, module: source}) == []
