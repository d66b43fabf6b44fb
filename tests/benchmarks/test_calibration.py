"""Coverage by tissue of posteriors known by heart: exact ones, and ones that understate."""

import numpy as np
import pytest

from ctflow.benchmarks.calibration import SAMPLES, covered
from ctflow.evidence.conformal import Posterior


def drawn(generator, understated=1.0):
    """Samples and truth of one normal law, whose spread is then understated."""
    centre = generator.choice([-800.0, -100.0, 40.0, 400.0], (1, 60, 60))
    draws = centre + 25 * generator.normal(size=(SAMPLES + 1, 60, 60))
    mean, sd = draws[1:].mean(0)[None], draws[1:].std(0, ddof=1)[None] / understated
    return Posterior(draws[:1], mean, sd, np.ones((1, 60, 60), bool))


@pytest.mark.parametrize("understated", [1.0, 2.0])
def test_intervals_hold_before_only_where_the_draws_are_the_posteriors(understated):
    generator = np.random.default_rng(0)
    found = covered("20 views", "m", [drawn(generator, understated) for _ in range(6)])
    assert found.ratio == pytest.approx(1 / understated, rel=0.03)
    before, *after = found.bars()
    assert before.holds is (understated == 1)
    assert len(after) == 4  # classes of tissue
    assert all(bar.holds for bar in after)
    assert found.patients == 6
