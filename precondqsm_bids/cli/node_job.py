"""A job of a batch system: one node, in an environment as fit as the main process's.

    python -m precondqsm_bids.cli.node_job SCRIPT

The main process repairs its environment for itself alone: its stand-in for a home folder is not
there on another host, and goes with it.
"""

import runpy
import sys
from collections.abc import Sequence

from precondqsm_bids.cli.environment import repair_environment


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script that Nipype wrote for a node; the argument is its path."""
    (script,) = sys.argv[1:] if argv is None else argv
    repair_environment()
    runpy.run_path(script, run_name='__main__')


if __name__ == '__main__':
    main()
