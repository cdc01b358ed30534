"""What the integration tests share."""

import pytest
from made import write_everything


@pytest.fixture(scope="session")
def good(tmp_path_factory, phantom_root, sections, trained):
    """A folder with data of every kind, all of it right: what `faults.COMMANDS` read."""
    return write_everything(tmp_path_factory.mktemp("good"), phantom_root, sections, trained[0])
