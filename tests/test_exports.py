"""What `import evtws` offers."""

import inspect
import re

import evtws
from evtws import errors


def test_every_name_exists_once() -> None:
    """Each name in __all__ exists and stands there once."""
    assert [name for name in evtws.__all__ if not hasattr(evtws, name)] == []
    assert len(set(evtws.__all__)) == len(evtws.__all__)


def test_every_name_has_a_docstring() -> None:
    """Each class and function in __all__ has a docstring of its own."""
    public = [getattr(evtws, name) for name in evtws.__all__]
    things = [thing for thing in public if inspect.isclass(thing) or inspect.isroutine(thing)]
    assert things
    assert [thing.__name__ for thing in things if not vars(thing).get("__doc__", thing.__doc__)] == []


def test_every_public_method_has_a_docstring() -> None:
    """Each public method and property of a class in __all__ has a docstring."""
    silent = [
        f"{thing.__name__}.{name}"
        for thing in (getattr(evtws, name) for name in evtws.__all__)
        if inspect.isclass(thing)
        for name, member in vars(thing).items()
        if not name.startswith("_") and (inspect.isroutine(member) or isinstance(member, property))
        if not inspect.getdoc(member)
    ]
    assert silent == []


def test_every_error_is_exported() -> None:
    """Each error of errors.py is a public name."""
    kinds = {name for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.EvtwsError)}
    assert kinds - set(evtws.__all__) == set()


def test_version() -> None:
    """The version is a number that packaging understands."""
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", evtws.__version__)
