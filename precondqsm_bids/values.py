"""Types and ranges of the values of settings. Only the standard library."""

from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

TYPES = {bool: bool, int: Integral, float: Real, str: str, NoneType: NoneType}
WORDS = {bool: 'True or False', int: 'a whole number', float: 'a number', str: 'a word'}


class Range(NamedTuple):
    """Values that a number may have, both ends included."""

    low: float
    high: float
    unit: str = ''

    def check(self, name: str, value: float) -> None:
        """Raise ValueError if a value is outside or not a number.

        >>> Range(1e-6, 1e6, 'mm').check('reg_weight', 0)
        Traceback (most recent call last):
        ...
        ValueError: reg_weight = 0 mm should be between 1e-06 and 1e+06
        """
        if not self.low <= value <= self.high:
            unit = f' {self.unit}' if self.unit else ''
            raise ValueError(
                f'{name} = {value:g}{unit} should be between {self.low:g} and {self.high:g}'
            )


def check_types(settings: Any) -> None:
    """Raise ValueError if a field of a dataclass has not the type that is declared for it.

    Fields that are tuples are not looked at.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Settings:
    ...     weight: float | None
    >>> check_types(Settings(2)), check_types(Settings(None))
    (None, None)
    >>> check_types(Settings('auto'))
    Traceback (most recent call last):
    ...
    ValueError: weight = 'auto' should be a number or None
    """
    for name, hint in get_type_hints(type(settings)).items():
        kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        if any(get_origin(kind) is tuple for kind in kinds):
            continue
        value = getattr(settings, name)
        number = isinstance(value, Real) and not isinstance(value, bool)
        good = (isinstance(value, TYPES[k]) and (number or k not in (int, float)) for k in kinds)
        if not any(good):
            words = ' or '.join(WORDS.get(kind, 'None') for kind in kinds)
            raise ValueError(f'{name} = {value!r} should be {words}')
