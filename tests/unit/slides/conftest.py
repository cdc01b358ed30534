"""What the tests of slide-level tasks share."""

from functools import partial

import pytest
from made import write_slide_task


@pytest.fixture
def write_task(tmp_path):
    """A function that writes a task and its features: `made.write_slide_task`."""
    return partial(write_slide_task, tmp_path)
