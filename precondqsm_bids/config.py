"""The settings of one run of the app: a frozen value, written as TOML beside each log.

Only the standard library, so that ``--help`` and ``--version`` answer at once.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from precondqsm_bids.method import Method


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
    brain_model : Path or None
        Weights of SynthStrip, which then finds the brain.
    stop_after : str or None
        ``flattening``: the flattened field and what comes before it is written, and no map.
    resume_with : Path or None
        A susceptibility map that another program made of the flattened field, or a folder of such
        maps, which is recombined with the prior.
    method : Method
        Everything else that changes the maps.
    write_prior_labels : bool
        Whether the finest parcels of the prior are written.
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
    report_self_contained: bool = False
    dry_run: bool = False
    stop_after: str | None = None
    resume_with: Path | None = None
    verbose: int = 0
    write_prior_labels: bool = False
    brain_model: Path | None = None
    method: Method = field(default_factory=Method)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> 'Settings':
        """The settings of which some have these values, the fields of the method among them.

        >>> Settings.from_values({'bids_dir': 'in', 'output_dir': 'out', 'r2': 12.5}).method.r2
        12.5
        """
        own = dict(values)
        of_method = {item.name: own.pop(item.name) for item in fields(Method) if item.name in own}
        return cls(**own, method=Method(**of_method))

    def to_toml(self) -> str:
        """The settings as a TOML document; what is None is left out.

        ``bids_filters`` is a string of JSON in it: TOML has no null, which the filters need.

        >>> print(Settings(Path('in'), Path('out')).to_toml().splitlines()[0])
        bids_dir = "in"
        """
        lines, tables = [], []
        values = vars(self) | vars(self.method)
        del values['method']
        for name, value in values.items():
            if name == 'bids_filters' and value is not None:
                value = json.dumps(value)
            if isinstance(value, dict):
                pairs = [f'{_string(key)} = {_value(val)}' for key, val in value.items()]
                tables += ['', f'[{name}]', *pairs] if pairs else []
            elif value is not None:
                lines.append(f'{name} = {_value(value)}')
        return '\n'.join([*lines, *tables]) + '\n'

    @classmethod
    def from_toml(cls, text: str) -> 'Settings':
        """The settings that :meth:`to_toml` wrote.

        Raises
        ------
        ValueError
            If the text is not TOML, has a key that is not a setting or a value of another type, or
            if one of the two folders is missing.
        """
        values = parse_toml(text)
        if missing := [name for name in ('bids_dir', 'output_dir') if name not in values]:
            raise ValueError(f'the settings lack {", ".join(missing)}')
        return cls.from_values(values)


def parse_toml(text: str) -> dict[str, Any]:
    """Values for some or all fields of the settings and their method from a TOML document.

    Raises
    ------
    ValueError
        If the text is not TOML, has a key that is not a setting, or a value of another type.

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
    kinds = get_type_hints(Settings) | get_type_hints(Method)
    del kinds['method']
    if unknown := sorted(set(raw) - set(kinds)):
        known = ', '.join(sorted(kinds))
        raise ValueError(f'unknown setting {", ".join(unknown)}; the settings are {known}')
    return {name: _convert(name, value, kinds[name]) for name, value in raw.items()}


PREFIX = {'participant_label': 'sub-', 'session_label': 'ses-'}
"""What a label may begin with."""


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
            return tuple(item.removeprefix(PREFIX.get(name, '')) for item in value)
    elif kind == tuple[float, ...] | None and isinstance(value, list):
        if all(type(item) in (int, float) for item in value):
            return tuple(float(item) for item in value)
    elif kind in (Path, Path | None) and isinstance(value, str) and value:
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
