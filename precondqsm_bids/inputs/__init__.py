"""Which files of a dataset make a run, and what is wrong with them before anything is computed.

:func:`precondqsm_bids.inputs.discovery.find_runs` is the plot, the other modules its chapters.
"""
