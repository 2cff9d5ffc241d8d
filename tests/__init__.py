"""The tests. What they share is in ``helpers``, whose assertions are as talkative as theirs."""

import pytest

pytest.register_assert_rewrite("tests.helpers")
