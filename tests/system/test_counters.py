"""What a method spends is counted once and timed once."""

from types import SimpleNamespace

from ctflow.system.counters import clock, count, counting


def test_a_second_belongs_to_one_name(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("ctflow.system.counters.time", SimpleNamespace(perf_counter=lambda: now[0]))
    with counting() as outer:
        with clock("network"):
            now[0] += 2
            with counting() as inner, clock("operator"):
                now[0] += 3
            now[0] += 4
        count("network")
    assert outer.seconds == {"network": 6, "operator": 3}
    assert inner.seconds["operator"] == 3
    assert (outer["network"], inner["network"]) == (1, 0)


def test_time_outside_a_tally_is_not_kept():
    with clock("network"):
        pass
    with counting() as after:
        pass
    assert not after.seconds
