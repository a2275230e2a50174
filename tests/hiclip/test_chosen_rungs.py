"""Which rungs a law stands on, against a search over all pairs and hand-made tables."""

from __future__ import annotations

import numpy as np

from hiclip.scaling.chosen_rungs import Selection, chosen_rungs


def selected(computes: list[float], errors: list[float], selection: Selection, bins: int = 5) -> list[int]:
    found = chosen_rungs(computes, errors, selection, bins)
    assert [one.compute for one in found] == [computes[one.place] for one in found], "where they are"
    return [one.place for one in found]


def test_all_are_all_in_their_order() -> None:
    assert selected([3.0, 1.0, 2.0], [1.0, 3.0, 2.0], "all") == [0, 1, 2]


def test_the_frontier_is_what_no_other_rung_beats() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        computes = np.round(10 ** random.uniform(0, 3, 12), 1).tolist()
        errors = np.round(random.uniform(1, 9, 12), 1).tolist()
        beaten = {
            k
            for k in range(12)
            for j in range(12)
            if computes[j] <= computes[k]
            and errors[j] <= errors[k]
            and (computes[j], errors[j], j) < (computes[k], errors[k], k)
        }
        chosen = selected(computes, errors, "frontier")
        assert set(chosen) == set(range(12)) - beaten
        assert [computes[k] for k in chosen] == sorted(computes[k] for k in chosen)


def test_of_equal_computes_the_better_stays() -> None:
    assert selected([1.0, 1.0, 2.0], [3.0, 2.0, 1.0], "frontier") == [1, 2]
    assert selected([1.0, 1.0, 8.0], [2.0, 2.0, 1.0], "bins", 2) == [0, 2]


def test_bins_are_equal_parts_of_log_compute() -> None:
    computes = [1.0, 9.0, 11.0, 99.0, 101.0, 1000.0]
    errors = [6.0, 7.0, 5.0, 4.0, 3.0, 3.5]
    assert selected(computes, errors, "bins", 3) == [0, 3, 4]
    assert selected([5.0, 5.0], [2.0, 1.0], "bins", 3) == [1]


def test_bin_middles_are_the_middles_of_bins_that_end_beyond_the_last() -> None:
    computes, errors = [1.0, 50.0, 10**1.9], [3.0, 1.0, 2.0]
    found = chosen_rungs(computes, errors, "bin_middles", 2)
    assert [one.place for one in found] == [0, 1]
    assert np.allclose([one.compute for one in found], [10**0.5, 10**1.5])
