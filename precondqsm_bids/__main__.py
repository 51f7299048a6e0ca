"""``python -m precondqsm_bids`` is the command ``precondqsm_bids``."""

from precondqsm_bids.cli.run import main

if __name__ == '__main__':
    raise SystemExit(main())
