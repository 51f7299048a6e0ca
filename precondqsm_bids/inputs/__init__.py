"""Which files of a dataset make a run, and what is wrong with them before anything is computed.

The plot is :func:`precondqsm_bids.inputs.discovery.find_runs`.
"""
