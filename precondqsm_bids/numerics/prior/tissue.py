"""Tissue: the classes of a segmentation as a prior, and what the literature says of them."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from precondqsm_bids.numerics.arguments import checked
from precondqsm_bids.numerics.arrays import check_map, check_shapes
from precondqsm_bids.numerics.prior.basis import Basis, Overlap, balanced

F32 = npt.NDArray[np.float32]

LEAST_FRACTION = 0.01
"""Shares of a tissue in a voxel below this are left out."""
MOST_FRACTION = 1.5
"""Share of a tissue above which shares are percent or codes; interpolation overshoots by less."""
_SIDES = {'left', 'right', 'lh', 'rh', 'l', 'r', 'bilateral'}
_CLASSES = (
    ('WM-hypointensities', r'(wm|white matter) hyp\w+'),
    ('WM', r'wm( .*)?|(.*)white matter|cc( .*)?|corpus callosum( .*)?'),
    (
        'GM',
        r'c?gm|gr[ae]y( matter)?|ctx( .*)?|(.*)cortex( .*)?|hippocamp\w+|amygdala|insula'
        r'|cortical gr[ae]y matter',
    ),
    ('CSF', r'csf|cerebro ?spinal fluid|(.* )?(ventricles?|lat vent)'),
    ('deep-GM', r'scgm|dgm|(deep|subcortical) (gm|gr[ae]y matter)'),
    ('caudate', r'caudate( nucleus)?'),
    ('putamen', r'putamen'),
    ('pallidum', r'(globus )?pallid\w+|gp[ei]?'),
    ('thalamus', r'thalamus( proper)?'),
    ('accumbens', r'(nucleus )?accumbens( area)?'),
    ('red-nucleus', r'red nucleus|rn'),
    ('substantia-nigra', r'substantia nigra|sn'),
    ('subthalamic-nucleus', r'subthalamic nucleus|stn'),
    ('dentate', r'dentate( nucleus)?'),
    ('brainstem', r'brain ?stem|bs'),
    ('ventral-diencephalon', r'ventral ?(dc|diencephalon)'),
    ('choroid-plexus', r'choroid plexus'),
    ('vessel', r'vessels?|veins?'),
)
"""Class and the names that mean it: words without their side, lower case. The first one counts."""
_NOTHING = {'', 'background', 'bg', 'unknown', 'clear label'}
BRAIN_CLASSES = tuple(name for name, _ in _CLASSES)
"""Classes that a segmentation's names are recognised as; other names are their own class."""
R2_FIELD_STRENGTH = (2.7, 3.3)
"""T: the field strengths for which :data:`R2_LITERATURE` holds."""
_IRON = {
    'GM': 2.92, 'caudate': 9.28, 'putamen': 13.32, 'pallidum': 21.3, 'thalamus': 4.76,
    'red-nucleus': 19.48, 'substantia-nigra': 18.46, 'dentate': 10.35,
}  # fmt: skip
"""Iron, mg per 100 g of fresh tissue (prefrontal cortex for GM): Hallgren & Sourander, J Neurochem
1958;3:41."""
R2_LITERATURE = {
    **{name: round(12.7 + (25.8 - 12.7) / 21.3 * iron, 1) for name, iron in _IRON.items()},
    'WM': 18.0,
    'CSF': 0.5,
}
"""R2 at 3 T, 1/s.

Grey matter: ``R2 = 12.7 + 0.615 [Fe]`` of Gelman et al., Radiology 1999;210:759, whose slope is
that from the iron-free 12.7/s to the 25.8/s of the pallidum, with the iron of Hallgren &
Sourander; the same paper measured 14.4/s in prefrontal cortex, where this gives 14.5, and 18.0/s
in frontal white matter. CSF: T2 of 1.9 s around the brain and 2.4 s in the ventricles
(PMC10696635).
"""
R2_CITATION = (
    'Gelman N et al., Radiology 1999;210:759 (3 T), with the iron of Hallgren B and Sourander P, '
    'J Neurochem 1958;3:41'
)
_IRON_RICH = ('caudate', 'putamen', 'pallidum', 'red-nucleus', 'substantia-nigra', 'dentate')
CHI_ORDER = (
    *(('WM', name, 0.01) for name in ('GM', 'thalamus', *_IRON_RICH)),
    *(('GM', name, -0.01) for name in _IRON_RICH),
)
"""Class, a class of more susceptibility, and how much more (ppm) it has at least.

White matter is diamagnetic against grey by some 0.05 ppm at any adult age, for its myelin: He &
Yablonskiy, Proc Natl Acad Sci USA 2009;106:13558. Iron, of which the cortex has 2.9 and the nuclei
9 to 21 mg per 100 g (:data:`_IRON`), adds some 0.009 ppm each: Langkammer et al., NeuroImage
2012;62:1593. The least differences are far below these, since age and disease change them.
"""
LEAST_CLASS = 27
"""Voxels of a class below which its mean says nothing of it."""


def tissue_class(name: str) -> str | None:
    """The class that a label's name means, or None for the background.

    Names of FreeSurfer's table (sMRIPrep, FastSurfer, SynthSeg), the labels of BIDS and plain
    words are recognised, whatever the side. Any other name is a class of its own.

    Parameters
    ----------
    name : str
        Name of a label, such as ``Left-Cerebral-White-Matter``.

    Examples
    --------
    >>> [tissue_class(name) for name in ('Left-Cerebral-White-Matter', 'ctx-rh-insula', 'SCGM')]
    ['WM', 'GM', 'deep-GM']
    >>> [tissue_class(name) for name in ('right pallidum', '3rd-Ventricle', 'Tumour core')]
    ['pallidum', 'CSF', 'tumour-core']
    """
    words = [word for word in re.split(r'[\s_.,()/-]+', name.lower()) if word]
    plain = ' '.join(word for word in words if word not in _SIDES)
    if plain in _NOTHING:
        return None
    for known, pattern in _CLASSES:
        if re.fullmatch(pattern, plain):
            return known
    return plain.replace(' ', '-')


@checked
def tissue_parcels(tissue: npt.NDArray, count: int, mask: npt.NDArray[np.bool_]) -> Basis:
    """One constant (ppm) per tissue class, and one for what no class names.

    Parcel ``c`` is class ``c + 1``, parcel ``count`` the rest. A voxel that several classes share
    belongs to each with its share, ``b_c = p_c``, and to the rest with ``1 - sum_c p_c``.

    Parameters
    ----------
    tissue : (X, Y, Z) ndarray of int or (X, Y, Z, C) ndarray
        Class of each voxel, 1 to ``count`` (0: none), or the fractions of the classes, 0 to 1.
    count : int
        Number of classes, C.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.

    Returns
    -------
    Basis

    Raises
    ------
    ValueError
        Another shape than the mask's, values that are not finite, other classes than 0 to
        ``count``, fractions beyond 1, or no class in the mask.

    Examples
    --------
    >>> tissue_parcels(np.array([[[1, 2, 0]]]), 2, np.ones((1, 1, 3), bool)).labels
    array([[[0, 1, 2]]], dtype=int32)
    >>> fractions = np.array([[[[0.75, 0.25], [0.0, 1.0]]]])
    >>> basis = tissue_parcels(fractions, 2, np.ones((1, 1, 2), bool))
    >>> basis.labels.tolist(), basis.weight.tolist(), basis.overlaps[0].labels.tolist()
    ([[[0, 1]]], [[[0.75, 1.0]]], [1])
    """
    check_map(tissue, 'tissue', mask)
    labels, weight = np.full(mask.shape, -1, np.int32), np.zeros(mask.shape, np.float32)
    if tissue.ndim == 3:
        found = tissue[mask].astype(np.int32)
        if np.any(found != tissue[mask]):
            raise ValueError(
                'tissue has classes that are no whole numbers: resample it to the nearest'
            )
        if found.size and not 0 <= found.min() <= found.max() <= count:
            raise ValueError(
                f'tissue: classes {found.min()} to {found.max()} are not among the {count} that '
                'have names'
            )
        if not np.any(found):
            raise ValueError('tissue: no class has a voxel in the region of interest')
        labels[mask], weight[mask] = np.where(found > 0, found - 1, count), 1
        return balanced(Basis(labels, weight, 0.0))
    if tissue.shape[3] != count:
        raise ValueError(f'tissue: {tissue.shape[3]} maps of fractions for {count} classes')
    fractions = np.clip(tissue[mask].astype(np.float32), 0, None)
    if fractions.max(initial=0) > MOST_FRACTION:
        raise ValueError(
            f'tissue has fractions up to {fractions.max():g}; they are 0 to 1: divide them by the '
            'largest that can be'
        )
    if not np.any(fractions >= LEAST_FRACTION):
        raise ValueError('tissue: no class has a voxel in the region of interest')
    total = fractions.sum(axis=1, keepdims=True)
    fractions = np.concatenate(
        [fractions / np.maximum(total, 1), np.clip(1 - total, 0, None)], axis=1
    )
    order = np.argsort(-fractions, axis=1, kind='stable').astype(np.int32)
    ranked = np.take_along_axis(fractions, order, axis=1)
    labels[mask], weight[mask] = order[:, 0], ranked[:, 0]
    voxels = np.flatnonzero(mask)
    overlaps = []
    for rank in range(1, count + 1):
        used = np.flatnonzero(ranked[:, rank] >= LEAST_FRACTION)
        if used.size:
            overlaps.append(Overlap(voxels[used], order[used, rank], ranked[used, rank]))
    return balanced(Basis(labels, weight, 0.0, tuple(overlaps)))


@checked
def literature_r2(
    tissue: npt.NDArray, names: Sequence[str], mask: npt.NDArray[np.bool_], field_strength: float
) -> F32:
    """R2 of each voxel by the literature's value for its tissue class.

    ``R2(r) = sum_c p_c(r) R2_c``, with the fractions ``p_c`` of the classes in the voxel. Classes
    without a value, and voxels in no class, take the mean over the voxels that have one.

    Parameters
    ----------
    tissue : (X, Y, Z) ndarray of int or (X, Y, Z, C) ndarray
        Class of each voxel, 1 to C, or the fractions of the classes.
    names : sequence of str
        Names of the C classes.
    mask : (X, Y, Z) ndarray of bool
        Region of interest.
    field_strength : float
        B0, T.

    Returns
    -------
    (X, Y, Z) ndarray
        1/s, zero outside the mask.

    Raises
    ------
    ValueError
        Another field strength than 3 T, or no voxel of a class with a value.

    References
    ----------
    See :data:`R2_LITERATURE`.

    Examples
    --------
    >>> tissue = np.array([[[1, 2, 0]]])
    >>> r2 = literature_r2(tissue, ['WM', 'CSF'], np.ones((1, 1, 3), bool), 3.0)
    >>> r2.round(2).tolist()
    [[[18.0, 0.5, 9.25]]]
    """
    low, high = R2_FIELD_STRENGTH
    if not low <= field_strength <= high:
        raise ValueError(
            f'the R2 of the literature is that of 3 T, and the field strength {field_strength:g} '
            'T: give r2 as a number, median or map'
        )
    basis = tissue_parcels(tissue, len(names), mask)
    rates = np.array([R2_LITERATURE.get(name, np.nan) for name in (*names, '')])
    known = np.isfinite(rates)
    fraction, total = np.zeros(mask.shape), np.zeros(mask.shape)
    parts = [(np.flatnonzero(mask), basis.labels[mask], basis.weight[mask]), *basis.overlaps]
    for voxels, labels, weight in parts:
        used = weight * known[labels]
        fraction.reshape(-1)[voxels] += used
        total.reshape(-1)[voxels] += used * np.where(known, rates, 0)[labels]
    if not np.any(fraction > 0):
        raise ValueError(
            f'tissue: none of the classes in the region of interest ({", ".join(names)}) has an '
            f'R2 in the literature, which has {", ".join(R2_LITERATURE)}: give r2 as a number, '
            'median or map'
        )
    mean = total.sum() / fraction.sum()
    return np.where(mask, total + (1 - fraction) * mean, 0).astype(np.float32)


@checked
def class_means(chi: npt.NDArray, basis: Basis, names: Sequence[str]) -> dict[str, float]:
    """Mean susceptibility of each tissue class, relative to that of all voxels.

    A voxel counts for the class that has more than half of it; classes of fewer than 27 such
    voxels are left out.

    Parameters
    ----------
    chi : (X, Y, Z) ndarray
        Susceptibility, ppm.
    basis : Basis
        From :func:`~precondqsm_bids.numerics.tissue_parcels`.
    names : sequence of str
        Names of the classes.

    Returns
    -------
    dict of str to float
        ppm.

    Examples
    --------
    >>> tissue = np.repeat([[[1, 2]]], 27, axis=0)
    >>> basis = tissue_parcels(tissue, 2, np.ones(tissue.shape, bool))
    >>> class_means(np.where(tissue == 1, -0.03, 0.02), basis, ['WM', 'GM'])
    {'WM': -0.025, 'GM': 0.025}
    """
    check_shapes('the parcels', basis.labels.shape, chi=chi)
    mean = chi[basis.labels >= 0].mean(dtype=float)
    found = {}
    for number, name in enumerate(names):
        inside = (basis.labels == number) & (basis.weight > 0.5)
        if np.count_nonzero(inside) >= LEAST_CLASS:
            found[name] = round(float(chi[inside].mean(dtype=float) - mean), 6)
    return found


def contradictions(means: Mapping[str, float]) -> list[str]:
    """Pairs of classes in another order than that of the literature (:data:`CHI_ORDER`).

    Names that were swapped, and a segmentation of another head, do not show in how well a prior of
    class constants fits: the constants follow the voxels, whatever these are called.

    Parameters
    ----------
    means : mapping of str to float
        Susceptibility of the classes, ppm, from :func:`class_means`.

    Returns
    -------
    list of str
        One sentence for each pair of classes in the wrong order.

    Examples
    --------
    >>> contradictions({'WM': -0.03, 'GM': 0.02, 'pallidum': 0.12})
    []
    >>> contradictions({'WM': 0.02, 'GM': -0.03})
    ['WM (+0.020 ppm) is not clearly below GM (-0.030 ppm)']
    """
    return [
        f'{low} ({means[low]:+.3f} ppm) is not clearly below {high} ({means[high]:+.3f} ppm)'
        for low, high, least in CHI_ORDER
        if low in means and high in means and means[high] - means[low] < least
    ]


def doubts_of_names(means: Mapping[str, float]) -> list[str]:
    """A warning if the classes have another order of susceptibility than the literature."""
    if not (wrong := contradictions(means)):
        return []
    return [
        'the tissue classes have another order of susceptibility than the literature: '
        f'{"; ".join(wrong)}. Are names swapped, or is the segmentation that of another '
        'image? Look at the outlines'
    ]
