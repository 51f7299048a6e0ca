"""The group level: from the derivatives of the participants to tables and a page.

It reads the sidecars and tables that the participant level wrote, one run at a time, and a map
only where its strip of slices has to be drawn again.
"""

from precondqsm_bids.outputs.group.gather import write_group
from precondqsm_bids.outputs.group.tables import GroupResult

__all__ = ['GroupResult', 'write_group']
