"""Progress without a terminal: lines with what is left."""

from ctflow.system.progress import lines


def test_without_a_terminal_lines_say_what_is_left():
    """A tenth of the work or a minute of silence makes a line; what is left follows from what it took."""
    moments = iter([0.0, 10.0, 20.0, 30.0, 95.0, 96.0, 600.0, 9000.0, 10000.0])
    told: list[str] = []
    progress = lines(told.append, lambda: next(moments))
    steps = [
        (0.05, "a"),
        (0.1, "b"),
        (0.11, "b"),
        (0.12, "b"),
        (0.13, "b"),
        (0.2, "c"),
        (0.5, "d"),
        (1.2, "e"),
    ]
    for fraction, what in steps:
        progress(fraction, what)
    assert told == [
        " 10 % b, about 3 min left",
        " 12 % b, about 12 min left",
        " 20 % c, about 40 min left",
        " 50 % d, about 2.5 h left",
        "100 % e",
    ]
