"""What the tests of discovery share."""

import json
from dataclasses import fields
from pathlib import Path

from precondqsm_bids.inputs.discovery import find_runs
from precondqsm_bids.inputs.selection import Selection
from precondqsm_bids.method import Method


def names(paths):
    return [Path(path).name for path in paths]


def find(root, **keywords):
    """Runs and problems of a dataset; keywords are fields of the selection or of the method."""
    selecting = {field.name for field in fields(Selection)}
    select = Selection(**{key: keywords.pop(key) for key in selecting & set(keywords)})
    return find_runs(root, select=select, method=Method(**keywords))


def only_problem(dataset, **keywords):
    """The one problem, fatal, of a dataset without a good run."""
    runs, problems = find(dataset.root, **keywords)
    assert (len(runs), len(problems)) == (0, 1), problems
    assert problems[0].fatal
    return problems[0]


def edit(path, **changes):
    """Change a sidecar; None removes a key."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
