"""Buckets: sizes rounded up, so that nearby sizes share a compiled program."""

import itertools


def power_bucket(size: int, least: int, most: int | None = None) -> int:
    """The next power of two times `least`, or `most` if that is smaller.

    >>> [power_bucket(size, 8, 20) for size in (0, 8, 9, 17)]
    [8, 8, 16, 20]
    """
    bucket = least
    while bucket < size:
        bucket *= 2
    return bucket if most is None else min(bucket, most)


def width_bucket(width: int) -> int:
    """A width of beam or contrastive search: 1, 2, 4, 6 … 16, 20, 24 … 32, 40 …, since each row more costs time."""
    grain = 1 if width <= 2 else 1 << max(1, (width - 1).bit_length() - 3)
    return max(1, -(-width // grain) * grain)


def row_bucket(rows: int, devices: int) -> int:
    """Rows of a batch: 1, 4, 16, 32, 64 … times the devices."""
    return devices * next(n for n in itertools.chain((1, 4), (2**i for i in itertools.count(4))) if n * devices >= rows)
