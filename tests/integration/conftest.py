"""Running whole jobs in this process, from composed configurations."""

import pytest
from tests_integration_support import make_job


@pytest.fixture
def job(tmp_path):
    """``job(*overrides)`` runs one job and returns its folder, outcome and files."""
    return make_job(tmp_path)
