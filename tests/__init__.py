"""The tests. Pytest explains failed assertions of ``helpers`` as it does those of test modules."""

import pytest

pytest.register_assert_rewrite("tests.helpers")
