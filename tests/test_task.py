"""The specification of evtws/task.py."""

from evtws.task import Task


def test_task_is_not_dropped_unless_it_says_so() -> None:
    """A task is one call with its arguments, and droppable only where it says so."""
    task = Task(max, (1, 2))
    assert task.function(*task.arguments) == 2
    assert not task.droppable
    assert Task(max, (1, 2), True).droppable
