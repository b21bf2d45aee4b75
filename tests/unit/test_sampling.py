"""From a counted sample to the tokens of all."""

import random

import pytest

from batchyard.client.planning import estimate, sampling
from batchyard.client.planning.estimate import Counts, Weights

# Shares of letters, ideographs, digits, punctuation, spaces, others.
KINDS = {
    "prose": (0.78, 0, 0.01, 0.03, 0.17, 0.01),
    "code": (0.60, 0, 0.05, 0.18, 0.17, 0),
    "cjk": (0.05, 0.80, 0.02, 0.03, 0.02, 0.08),
    "numbers": (0.05, 0, 0.70, 0.10, 0.15, 0),
}
# Tokenizers that are far from what is guessed, each script by a factor of its own.
TRUE = [
    Weights((0.31, 0.7, 0.9, 0.4, 0.1, 0.8, 1.0)),
    Weights((0.2, 1.5, 0.3, 0.9, 0.02, 0.3, 1.0)),
]
PRIOR = estimate.prior("claude-opus-4-8")


def corpus(seed: int, true: Weights, noise: float, count: int = 400) -> list[tuple[Counts, int]]:
    """Return characters and true tokens of texts of four kinds and very different lengths."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        length = int(rng.lognormvariate(8, 1.2))
        mix = KINDS[rng.choice(list(KINDS))]
        counts = Counts(*(int(length * share * rng.uniform(0.7, 1.3)) for share in mix))
        exact = sum(n * weight for n, weight in zip(counts, true.each, strict=True))
        texts.append((counts, max(1, round(exact * rng.gauss(1, noise) + 11))))
    return texts


def calibrated(
    texts: list[tuple[Counts, int]], sample: int, seed: int
) -> tuple[sampling.Calibration, int]:
    sizes = [counts for counts, _ in texts]
    drawn = sampling.draw([PRIOR.tokens(each) for each in sizes], sample, seed)
    counted = [
        (*texts[index], chance) for index, chance in zip(drawn.indexes, drawn.chances, strict=True)
    ]
    found = sampling.calibrate(counted, sizes, PRIOR)
    assert found is not None
    return found, sum(found.weights.tokens(each) for each in sizes)


@pytest.mark.parametrize("true", TRUE)
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
def test_the_total_is_within_its_interval_nineteen_times_of_twenty(true: Weights, noise: float):
    misses = []
    for seed in range(60):
        texts = corpus(seed, true, noise)
        found, total = calibrated(texts, 60, seed)
        truth = sum(tokens for _, tokens in texts)
        if abs(total - truth) > truth * found.spread_percent / 100:
            misses.append(seed)

    assert len(misses) <= 7, misses  # 3 are expected; more than 7 are one in fifty


def test_the_interval_is_narrow_where_a_guess_is_not():
    dense = Weights(tuple(1.2 * weight for weight in TRUE[0].each))
    texts = corpus(1, dense, 0.05)
    truth = sum(tokens for _, tokens in texts)
    found, total = calibrated(texts, 60, 1)

    guessed = sum(PRIOR.tokens(counts) for counts, _ in texts)

    assert abs(guessed - truth) / truth > 0.05
    assert abs(total - truth) / truth < 0.02
    assert found.spread_percent < 3


def test_a_single_document_is_estimated_better_than_before():
    texts = corpus(2, TRUE[0], 0.02)
    found, _ = calibrated(texts, 60, 2)

    def error(weights: Weights) -> float:
        off = sorted(abs(weights.tokens(c) - tokens) / tokens for c, tokens in texts)
        return off[len(off) // 2]

    assert error(found.weights) < error(PRIOR) / 3


def test_all_are_counted_when_they_are_few_and_then_nothing_is_uncertain():
    texts = corpus(3, TRUE[0], 0.2, count=20)

    found, total = calibrated(texts, 60, 3)

    assert found.spread_percent == 0
    assert found.counted == 20
    assert total == pytest.approx(sum(tokens for _, tokens in texts), rel=0.002)


def test_the_same_seed_draws_the_same_and_another_draws_others():
    sizes = [counts.letters + 10 for counts, _ in corpus(4, TRUE[0], 0)]

    one, same, other = (sampling.draw(sizes, 50, seed) for seed in (7, 7, 8))

    assert one == same
    assert one.indexes != other.indexes


def test_the_largest_are_always_drawn_and_about_as_many_as_were_asked_for():
    sizes = [1] * 1_000
    sizes[500] = 100_000

    for seed in range(20):
        drawn = sampling.draw(sizes, 30, seed)
        assert 500 in drawn.indexes
        assert drawn.chances[list(drawn.indexes).index(500)] == 1.0
        assert 29 <= len(drawn.indexes) <= 31


def test_too_few_counted_requests_say_nothing():
    texts = corpus(5, TRUE[0], 0)
    sizes = [counts for counts, _ in texts]

    assert sampling.calibrate([(*texts[0], 0.1)], sizes, PRIOR) is None
    assert sampling.calibrate([], sizes, PRIOR) is None
