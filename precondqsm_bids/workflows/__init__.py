"""Workflows to embed: :func:`init_precondqsm_wf`, and :func:`init_preconditioning_wf` around an
inversion of somebody else's."""

from precondqsm_bids.workflows.preconditioning import Inner, init_preconditioning_wf
from precondqsm_bids.workflows.qsm import init_precondqsm_wf

__all__ = ['Inner', 'init_preconditioning_wf', 'init_precondqsm_wf']
