"""A setting of the process is held while anybody wants it, and is then what it was."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from facetrack.engines.held import HeldSetting


def test_setting_is_held_until_the_last_user_leaves_and_is_then_restored() -> None:
    threads = [8]
    one = HeldSetting(lambda: threads[0], lambda count: threads.__setitem__(0, count), 1)
    first, second = ExitStack(), ExitStack()
    first.enter_context(one)
    second.enter_context(one)
    first.close()
    assert threads == [1]
    second.close()
    assert threads == [8]
    with pytest.raises(ZeroDivisionError), one:
        threads[0] = 1 // 0
    assert threads == [8]
