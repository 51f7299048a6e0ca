"""Workflows: :func:`init_precondqsm_wf` is the one to embed."""

from precondqsm_bids.workflows.qsm import init_precondqsm_wf

__all__ = ['init_precondqsm_wf']
