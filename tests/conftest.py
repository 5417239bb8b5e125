"""What all tests share."""

import gc


def pytest_collection_finish() -> None:
    """Keep what was collected out of garbage collection.

    Many tests collect garbage, to see that nothing leaks. Looking at some million objects of pytest's own each time
    would take most of the run.
    """
    gc.collect()
    gc.freeze()
