"""Errors that users can fix: every one has its exit status, and survives the way from a phase's process."""

import pytest

from spin_core import errors
from spin_core.errors import SpinError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SpinError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_has_the_exit_status_that_callers_tell_it_by(kind):
    special = {"TryAgain": 75, "Stopped": 143}
    assert kind.exit_code == special.get(kind.__name__, 2)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_says_what_it_is_for(kind):
    assert kind.__doc__


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_is_found_again_by_the_name_that_a_phase_sends(kind):
    assert getattr(errors, kind.__name__)("text").args == ("text",)
