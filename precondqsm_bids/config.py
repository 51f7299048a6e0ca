"""The settings of one run of the app: a frozen value, written as TOML beside each log.

Only the standard library, so that ``--help`` and ``--version`` answer at once.
"""

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

REG_RULES = ('auto', 'l-curve', 'risk')
"""How the regularisation weight may be chosen."""
PRIORS = ('contrast', 'tissue', 'r2prime-by-tissue', 'r2prime', 'shape')
"""What the first estimate may be made of, besides ``map:FILE``."""
R2_WORDS = ('median', 'map', 'literature')
"""Where R2 may come from, besides a number."""
METHOD = {'method': True}
"""Marks the fields that change the maps themselves: these travel into the sidecars."""


@dataclass(frozen=True)
class Settings:
    """Everything that the command line decides.

    Attributes
    ----------
    bids_dir, output_dir : Path
        The dataset and the folder of the derivatives.
    participant_label, session_label : tuple of str
        Labels without ``sub-`` and ``ses-``; empty means all.
    bids_filters : dict or None
        ``{query: {entity: value}}``; a value of None asks that the entity is absent.
    derivatives : dict
        ``{name: folder}`` of derivative datasets that may hold labels.
    mem_gb : float
        Memory that may be used at once, GiB.
    node_timeout : float or None
        Minutes after which a node that still runs is ended.
    submit : str or None
        Batch system that the participants are submitted to, one job each: ``slurm``.
    submit_limit : int or None
        Jobs that may run at once.
    submit_time : str or None
        Time limit of each job, as the batch system writes it.
    field_strength : float or None
        T; used only where the metadata have no ``MagneticFieldStrength`` or an absurd one.
    b0_dir : tuple of float or None
        Direction of B0 along the voxel axes; None takes that of the header.
    mask : str
        Region of interest: ``auto`` (the object), ``derivatives`` or a file.
    mask_erosion : float
        Depth that is taken off the region of interest, mm.
    prior : tuple of str
        What the first estimate is the sum of: ``contrast``, ``tissue``, ``r2prime-by-tissue``,
        ``r2prime``, ``map:FILE`` (a susceptibility map in ppm); or ``shape`` alone, nothing
        inside.
    prior_fit : str
        How the field chooses the coefficients of ``r2prime`` and ``map:FILE``: ``auto`` (not at
        all for ``r2prime`` alone, else ``global``), ``none``, ``global`` or ``clusters``.
    contrasts : tuple of str
        Suffixes of further images whose cells ``contrast`` has too, such as ``T1w``.
    write_prior_labels : bool
        Whether the finest parcels of the prior are written.
    r2 : float or str
        1/s; or ``median`` (the median R2* of the region itself), ``map`` (an R2map or T2map of
        the run) or ``literature`` (by tissue class).
    phase_sign : int or None
        Sign of the stored phase, 1 or -1; None tells it by the field of the object's shape, and
        assumes what is usual where that does not decide.
    reg_weight : float or None
        mm; None leaves it to ``reg_rule``.
    reg_rule : str
        ``l-curve`` takes the corner of the L-curve, ``risk`` the least expected error, ``auto``
        the first in the conventional and the second in the preconditioned arm.
    """

    bids_dir: Path
    output_dir: Path
    analysis_level: str = 'participant'
    participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    bids_filters: dict[str, dict[str, Any]] | None = None
    derivatives: dict[str, Path] = field(default_factory=dict)
    bids_database_dir: Path | None = None
    skip_bids_validation: bool = False
    work_dir: Path | None = None
    clean_workdir: bool = False
    nprocs: int = 1
    omp_nthreads: int = 1
    mem_gb: float = 4.0
    node_timeout: float | None = None
    use_plugin: Path | None = None
    submit: str | None = None
    submit_limit: int | None = None
    submit_time: str | None = None
    write_graph: bool = False
    resource_monitor: bool = False
    stop_on_first_crash: bool = False
    boilerplate_only: bool = False
    reports_only: bool = False
    dry_run: bool = False
    verbose: int = 0
    field_strength: float | None = field(default=None, metadata=METHOD)
    phase_sign: int | None = field(default=None, metadata=METHOD)
    b0_dir: tuple[float, ...] | None = field(default=None, metadata=METHOD)
    mask: str = field(default='auto', metadata=METHOD)
    mask_erosion: float = field(default=0.0, metadata=METHOD)
    prior: tuple[str, ...] = field(default=('contrast',), metadata=METHOD)
    prior_fit: str = field(default='auto', metadata=METHOD)
    contrasts: tuple[str, ...] = field(default=(), metadata=METHOD)
    r2: float | str = field(default='median', metadata=METHOD)
    shape: bool = field(default=True, metadata=METHOD)
    conventional: bool = field(default=True, metadata=METHOD)
    pdf_iterations: int = field(default=30, metadata=METHOD)
    reg_weight: float | None = field(default=None, metadata=METHOD)
    reg_rule: str = field(default='auto', metadata=METHOD)
    reference: str = field(default='roi-mean', metadata=METHOD)
    write_prior_labels: bool = False

    @property
    def needs_tissue(self) -> bool:
        """Whether the method reads tissue classes.

        >>> Settings(Path('in'), Path('out'), prior=('contrast', 'tissue')).needs_tissue
        True
        """
        return self.r2 == 'literature' or any('tissue' in name for name in self.words)

    @property
    def r2star_priors(self) -> tuple[str, ...]:
        """The priors that are made of R2*, which a single echo does not tell.

        >>> Settings(Path('in'), Path('out'), prior=('tissue', 'r2prime')).r2star_priors
        ('r2prime',)
        """
        return tuple(name for name in self.words if name.startswith('r2prime'))

    @property
    def words(self) -> tuple[str, ...]:
        """The priors that are no file."""
        return tuple(name for name in self.prior if not name.startswith('map:'))

    @property
    def prior_maps(self) -> tuple[Path, ...]:
        """The files among the priors.

        >>> Settings(Path('in'), Path('out'), prior=('map:/a.nii',)).prior_maps[0].name
        'a.nii'
        """
        return tuple(Path(name[4:]) for name in self.prior if name.startswith('map:'))

    @property
    def method(self) -> dict[str, Any]:
        """The settings of the method alone, by name.

        >>> Settings(Path('in'), Path('out'), r2=12.5).method['r2']
        12.5
        """
        return {item.name: getattr(self, item.name) for item in fields(self) if item.metadata}

    def to_toml(self) -> str:
        """The settings as a TOML document; what is None is left out.

        ``bids_filters`` is a string of JSON in it: TOML has no null, which the filters need.

        >>> print(Settings(Path('in'), Path('out')).to_toml().splitlines()[0])
        bids_dir = "in"
        """
        lines, tables = [], []
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == 'bids_filters' and value is not None:
                value = json.dumps(value)
            if isinstance(value, dict):
                pairs = [f'{_string(key)} = {_value(val)}' for key, val in value.items()]
                tables += ['', f'[{item.name}]', *pairs] if pairs else []
            elif value is not None:
                lines.append(f'{item.name} = {_value(value)}')
        return '\n'.join([*lines, *tables]) + '\n'

    @classmethod
    def from_toml(cls, text: str) -> 'Settings':
        """The settings that :meth:`to_toml` wrote.

        Raises
        ------
        ValueError
            If the text is no TOML, has a key that is no setting or a value of another type, or
            if one of the two folders is missing.
        """
        values = parse_toml(text)
        if missing := [name for name in ('bids_dir', 'output_dir') if name not in values]:
            raise ValueError(f'the settings lack {", ".join(missing)}')
        return cls(**values)


def resolve_prior_fit(prior: Sequence[str], prior_fit: str) -> str | None:
    """How whole maps among the priors are fitted: ``global``, ``clusters``, or None: not at all.

    Parameters
    ----------
    prior : sequence of str
        Words of :data:`PRIORS` and ``map:FILE``.
    prior_fit : str
        ``auto``, ``none``, ``global`` or ``clusters``.

    Raises
    ------
    ValueError
        The two do not go together; the message says what does.

    >>> resolve_prior_fit(['r2prime'], 'auto'), resolve_prior_fit(['r2prime', 'tissue'], 'auto')
    (None, 'global')
    """
    if not prior:
        raise ValueError(f'--prior takes one or several of {", ".join(PRIORS)} and map:FILE')
    for name in prior:
        if name not in PRIORS and (not name.startswith('map:') or name == 'map:'):
            raise ValueError(f'--prior {name} is not one of {", ".join(PRIORS)} and map:FILE')
        if prior.count(name) > 1:
            raise ValueError(f'--prior has {name} twice: once is enough')
    if 'shape' in prior and len(prior) > 1:
        others = ' '.join(name for name in prior if name != 'shape')
        raise ValueError(
            f'--prior shape is the shape alone; with {others} it is in the prior unless there is '
            '--no-shape: leave out shape'
        )
    if prior_fit not in ('auto', 'none', 'global', 'clusters'):
        raise ValueError(f'--prior-fit {prior_fit} is none of auto, none, global and clusters')
    whole = [name for name in prior if name == 'r2prime' or name.startswith('map:')]
    wrong = f'--prior {" ".join(prior)} does not go with --prior-fit {prior_fit}: '
    if prior_fit in ('global', 'clusters') and not whole:
        raise ValueError(
            f'{wrong}that is for r2prime and map:FILE; contrast, tissue and r2prime-by-tissue '
            'have a coefficient for each of their parcels (auto)'
        )
    if prior_fit == 'none' and list(prior) != ['shape'] and (not whole or len(prior) > 1):
        raise ValueError(
            f'{wrong}only r2prime or one map:FILE, alone, can be taken as it is, without a fit'
        )
    if prior_fit == 'none' or (prior_fit == 'auto' and list(prior) in (['r2prime'], ['shape'])):
        return None
    return 'clusters' if prior_fit == 'clusters' else 'global'


def parse_toml(text: str) -> dict[str, Any]:
    """Values for some or all fields of :class:`Settings` from a TOML document.

    Raises
    ------
    ValueError
        If the text is no TOML, has a key that is no setting, or a value of another type.

    Examples
    --------
    >>> parse_toml('nprocs = 4\\nparticipant_label = ["01"]')
    {'nprocs': 4, 'participant_label': ('01',)}
    >>> parse_toml('n_procs = 4')
    Traceback (most recent call last):
    ...
    ValueError: unknown setting n_procs; the settings are analysis_level, b0_dir, ...
    """
    raw = tomllib.loads(text)
    kinds = get_type_hints(Settings)
    if unknown := sorted(set(raw) - set(kinds)):
        known = ', '.join(sorted(kinds))
        raise ValueError(f'unknown setting {", ".join(unknown)}; the settings are {known}')
    return {name: _convert(name, value, kinds[name]) for name, value in raw.items()}


def _convert(name: str, value: Any, kind: Any) -> Any:
    """A TOML value as the type of its setting; a float may be written as an integer."""
    if name == 'bids_filters' and isinstance(value, str):
        return json.loads(value)
    if name == 'derivatives' and isinstance(value, dict):
        return {key: Path(path) for key, path in value.items()}
    if name == 'prior' and isinstance(value, str):
        return tuple(value.split())
    if kind == float | str and (isinstance(value, str) or type(value) in (int, float)):
        return value if isinstance(value, str) else float(value)
    if kind == tuple[str, ...] and isinstance(value, list):
        if all(isinstance(item, str) for item in value):
            return tuple(value)
    elif kind == tuple[float, ...] | None and isinstance(value, list):
        if all(type(item) in (int, float) for item in value):
            return tuple(float(item) for item in value)
    elif kind in (Path, Path | None) and isinstance(value, str):
        return Path(value)
    elif kind in (float, float | None) and type(value) in (int, float):
        return float(value)
    elif type(value) is kind or any(
        kind == some | None and type(value) is some for some in (int, str)
    ):
        return value
    wanted = kind.__name__ if isinstance(kind, type) else kind
    raise ValueError(f'setting {name} = {value!r} should be of type {wanted}')


def _value(value: Any) -> str:
    """One TOML value."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f'[{", ".join(_value(item) for item in value)}]'
    if isinstance(value, str | Path):
        return _string(str(value))
    return repr(value)


def _string(text: str) -> str:
    """A TOML basic string: JSON's escapes are TOML's, apart from DEL."""
    return json.dumps(text, ensure_ascii=False).replace('\x7f', '\\u007F')
