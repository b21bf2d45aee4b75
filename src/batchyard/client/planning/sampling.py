"""From a counted sample to the tokens of all: which requests are counted, and what follows. Pure.

Requests are drawn with a chance that grows with their estimated size, so that the few large ones,
which make the total, are not missed. The weights of `estimate` are then fitted to what was counted,
and the total is corrected by what the fit gets wrong. The interval is that of a sample of unequal
chances, with Student's t for the few degrees of freedom that are left.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchyard.client.planning.estimate import Counts, Weights

if TYPE_CHECKING:
    from collections.abc import Sequence

SAMPLE_DEFAULT = 60
SPREAD_PERCENT_MIN = 1.0  # no claim is finer: the server's count is an estimate itself
_COUNTED_MIN = 5  # fewer say nothing about the rest
_FIT_MIN = 3  # counted requests for each weight that is fitted; else one factor for all
# How far a weight may be from its first value before the sample has to insist: half of it, against
# an error of a few percent in one request.
_PULL = (0.03 / 0.5) ** 2
_FIXED_GUESS = 10.0


@dataclass(frozen=True, slots=True)
class Draw:
    """The requests to count, by index, each with its chance of having been drawn."""

    indexes: Sequence[int]
    chances: Sequence[float]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Weights that fit what was counted; half the 95 % interval of the total, in percent."""

    weights: Weights
    spread_percent: float
    counted: int


def draw(sizes: Sequence[int], count: int, seed: int) -> Draw:
    """Choose about `count` of the requests with these estimated sizes; all when they are fewer.

    The same arguments give the same choice.
    """
    if len(sizes) <= count:
        return Draw(range(len(sizes)), [1.0] * len(sizes))
    chances = _chances(sizes, count)
    order = list(range(len(sizes)))
    rng = random.Random(seed)  # noqa: S311 - a choice that can be repeated, not a secret
    rng.shuffle(order)
    # One step along the sum of chances after the other: systematic sampling.
    at, chosen = rng.random(), []
    total = 0.0
    for index in order:
        total += chances[index]
        if total > at:
            chosen.append(index)
            at += 1.0
    chosen.sort()
    return Draw(chosen, [chances[index] for index in chosen])


def calibrate(
    counted: Sequence[tuple[Counts, int, float]], all_sizes: Sequence[Counts], prior: Weights
) -> Calibration | None:
    """Return weights and interval from counted requests; None when they are too few.

    Args:
        counted: characters, true tokens and chance of each counted request.
        all_sizes: characters of all requests, the counted ones among them.
        prior: the weights so far.
    """
    if len(counted) < min(_COUNTED_MIN, len(all_sizes)) or not counted:
        return None
    weights, fitted = _fitted(counted, prior)
    estimated = sum(_raw(weights, counts) for counts in all_sizes)
    errors = [((true - _raw(weights, counts)) / chance, chance) for counts, true, chance in counted]
    total = max(1.0, estimated + sum(error for error, _ in errors))
    factor = total / estimated if estimated > 0 else 1.0
    weights = Weights(tuple(each * factor for each in weights.each), weights.fixed * factor)
    drawn = sum(1 for _, chance in errors if chance < 1.0)
    if not drawn:
        return Calibration(weights, 0.0, len(counted))
    freedom = max(1, drawn - fitted)
    variance = sum((1 - chance) * error**2 for error, chance in errors) * drawn / freedom
    percent = 100 * _student(freedom) * math.sqrt(variance) / total
    return Calibration(weights, max(SPREAD_PERCENT_MIN, percent), len(counted))


def _chances(sizes: Sequence[int], count: int) -> list[float]:
    """Return the chance of each request: in proportion to its size, 1 for those that are large."""
    chances = [0.0] * len(sizes)
    rest, left = set(range(len(sizes))), count
    while True:
        total = sum(sizes[index] for index in rest)
        large = {index for index in rest if left * sizes[index] >= total}
        if not large or len(large) >= left:
            break
        for index in large:
            chances[index] = 1.0
        rest -= large
        left -= len(large)
    for index in rest:
        chances[index] = min(1.0, left * sizes[index] / total)
    return chances


def _fitted(counted: Sequence[tuple[Counts, int, float]], prior: Weights) -> tuple[Weights, int]:
    """Return the weights that are least wrong, relative to size, and how many were fitted."""
    first = sum(true / chance for _, true, chance in counted)
    second = sum(_raw(prior, counts) / chance for counts, _, chance in counted)
    factor = first / second if second > 0 else 1.0
    scaled = [each * factor for each in prior.each]
    present = [kind for kind in range(len(scaled)) if any(c[kind] for c, _, _ in counted)]
    if len(counted) < _FIT_MIN * (len(present) + 1):
        return Weights(tuple(scaled), prior.fixed * factor), 1
    # The last column is what every request has.
    guess = [*(scaled[kind] for kind in present), prior.fixed * factor or _FIXED_GUESS]
    width = len(guess)
    matrix = [[0.0] * width for _ in range(width)]
    right = [0.0] * width
    for counts, true, _ in counted:
        size = max(1.0, _raw(prior, counts) * factor)
        row = [*(counts[kind] / size for kind in present), 1.0 / size]
        for one in range(width):
            right[one] += row[one] * true / size
            for other in range(width):
                matrix[one][other] += row[one] * row[other]
    for kind, value in enumerate(guess):
        matrix[kind][kind] += _PULL / value**2
        right[kind] += _PULL / value
    solved = _solved(matrix, right)
    each = list(scaled)
    for kind, value in zip(present, solved, strict=False):
        each[kind] = max(0.0, value)
    return Weights(tuple(each), max(0.0, solved[-1])), width


def _solved(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Solve a symmetric positive system by elimination."""
    width = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for column in range(width):
        pivot = max(range(column, width), key=lambda index: abs(rows[index][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for below in range(column + 1, width):
            share = rows[below][column] / rows[column][column]
            for at in range(column, width + 1):
                rows[below][at] -= share * rows[column][at]
    values = [0.0] * width
    for column in reversed(range(width)):
        known = sum(rows[column][at] * values[at] for at in range(column + 1, width))
        values[column] = (rows[column][width] - known) / rows[column][column]
    return values


def _raw(weights: Weights, counts: Counts) -> float:
    pairs = zip(counts, weights.each, strict=True)
    return weights.fixed + sum(count * weight for count, weight in pairs)


def _student(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t, to about a percent."""
    return 1.96 + 2.372 / freedom + 2.82 / freedom**2 + 5.6 / freedom**4
