"""The table of the runs on the page of the group: strips of slices, lights, what is odd."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from precondqsm_bids.outputs.citations import write_out
from precondqsm_bids.outputs.files import natural
from precondqsm_bids.outputs.group.tables import GroupResult, Shown
from precondqsm_bids.outputs.lights import LEVELS, LIGHTS
from precondqsm_bids.outputs.sentences import methods_text
from precondqsm_bids.outputs.strip import current_strip, read_limit

SHOWN_RUNS = 300
"""Runs in the table of the page, those that need attention first: it has their slices inside."""

WORST = len(LEVELS) + 1
"""Place in the order of a light that is not known."""


def table_of_runs(
    output_dir: Path, summary: GroupResult, outliers: Mapping[str, int]
) -> dict[str, Any]:
    """What the template shows of the runs.

    ``outliers`` is the number of outlying values of each run. Strips that are missing or older
    than their map are drawn again, in threads.
    """
    chosen = sorted(summary.shown, key=lambda run: run.attention, reverse=True)[:SHOWN_RUNS]
    kept = {run.run for run in chosen}
    chosen = [run for run in summary.shown if run.run in kept]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        strips = list(pool.map(lambda run: _strip(output_dir, run), chosen))
    known = [limit for _, limit in strips if limit]
    common = median(known) if known else 0.0
    rows = [
        _row(output_dir, run, outliers, summary) | _picture(strip, common)
        for run, strip in zip(chosen, strips, strict=True)
    ]
    equal = sorted(
        {tuple(names) for names in summary.equal.values()}, key=lambda names: natural(names[0])
    )
    return {
        'run_rows': rows,
        'equal': equal,
        'window': common,
        'lights': LIGHTS,
        'levels': LEVELS,
        'methods': write_out(methods_text(summary.methods, summary.versions)),
    }


def _row(
    output_dir: Path, run: Shown, outliers: Mapping[str, int], summary: GroupResult
) -> dict[str, Any]:
    """Cells of a run."""
    ranks = list(LEVELS)
    return {
        'subject': run.subject,
        'run': run.run,
        'href': f'./sub-{run.subject}.html{f"#{run.run}" if run.folder else ""}'
        if (output_dir / f'sub-{run.subject}.html').is_file()
        else '',
        'status': run.status,
        'cells': [(level, ranks.index(level) if level else WORST) for level in run.levels],
        'n_warnings': run.n_warnings,
        'n_outliers': outliers.get(run.run, 0),
        'equal': [name for name in summary.equal.get(run.run, ()) if name != run.run],
    }


def _strip(output_dir: Path, run: Shown) -> tuple[str, float | None]:
    """The strip of a run as a data URI and its limit; nothing where there is none."""
    path = run.folder and current_strip(output_dir, run.subject, run.run, run.folder)
    limit = path and read_limit(path)
    if not path or not limit:
        return '', None
    try:
        data = path.read_bytes()
    except OSError:
        return '', None
    return 'data:image/jpeg;base64,' + base64.b64encode(data).decode('ascii'), limit


def _picture(strip: tuple[str, float | None], common: float) -> dict[str, Any]:
    """Source of the image, its own limit, and the contrast that brings it to the common one."""
    source, limit = strip
    return {
        'strip': source,
        'own': limit,
        'contrast': round(limit / common, 4) if limit and common else 1,
    }
