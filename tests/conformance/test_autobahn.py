"""evtws as the Autobahn TestSuite sees it: every case that is not about compression."""

import json

from . import autobahn


def test_every_case_was_run(results: autobahn.Results) -> None:
    """The report has each of the 301 cases without compression."""
    assert len(results) == autobahn.UNCOMPRESSED_COUNT


def test_every_case_passes(results: autobahn.Results) -> None:
    """Each case's behaviour, and its behaviour at the close, is OK or informational."""
    assert autobahn.failed(results) == {}


def test_the_result_is_the_pinned_one(subject: str, results: autobahn.Results) -> None:
    """The result equals the subject's file, which `python -m tests.conformance.autobahn` writes."""
    assert results == json.loads(autobahn.pinned(subject).read_text())
