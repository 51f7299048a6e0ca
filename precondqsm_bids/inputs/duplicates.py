"""Runs of one participant that are the same images under two names."""

import zlib
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

from precondqsm_bids.inputs.run import Problem, Run

TRAILER = 8
"""Bytes at the end of a gzip file: checksum and size of what is compressed."""


def find_duplicates(runs: Sequence[Run]) -> list[Problem]:
    """A warning for every two runs of a participant that have an image in common.

    A copy, a link and the same image compressed anew count as the same image.
    """
    participants = defaultdict(list)
    for run in runs:
        participants[run.subject].append(run)
    problems = []
    for subject, own in participants.items():
        images = {run.label: _contents(run) for run in own} if len(own) > 1 else {}
        for (first, one), (second, other) in combinations(images.items(), 2):
            if common := [content for content in one if content in other]:
                message = (
                    f'{len(common)} of {len(one)} images of {first} are also those of {second} '
                    f'({other[common[0]]}): one acquisition under two names? Remove one of them, '
                    'or do not take them for two measurements'
                )
                problems.append(Problem(subject, one[common[0]], message, kind='warning'))
    return problems


def _contents(run: Run) -> dict[tuple[int, bytes], str]:
    """Size and checksum of the images of a run, and their files; those that can be read."""
    contents: dict[tuple[int, bytes], str] = {}
    for path in run.sources:
        try:
            contents.setdefault(_content(path), path)
        except OSError:  # found when it is read
            continue
    return contents


def _content(path: str) -> tuple[int, bytes]:
    """Size and checksum (CRC-32) of a file, of the uncompressed content where it is compressed."""
    with open(path, 'rb') as stream:
        if path.endswith('.gz'):
            stream.seek(-TRAILER, 2)
            stored, length = stream.read(4), stream.read(4)
            return int.from_bytes(length, 'little'), stored
        checksum, size = 0, 0
        while block := stream.read(1 << 20):
            checksum, size = zlib.crc32(block, checksum), size + len(block)
        return size, checksum.to_bytes(4, 'little')
