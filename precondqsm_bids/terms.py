"""The words of the prior: what each is, needs and gives. Only the standard library."""

from pathlib import Path
from typing import NamedTuple

MAP = 'map:'
"""Beginning of a term that is a file: ``map:FILE``."""
PORT = 'prior_map'
"""``map:prior_map`` is a map that is not named here: an input of the workflow, or of that name
among the companions' ``maps``."""
PUBLISHED = ('r2prime',)
"""The prior as it was published: one map, not fitted unless ``prior_fit`` asks for it."""


class Term(NamedTuple):
    """One word of the prior.

    Attributes
    ----------
    help : str
        The term in words.
    describes_interior : bool
        Whether it has parcels enough to describe what is inside. Then the fit has free voxels and
        a tissue shift, PDF goes on from it, and outliers of the residual are clipped.
    whole_map : bool
        Whether it is one map, fitted as ``prior_fit`` says; others have one coefficient a parcel.
    needs_r2star, needs_tissue : bool
        Whether it is made of R2*, which takes two echoes, and of tissue classes.
    inside : bool
        Whether it says anything of the inside of the object; one that does not stands alone.
    unit : str
        Of its coefficients: ``ppm`` of constants, ``1`` of factors on a map.
    """

    help: str
    describes_interior: bool = False
    whole_map: bool = False
    needs_r2star: bool = False
    needs_tissue: bool = False
    inside: bool = True
    unit: str = '1'

    @property
    def is_theory(self) -> bool:
        """Whether it is R2' as a whole, whose coefficient implies another relaxivity."""
        return self.whole_map and self.needs_r2star


TERMS = {
    'contrast': Term(
        'one constant for each cell of the joint histogram of R2* and magnitude (of the '
        'magnitude, where there is one echo) in windows of space that overlap',
        describes_interior=True,
        unit='ppm',
    ),
    'tissue': Term(
        'one constant for each tissue class',
        describes_interior=True,
        needs_tissue=True,
        unit='ppm',
    ),
    'r2prime-by-tissue': Term(
        "R2' with one coefficient for each class", needs_r2star=True, needs_tissue=True
    ),
    'r2prime': Term("R2' by static-dephasing theory", whole_map=True, needs_r2star=True),
    f'{MAP}FILE': Term('a susceptibility map in ppm', whole_map=True),
    'shape': Term('the shape of the object alone, nothing inside', inside=False),
}
"""What the prior may be the sum of."""


def row(word: str) -> str:
    """The key of :data:`TERMS` for a word of the prior, which may be ``map:FILE``."""
    return f'{MAP}FILE' if word.startswith(MAP) else word


def term(word: str) -> Term:
    """What is known of a word of the prior: of one of another version only the word."""
    return TERMS.get(row(word), Term(word))


def short(word: str) -> str:
    """A word of the prior, of a given map only the name of its file.

    >>> short('map:/data/chi.nii'), short('r2prime')
    ('map:chi.nii', 'r2prime')
    """
    return f'{MAP}{Path(word.removeprefix(MAP)).name}' if word.startswith(MAP) else word
