"""What a method spends is counted once and timed once."""

import time

from ctflow.tally import clock, count, tally


def test_a_second_belongs_to_one_name():
    with tally() as outer:
        with clock("network"):
            time.sleep(0.02)
            with tally() as inner, clock("operator"):
                time.sleep(0.03)
        count("network")
    # A sleep lasts at least as long as asked for; were the inner one counted twice, 50 ms would be reached.
    assert 0.02 <= outer.seconds["network"] < 0.05
    assert 0.03 <= outer.seconds["operator"] == inner.seconds["operator"]
    assert (outer["network"], inner["network"]) == (1, 0)


def test_time_outside_a_tally_is_not_kept():
    with clock("network"):
        pass
    with tally() as after:
        pass
    assert not after.seconds
