"""What the public functions are given: checked, and converted where it stands for the same.

A mask of 0 and 1 that is no array of booleans would index voxels by number, half precision
overflows in sums, and lists have no shape: results would be wrong, or the error one of the inside.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, wraps
from inspect import signature
from typing import Any, NamedTuple, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.arrays import check_inside, check_voxel_size

P = ParamSpec('P')
R = TypeVar('R')

MASK, NUMBERS, IMAGES, SERIES, PARTS = 'mask', 'numbers', 'images', 'series', 'parts'
GROUPS = frozenset(
    (
        *('Companions', 'Geometry', 'GivenField', 'MapInputs', 'PriorInputs', 'R2Inputs'),
        *('Residual', 'Scan'),
        *('Arm', 'Method'),
    )
)
"""Classes of arguments: tuples, whose fields are checked as if given alone, and settings."""
LEADING = ('GivenField', 'Scan')
"""Tuples whose first image has the grid; beside others it is the mask that has it."""
LONGER = frozenset(('magnitude', 'phase', 'tissue'))
"""Images that may have an axis beside the three of the grid."""
ELSEWHERE = frozenset(('tissue', 'r2_map', 'contrasts', 'maps', 'start'))
"""Images of other origin, whose grid is checked where they are used, or on another grid."""
KNOWN = ('field', 'field_sd', 'chi', 'shape_chi')
"""Endings of names of arrays that are finite in the whole mask."""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check and convert the arrays that a public function is given, by its annotations.

    Arrays of numbers may be anything that numpy takes for one. A mask may have any two values of
    which one is 0. Arrays lie on the grid of the mask, or of the first of them. ``voxel_size`` is
    three positive lengths and ``field_strength`` a positive number. Fields and susceptibilities
    are finite in the mask.

    Examples
    --------
    >>> @checked
    ... def inside(field: npt.NDArray, mask: npt.NDArray[np.bool_]) -> npt.NDArray:
    ...     return field[mask]
    >>> field = np.arange(8.0).reshape(2, 2, 2)
    >>> print(inside(field, (field > 5).astype(np.uint8)))
    [6. 7.]
    >>> inside(field[1:], field > 5)
    Traceback (most recent call last):
    ...
    ValueError: field (1, 2, 2) and mask (2, 2, 2) differ in shape
    """
    takes = signature(function)

    @wraps(function)
    def call(*args: P.args, **keywords: P.kwargs) -> R:
        given = takes.bind(*args, **keywords)
        kinds = _kinds(function)
        found = {
            name: _converted(name, kinds.get(name), value)
            for name, value in given.arguments.items()
        }
        images = list(_images(found, kinds))
        _check_grid(images)
        _check_known(images)
        given.arguments.update(found)
        return function(*given.args, **given.kwargs)

    return call


def as_numbers(values: Any, name: str) -> npt.NDArray:
    """An array of real numbers, of single precision at least.

    >>> as_numbers([1, 2], 'r2'), as_numbers(np.float16([1]), 'r2').dtype
    (array([1, 2]), dtype('float32'))
    >>> as_numbers('r2.nii', 'r2')
    Traceback (most recent call last):
    ...
    ValueError: r2 is no array of numbers, but a str
    """
    try:
        array = np.asarray(values)
    except ValueError:  # rows of several lengths
        array = np.asarray(None)
    if array.dtype.kind == 'c':
        raise ValueError(f'{name} has complex numbers: give a real part of them, or their size')
    if array.dtype.kind not in 'biuf':
        raise ValueError(f'{name} is no array of numbers, but a {type(values).__name__}')
    return array.astype(np.float32) if array.dtype == np.float16 else array


def as_mask(values: Any, name: str = 'mask') -> npt.NDArray[np.bool_]:
    """An array of booleans: what of a mask is not 0.

    >>> as_mask([0, 255]).tolist()
    [False, True]
    >>> as_mask([0, 0.2, 0.7])
    Traceback (most recent call last):
    ...
    ValueError: mask is not a valid mask: it has 3 different values, from 0 to 0.7; a mask is 0 ...
    """
    array = as_numbers(values, name)
    if array.dtype == np.bool_:
        return array
    found = np.unique(array)
    if len(found[found != 0]) > 1 or not np.isfinite(found).all():
        raise ValueError(
            f'{name} is not a valid mask: it has {len(found)} different values, from '
            f'{found[0]:g} to {found[-1]:g}; a mask is 0 outside and 1 inside'
        )
    return array != 0


def as_labels(values: Any, name: str) -> npt.NDArray:
    """An array of whole numbers.

    >>> as_labels([0.0, 2.0], 'labels').tolist()
    [0.0, 2.0]
    >>> as_labels([0.0, 1.5], 'labels')
    Traceback (most recent call last):
    ...
    ValueError: labels has values that are no whole numbers, such as 1.5: resample labels to ...
    """
    array = as_numbers(values, name)
    if array.dtype.kind == 'f' and (wrong := array[array != np.floor(array)]).size:
        raise ValueError(
            f'{name} has values that are no whole numbers, such as {wrong[0]:g}: resample labels '
            'to the nearest neighbour'
        )
    return array


def check_labels(labels: npt.NDArray, name: str) -> None:
    """Raise ValueError if labels are negative: regions are numbered from 1."""
    if labels.size and labels.min() < 0:
        raise ValueError(
            f'{name} has negative labels, such as {labels.min():g} (in '
            f'{np.count_nonzero(labels < 0)} voxels): labels are 1 and more (unsigned numbers '
            'stored as signed?); number them again'
        )


def _is_positive(number: Any) -> bool:
    try:
        return bool(0 < number < np.inf)
    except (TypeError, ValueError):
        return False


def check_field_strength(field_strength: Any) -> None:
    """Raise ValueError unless a field strength (T) is a positive number."""
    if not _is_positive(field_strength):
        raise ValueError(f'field_strength should be positive, in T: {field_strength}')


def check_reg_weight(reg_weight: Any) -> None:
    """Raise ValueError unless a regularisation weight (mm) is a positive number."""
    if not _is_positive(reg_weight):
        raise ValueError(f'the regularisation weight lambda must be positive: {reg_weight}')


def check_workers(workers: Any) -> None:
    """Raise ValueError unless a number of threads is a whole number, 1 or more.

    >>> check_workers(1.5)
    Traceback (most recent call last):
    ...
    ValueError: workers should be a whole number of threads, 1 or more: 1.5
    """
    if not isinstance(workers, int | np.integer) or workers < 1:
        raise ValueError(f'workers should be a whole number of threads, 1 or more: {workers}')


def _check_names(names: Any) -> None:
    if isinstance(names, str):
        raise ValueError(f'tissue_names should be a name for each class, not one word: {names!r}')


def _check_label_names(names: Any) -> None:
    if not isinstance(names, Mapping):
        kind = type(names).__name__
        raise ValueError(
            f'label_names should be names by number, such as {{1: "csf"}}, not {kind}'
        )


CHECKS: dict[str, Callable[[Any], None]] = {
    'tissue_names': _check_names,
    'label_names': _check_label_names,
    'reg_weight': check_reg_weight,
    'voxel_size': check_voxel_size,
    'field_strength': check_field_strength,
    'workers': check_workers,
}


class Kind(NamedTuple):
    """What a parameter or a field of a tuple takes."""

    word: str
    """One of the words above, a name of :data:`CHECKS`, or a class."""
    optional: bool
    """It may be None."""
    classes: tuple[Any, ...] = ()
    """Of tuples of arguments, and of settings."""
    others: tuple[type, ...] = ()
    """What may stand in the place of an array."""


class Image(NamedTuple):
    """An array on the grid."""

    name: str
    data: npt.NDArray
    is_mask: bool = False
    leads: bool = False
    """It is of a tuple whose first image has the grid."""

    @property
    def echoes(self) -> bool:
        """It has an axis of echoes or classes."""
        return self.name in LONGER and self.data.ndim == 4


@cache
def _kinds(owner: Any) -> dict[str, Kind]:
    """Of each parameter or field that is checked: what it takes."""
    hints = get_type_hints(owner)
    hints.pop('return', None)
    found = {name: _kind(hint) for name, hint in hints.items()}
    for name in set(CHECKS) & set(found):
        found[name] = found[name]._replace(word=name)
    return {name: kind for name, kind in found.items() if kind.word}


def _kind(hint: Any) -> Kind:
    union = get_origin(hint) in (Union, types.UnionType)
    options = get_args(hint) if union else (hint,)
    optional = type(None) in options
    classes = tuple(option for option in options if getattr(option, '__name__', '') in GROUPS)
    if classes:
        return Kind(PARTS, optional, classes)
    for option in options:
        origin, within = get_origin(option) or option, get_args(option)
        if origin is np.ndarray:
            word = MASK if get_args(within[1]) == (np.bool_,) else NUMBERS
            others = tuple(other for other in (float, str) if other in options)
            return Kind(word, optional, others=others)
        if origin in (Mapping, Sequence) and _kind(within[-1]).word == NUMBERS:
            return Kind(IMAGES if origin is Mapping else SERIES, optional)
    return Kind('', optional)


def _converted(name: str, kind: Kind | None, value: Any) -> Any:
    """An argument as it is passed on; the same object where nothing is to be done."""
    if kind is None or (value is None and kind.optional):
        return value
    if kind.word in CHECKS:
        CHECKS[kind.word](value)
        return value
    if kind.word == PARTS:
        return _parts(name, kind, value)
    if value is None:
        raise ValueError(f'{name} is missing: give an array')
    if isinstance(value, kind.others) or (
        float in kind.others and np.isscalar(value)
    ):  # a number or a word in the place of an array
        return value
    if kind.word == IMAGES:
        if not isinstance(value, Mapping):
            raise ValueError(f'{name} should be images by name, not a {type(value).__name__}')
        return {key: as_numbers(image, key) for key, image in value.items()}
    if kind.word == SERIES:
        return [as_numbers(image, f'{name}[{i}]') for i, image in enumerate(value)]
    if kind.word == MASK:
        return as_mask(value, name)
    return as_labels(value, name) if name == 'labels' else as_numbers(value, name)


def _parts(name: str, kind: Kind, value: Any) -> Any:
    """A tuple of arguments with its fields converted."""
    if not isinstance(value, kind.classes):
        names = ' or '.join(known.__name__ for known in kind.classes)
        raise ValueError(f'{name} should be a {names}, not a {type(value).__name__}')
    if not hasattr(value, '_fields'):  # settings, which check themselves
        return value
    fields: Any = type(value)
    kind_of, before = _kinds(fields), value._asdict()
    after = {key: _converted(key, kind_of.get(key), part) for key, part in before.items()}
    changed = {key: part for key, part in after.items() if part is not before[key]}
    return value._replace(**changed) if changed else value


def _images(values: Mapping[str, Any], kinds: Mapping[str, Kind]) -> Iterator[Image]:
    """The arrays that lie on the grid."""
    for name, value in values.items():
        kind = kinds.get(name)
        if kind is None or value is None:
            continue
        if kind.word == PARTS and hasattr(value, '_fields'):
            fields: Any = type(value)
            parts = _images(value._asdict(), _kinds(fields))
            leads = fields.__name__ in LEADING
            yield from (image._replace(leads=leads) for image in parts)
        elif kind.word == SERIES:
            yield from (Image(f'{name}[{i}]', image) for i, image in enumerate(value))
        elif (
            kind.word in (MASK, NUMBERS)
            and isinstance(value, np.ndarray)
            and name not in ELSEWHERE
        ):
            yield Image(name, value, kind.word == MASK)


def _check_grid(images: list[Image]) -> None:
    """Raise ValueError unless all have the matrix of the echoes, the mask, or of the first."""
    masks = [image for image in images if image.is_mask]
    leading = [image for image in images[:1] if image.leads or image.echoes]
    for first in (leading or masks or images)[:1]:
        grid, called = _grid_of(first), 'the echoes' if first.echoes else first.name
        for image in images:
            if _grid_of(image) != grid:
                shape = first.data.shape if image.echoes else grid
                raise ValueError(
                    f'{image.name} {image.data.shape} and {called} {shape} differ in shape'
                )
        if len(grid) > 3 or (len(grid) < 3 and first.name in ('magnitude', 'mask')):
            raise ValueError(f'{first.name} must have three dimensions, not shape {grid}')


def _grid_of(image: Image) -> tuple[int, ...]:
    return image.data.shape[:3] if image.name in LONGER else image.data.shape


def _check_known(images: list[Image]) -> None:
    """Raise ValueError if a field or a susceptibility is not known in the whole mask."""
    masks = [image.data for image in images if image.is_mask and image.name == 'mask']
    for image in images:
        # A sum is finite where all values are: most arrays are read once.
        if masks and image.name.endswith(KNOWN) and not np.isfinite(image.data.sum()):
            check_inside(image.data, image.name, masks[0])
