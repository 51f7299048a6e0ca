"""``python -m precondqsm_bids.phantom`` is the command ``precondqsm_phantom``."""

from precondqsm_bids.phantom.cli import main

if __name__ == '__main__':
    raise SystemExit(main())
