"""Errors that users can fix: every one has its exit status, and survives the way from a phase's process."""

import pytest

from spin_core import errors
from spin_core.errors import SpinError, count

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SpinError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_kind_of_error_has_its_exit_status(kind):
    special = {"TryAgain": 75, "Stopped": 143}
    assert kind.exit_code == special.get(kind.__name__, 2)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_is_documented(kind):
    assert kind.__doc__


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_is_found_again_by_the_name_that_a_phase_sends(kind):
    assert getattr(errors, kind.__name__)("text").args == ("text",)


def test_a_unit_is_singular_for_one_alone():
    assert [count(number, "row") for number in (0, 1, 2, 1200)] == ["0 rows", "1 row", "2 rows", "1,200 rows"]
