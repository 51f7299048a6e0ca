"""What the tests of discovery share."""

import json
from pathlib import Path

from precondqsm_bids.inputs.discovery import find_runs


def names(paths):
    return [Path(path).name for path in paths]


def only_problem(dataset, **keywords):
    """The one problem, fatal, of a dataset without a good run."""
    runs, problems = find_runs(dataset.root, **keywords)
    assert (len(runs), len(problems)) == (0, 1), problems
    assert problems[0].fatal
    return problems[0]


def edit(path, **changes):
    """Change a sidecar; None removes a key."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
