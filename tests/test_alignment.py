"""alignment.py: do codes mean what the labels say?"""
import itertools
import math

import numpy as np
import pytest

import alignment


def test_best_pairs_of_many_codes_and_labels():
    """Every assignment would take years: the largest counts stand on a shuffled diagonal."""
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 100, (60, 50))
    codes = rng.permutation(60)[:50]
    counts[codes, np.arange(50)] += 1000
    assert alignment.best_pairs(counts) == counts[codes, np.arange(50)].sum()


def test_best_pairs_against_every_assignment():
    rng = np.random.default_rng(0)
    for shape in ((5, 3), (3, 5), (4, 4)):
        counts = rng.integers(0, 9, shape)
        square = np.zeros((5, 5), int)
        square[:shape[0], :shape[1]] = counts
        sums = [square[range(5), order].sum() for order in itertools.permutations(range(5))]
        assert alignment.best_pairs(counts) == max(sums)


def test_nmi():
    labels = np.array([0, 0, 1, 1, 2, 2, 2, 5])
    assert alignment.nmi(labels, labels) == pytest.approx(1)
    assert alignment.nmi(np.zeros(8, int), labels) == pytest.approx(0)
    halves = alignment.nmi(np.repeat([0, 1], 4), np.repeat([0, 1, 2, 3], 2))
    assert halves == pytest.approx(math.log(2) / math.log(4))


def test_voted_right():
    """Codes that no voter had mean the first label."""
    codes = np.array([0, 0, 0, 1, 1, 1, 0, 1, 2, 2])
    labels = np.array([3, 3, 1, 2, 2, 0, 3, 3, 0, 1])
    voters = np.arange(10) < 6
    assert alignment.voted_right(codes, labels, voters).tolist() == [True, False, True, False]


def test_consistency_is_the_share_that_does_what_its_code_does_most():
    codes, shifts = np.array([0, 0, 0, 1, 1, 1]), np.array([40, 40, 7, 7, 7, 7])
    assert alignment.consistency(codes, shifts) == pytest.approx(5 / 6)
    assert alignment.consistency(0 * codes, shifts) == pytest.approx(4 / 6)
    assert alignment.consistency(shifts, shifts) == 1
