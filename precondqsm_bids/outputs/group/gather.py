"""The group level as a whole."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Collection
from contextlib import ExitStack, suppress
from pathlib import Path

from precondqsm_bids.outputs.files import temporary_name, write_atomic, write_bidsignore
from precondqsm_bids.outputs.group.reading import find_participants, read_participant
from precondqsm_bids.outputs.group.report import compose_report
from precondqsm_bids.outputs.group.tables import (
    COEFFICIENT,
    QUALITY,
    GroupResult,
    name_outliers,
    region_columns,
    region_dictionary,
    write_rows,
)

LEFT_OVER = 86_400
"""Age from which a temporary file is of a process that was killed, s: it is written to until the
process renames it, and that takes minutes."""


def write_group(
    bids_dir: Path,
    output_dir: Path,
    *,
    participants: Collection[str] = (),
    sessions: Collection[str] = (),
    command: str = '',
) -> GroupResult:
    """Gather the derivatives of all participants in tables and a page.

    Every file is written under a temporary name and renamed at the end, so that a reader, a
    participant level or another group level beside this one never sees half a file. The images of
    ``bids_dir`` tell what is missing; of ``participants`` and ``sessions`` none means all;
    ``command`` is shown on the page.
    """
    subjects = find_participants(bids_dir, output_dir)
    if participants:
        chosen = set(participants)
        subjects = [subject for subject in subjects if subject in chosen]
    if not find_participants(output_dir):
        return GroupResult(0, Counter(), 0, [], 0, 0, ())
    _remove_leftovers(output_dir)
    columns, described = region_columns(output_dir, subjects, sessions)
    dictionaries = {
        'rois': region_dictionary(columns, described),
        'quality': QUALITY,
        'coefficients': COEFFICIENT,
    }
    files = {name: output_dir / f'group_{name}.tsv' for name in dictionaries}
    with ExitStack() as stack:
        first, second = (
            {
                name: stack.enter_context(temporary_name(path.with_suffix(f'.{step}')))
                for name, path in files.items()
            }
            for step in ('rows', 'tsv')
        )
        summary, values = write_rows(
            (
                run
                for subject in subjects
                for run in read_participant(bids_dir, output_dir, subject, sessions)
            ),
            first,
            dictionaries,
        )
        if not summary.usable:
            return summary
        gathered = {
            name: name_outliers(name, first[name], second[name], values[name], summary)
            for name in files
        }
        page = compose_report(
            output_dir, summary=summary, gathered=gathered, columns=columns, command=command
        )
        write_bidsignore(output_dir)
        written = []
        for name, path in files.items():
            os.replace(second[name], path)
            text = json.dumps(dictionaries[name], indent=2, ensure_ascii=False) + '\n'
            written += [path, write_atomic(path.with_suffix('.json'), text)]
        written.append(write_atomic(output_dir / 'group_report.html', page))
    found = sum(sum(part.counts.values()) for part in gathered.values())
    return summary._replace(outliers=found, files=tuple(written))


def _remove_leftovers(output_dir: Path) -> None:
    """Remove the temporary files of group levels that were killed long ago."""
    for path in output_dir.glob('.group_*'):
        with suppress(OSError):  # somebody else's, or gone by now
            if time.time() - path.stat().st_mtime > LEFT_OVER:
                path.unlink()
