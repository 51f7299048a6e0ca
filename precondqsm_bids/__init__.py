"""Preconditioned quantitative susceptibility mapping.

The names in ``__all__`` are the package's promise: their signatures change as the page of the API
says, and no others are promised. Each is imported when it is first used, so that the command line
answers at once, and the functions on arrays need no workflow engine.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = '0.2.0'

if TYPE_CHECKING:
    from precondqsm_bids.method import Method
    from precondqsm_bids.numerics import (
        Companions,
        GivenField,
        Preconditioned,
        Reconstruction,
        Scan,
        b0_direction,
        flatten_field,
        forward_field,
        precondition,
        recombine,
        reconstruct,
    )
    from precondqsm_bids.workflows import Inner, init_preconditioning_wf, init_precondqsm_wf

__all__ = [
    'Companions',
    'GivenField',
    'Inner',
    'Method',
    'Preconditioned',
    'Reconstruction',
    'Scan',
    'b0_direction',
    'flatten_field',
    'forward_field',
    'init_preconditioning_wf',
    'init_precondqsm_wf',
    'precondition',
    'recombine',
    'reconstruct',
]
_ELSEWHERE = {
    'Method': 'method',
    'Inner': 'workflows',
    'init_preconditioning_wf': 'workflows',
    'init_precondqsm_wf': 'workflows',
}
"""Module of those that are not of the numerics."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{_ELSEWHERE.get(name, "numerics")}'), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
