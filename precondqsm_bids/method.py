"""The method as one value: everything that changes the maps, validated once.

The choices and the ranges stand here, the words of the prior in :mod:`precondqsm_bids.terms`, and
nowhere else; the command line, the nodes, the methods text and the numerics read them. Only the
standard library.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from precondqsm_bids.terms import MAP, PORT, PUBLISHED, TERMS, short, term
from precondqsm_bids.values import Range, check_types

PRIOR_FITS = ('auto', 'none', 'global', 'clusters')
R2_WORDS = ('median', 'map', 'literature')
REG_RULES = ('auto', 'l-curve', 'risk')
INVERSIONS = {
    'l2': 'closed form with the square of the gradient',
    'tv': 'total variation, whose weight is that of the l2 map at lambda',
}
"""How a local field may be inverted."""
BACKGROUNDS = {
    'pdf': 'projection onto dipole fields',
    'vsharp': 'means over spheres of several radii (V-SHARP), which do not know the rim of the '
    'region and take it off',
    'vsharp-or-pdf': 'vsharp, and pdf in a region so thin that spheres know less than half of it',
}
"""How the field of sources outside the region may be removed."""
MASK_WORDS = ('auto', 'derivatives', 'brain', 'object')
FIELD_WORDS = ('echoes', 'derivatives')
REFERENCE_WORDS = ('roi-mean', 'none')


RANGES = {
    'field_strength': Range(0.1, 25, 'T'),
    'mask_erosion': Range(0, 20, 'mm'),
    'r2': Range(0, 1e4, '1/s'),
    'pdf_iterations': Range(1, 10_000),
    'reg_weight': Range(1e-6, 1e6, 'mm'),
}
"""Ranges of the numbers among the fields of :class:`Method`."""


class Arm(NamedTuple):
    """One arm of the comparison: what is done with a field.

    Attributes
    ----------
    prefix : str
        Of its nodes, outputs and records: empty in the arm of the flattened field.
    iterations : int
        Of projection onto dipole fields.
    continued : bool
        Whether these start with the sources outside that the fit of the prior has found, as what
        it leaves is background and hardly sources inside.
    rule : str
        How lambda is chosen where it is not given: ``l-curve``, ``risk``, or ``risk-or-corner``,
        the smaller of both, where the corner counts for no less than an eighth of a voxel.
    reg_weight : float or None
        Lambda, mm.
    clip_outliers : bool
        Whether single outliers and uncertain voxels of the residual are held to their neighbours.
        A prior with few coefficients is corrected by its residual, which must stay whole.
    inversion : str
        Word of :data:`INVERSIONS`.
    background : str
        Word of :data:`BACKGROUNDS`.
    local_of : str or None
        Prefix of the arm whose local field is inverted; None: its own background removal.
    certain_field : bool
        Whether the region loses what lies at its border and has a field of low quality
        (:func:`~precondqsm_bids.numerics.quality_mask`), and the map is relative to the mean of
        what is left, whatever the reference of the method.
    """

    prefix: str = ''
    iterations: int = 30
    continued: bool = False
    rule: str = 'l-curve'
    reg_weight: float | None = None
    clip_outliers: bool = False
    inversion: str = 'l2'
    background: str = 'pdf'
    local_of: str | None = None
    certain_field: bool = False

    @property
    def name(self) -> str:
        """The arm in a word.

        >>> [arm.name for arm in Method(consensus=True).arms]
        ['preconditioned', 'conventional', 'conventional_risk', 'consensus']
        """
        return self.prefix.removesuffix('_') or 'preconditioned'

    @property
    def weighted(self) -> bool:
        """Whether the inversion knows the noise of the field and the steps of the prior."""
        return self.clip_outliers and self.inversion == 'l2'

    @property
    def conventional(self) -> bool:
        """Whether the field is not flattened."""
        return bool(self.prefix)


CONSENSUS = Arm(
    'consensus_',
    rule='risk-or-corner',
    inversion='tv',
    background='vsharp-or-pdf',
    certain_field=True,
)
"""The choice of the QSM consensus (10.1002/mrm.30006): a mask of the brain and of the phase's
quality, V-SHARP or PDF, an inversion that favours sparsity, the whole brain as reference."""


@dataclass(frozen=True)
class Method:
    """All settings that change the maps.

    Attributes
    ----------
    field_strength : float or None
        T; used only where the metadata have no ``MagneticFieldStrength`` or an absurd one.
    phase_sign : int or None
        Sign of the stored phase, 1 or -1; None finds it by the field of the object's shape, and
        assumes what is usual where that does not decide.
    b0_dir : tuple of float or None
        Direction of B0 along the voxel axes; None takes that of the header.
    field : str
        Where the total field is from: fitted to the ``echoes``, or a map of the ``derivatives``.
    mask : str
        Region of interest: ``brain``, ``object``, ``derivatives`` or a file; ``auto`` is a brain
        mask of derivatives, else the brain of a head, else the object.
    mask_erosion : float
        Depth that is taken off the region of interest, mm.
    prior : str or sequence of str
        Words of :data:`~precondqsm_bids.terms.TERMS`, whose sum the first estimate is; ``shape``
        stands alone.
    prior_fit : str
        How the field chooses the coefficients of whole maps: ``none``, ``global``, ``clusters``
        (one for each connected cluster), or ``auto``: ``none`` for ``r2prime`` alone and
        ``global`` otherwise.
    contrasts : sequence of str
        Suffixes of further images whose cells ``contrast`` has too, such as ``T1w``.
    r2 : float or str
        1/s; or ``median`` (the median R2* of the region itself), ``map`` (an R2map or T2map of
        the run) or ``literature`` (by tissue class).
    shape : bool
        Whether the object's shape against air is part of the first estimate.
    conventional : bool
        Whether the conventional arm is computed too.
    consensus : bool
        Whether the opponents are computed too: the arm by the choice of the QSM consensus, whose
        settings are its own, and a conventional map of least expected error where that at the
        corner of the L-curve is the conventional one.
    background : str
        Word of :data:`BACKGROUNDS`, for both arms.
    pdf_iterations : int
        Iterations of the background removal ``pdf``; after a prior that describes the interior
        they go on from the sources outside that its fit has found.
    reg_weight : float or None
        Lambda of the inversion in both arms, mm; None leaves it to ``reg_rule``.
    reg_rule : str
        ``l-curve`` takes the corner of the L-curve, ``risk`` the least expected error, ``auto``
        the first in the conventional arm with ``l2``, as published, and the second otherwise.
    inversion : str
        Word of :data:`INVERSIONS`, for both arms.
    reference : str
        ``none``, ``roi-mean`` or the name of a label.

    Raises
    ------
    ValueError
        A value is out of its range, or two do not go together. The message opens with the name
        of the field.

    Examples
    --------
    >>> Method().preconditioned
    Arm(prefix='', iterations=30, continued=True, rule='risk', reg_weight=None, \
clip_outliers=True, inversion='l2', background='pdf', local_of=None, certain_field=False)
    >>> Method(prior='r2prime', shape=False).fit is None
    True
    """

    field_strength: float | None = None
    phase_sign: int | None = None
    b0_dir: tuple[float, ...] | None = None
    field: str = 'echoes'
    mask: str = 'auto'
    mask_erosion: float = 0.0
    prior: tuple[str, ...] = ('contrast',)
    prior_fit: str = 'auto'
    contrasts: tuple[str, ...] = ()
    r2: float | str = 'median'
    shape: bool = True
    conventional: bool = True
    consensus: bool = False
    background: str = 'pdf'
    pdf_iterations: int = 30
    reg_weight: float | None = None
    reg_rule: str = 'auto'
    inversion: str = 'l2'
    reference: str = 'roi-mean'

    def __post_init__(self) -> None:
        for name in ('prior', 'contrasts'):
            object.__setattr__(self, name, _words(name, getattr(self, name)))
        check_types(self)
        for name, allowed in RANGES.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                allowed.check(name, value)
        choices = {
            'field': FIELD_WORDS,
            'prior_fit': PRIOR_FITS,
            'reg_rule': REG_RULES,
            'inversion': tuple(INVERSIONS),
            'background': tuple(BACKGROUNDS),
        }
        for name, words in choices.items():
            if getattr(self, name) not in words:
                raise ValueError(f'{name} = {getattr(self, name)} is not one of {_list(words)}')
        if isinstance(self.r2, str) and self.r2 not in R2_WORDS:
            raise ValueError(f'r2 = {self.r2} is not a number (1/s) or one of {_list(R2_WORDS)}')
        if self.phase_sign not in (None, 1, -1):
            raise ValueError(f'phase_sign = {self.phase_sign} should be 1 or -1')
        along = (0, 0, 1) if self.b0_dir is None else self.b0_dir
        if len(along) != 3 or not 0 < sum(x * x for x in along) < float('inf'):
            raise ValueError(f'b0_dir = {along} should be three finite numbers, not all 0')
        if wrong := [name for name in self.contrasts if not is_suffix(name)]:
            raise ValueError(
                f'contrasts: "{wrong[0]}" is not a suffix such as T1w: letters and digits only'
            )
        self._check_prior()

    def _check_prior(self) -> None:
        """Raise ValueError if the settings of the prior do not go together."""
        prior, said = self.prior, f'prior {" ".join(self.prior)}'
        if not prior:
            raise ValueError(f'prior takes one or several of {_list(TERMS)}')
        for word in prior:
            if word == MAP or (word not in TERMS and not word.startswith(MAP)):
                raise ValueError(f'prior {word} is not one of {_list(TERMS)}')
            if prior.count(word) > 1:
                raise ValueError(f'prior has {word} twice: once is enough')
        if 'shape' in prior and len(prior) > 1:
            raise ValueError(
                f'{said}: shape is the shape alone; with other terms it is in the prior by '
                'default: leave out shape'
            )
        if prior == ('shape',) and not self.shape:
            raise ValueError(f'{said} without the shape leaves no first estimate')
        if self.contrasts and 'contrast' not in prior:
            raise ValueError(
                f'contrasts {" ".join(self.contrasts)} are for the prior contrast, and the prior '
                f'is {" ".join(prior)}: add contrast, or leave them out'
            )
        whole = [word for word in prior if term(word).whole_map]
        wrong = f'{said} does not go with prior_fit {self.prior_fit}: '
        if self.prior_fit in ('global', 'clusters') and not whole:
            raise ValueError(
                f'{wrong}that is for {_list(_whole_maps())}; other terms have a coefficient for '
                'each of their parcels (auto)'
            )
        if self.prior_fit == 'none' and prior != ('shape',) and (not whole or len(prior) > 1):
            raise ValueError(
                f'{wrong}only {_list(_whole_maps(), "or one")}, alone, can be taken as it is, '
                'without a fit'
            )

    @property
    def inside(self) -> str:
        """What the region of interest is where there is no mask: auto, brain or object.

        >>> Method().inside, Method(mask='derivatives').inside
        ('auto', 'object')
        """
        return self.mask if self.mask in ('auto', 'brain') else 'object'

    @property
    def fit(self) -> str | None:
        """How whole maps are fitted: ``global``, ``clusters``, or None: nothing is fitted.

        >>> Method(prior='r2prime').fit, Method(prior=('r2prime', 'tissue')).fit
        (None, 'global')
        """
        as_it_is = self.prior in (PUBLISHED, ('shape',))
        if self.prior_fit == 'none' or (self.prior_fit == 'auto' and as_it_is):
            return None
        return 'clusters' if self.prior_fit == 'clusters' else 'global'

    @property
    def field_given(self) -> bool:
        """Whether the total field is given, and no echo is read."""
        return self.field == 'derivatives'

    @property
    def by_theory(self) -> bool:
        """Whether the prior is static-dephasing theory alone, as published."""
        return self.fit is None and self.prior == PUBLISHED

    @property
    def describes_interior(self) -> bool:
        """Whether a term of the prior does."""
        return any(term(word).describes_interior for word in self.prior)

    @property
    def reads_contrast(self) -> bool:
        """Whether the prior has cells of the images' contrast."""
        return 'contrast' in self.prior

    @property
    def needs_tissue(self) -> bool:
        """Whether tissue classes are read.

        >>> Method(prior=('contrast', 'tissue')).needs_tissue, Method(r2='literature').needs_tissue
        (True, True)
        """
        return self.r2 == 'literature' or any(term(word).needs_tissue for word in self.prior)

    @property
    def needs_r2_map(self) -> bool:
        """Whether a map of R2 or T2 is read."""
        return self.r2 == 'map'

    @property
    def r2star_terms(self) -> tuple[str, ...]:
        """The terms that are made of R2*, which a single echo does not have.

        >>> Method(prior=('tissue', 'r2prime')).r2star_terms
        ('r2prime',)
        """
        return tuple(word for word in self.prior if term(word).needs_r2star)

    @property
    def prior_maps(self) -> tuple[Path, ...]:
        """The files among the terms.

        >>> Method(prior='map:/a.nii').prior_maps[0].name
        'a.nii'
        """
        words = (word.removeprefix(MAP) for word in self.prior if word.startswith(MAP))
        return tuple(Path(word) for word in words if word != PORT)

    @property
    def takes_map(self) -> bool:
        """Whether a map that is an input is a term."""
        return f'{MAP}{PORT}' in self.prior

    def summary(self, one_echo: bool = False) -> str:
        """The prior in one word, files by their names.

        >>> Method(prior=('tissue', 'map:/a/chi.nii')).summary()
        'tissue+map:chi.nii+shape'
        """
        words = [short(word) for word in self.prior if term(word).inside]
        if one_echo:  # without R2*
            words = ['contrast(magnitude)' if word == 'contrast' else word for word in words]
        return '+'.join([*words, *['shape'] * self.shape])

    @property
    def preconditioned(self) -> Arm:
        """The arm whose field is flattened by the prior."""
        interior = self.describes_interior
        return self._arm('', 'risk')._replace(continued=interior, clip_outliers=interior)

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The preconditioned arm, and beside it the conventional one and those of the consensus.

        >>> [arm.rule for arm in Method().arms]
        ['risk', 'l-curve']
        """
        arms = [self.preconditioned]
        if self.conventional:
            published = 'l-curve' if self.inversion == 'l2' else 'risk'
            arms.append(self._arm('conventional_', published))
        if self.consensus:
            at_corner = [a for a in arms[1:] if a.rule == 'l-curve' and a.reg_weight is None]
            arms += [
                arm._replace(prefix='conventional_risk_', rule='risk', local_of=arm.prefix)
                for arm in at_corner
            ]
            arms.append(CONSENSUS)
        return tuple(arms)

    def _arm(self, prefix: str, rule: str) -> Arm:
        """An arm with the settings of the method; ``rule`` is that of ``auto``."""
        return Arm(
            prefix,
            self.pdf_iterations,
            rule=rule if self.reg_rule == 'auto' else self.reg_rule,
            reg_weight=self.reg_weight,
            inversion=self.inversion,
            background=self.background,
        )


def is_suffix(text: str) -> bool:
    """Whether a text can be the suffix of a BIDS name, such as ``T1w``."""
    return re.fullmatch(r'[0-9a-zA-Z]+', text) is not None


def _whole_maps() -> list[str]:
    return [word for word, item in TERMS.items() if item.whole_map]


def _words(name: str, value: str | Sequence[str]) -> tuple[str, ...]:
    """One word or several as a tuple."""
    words = (value,) if isinstance(value, str) else value
    if not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
        raise ValueError(f'{name} = {value!r} should be a word or several')
    return tuple(words)


def _list(words: Iterable[str], last: str = 'and') -> str:
    """Words as text.

    >>> _list(['a', 'b', 'c'])
    'a, b and c'
    """
    *first, end = words
    return f'{", ".join(first)} {last} {end}'
