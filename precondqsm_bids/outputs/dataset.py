"""The dataset of the derivatives: its description and README, and URIs of what was read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError
from importlib.metadata import metadata as package_metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from precondqsm_bids import __version__
from precondqsm_bids.outputs.files import write_bidsignore, write_shared
from precondqsm_bids.revision import full_version

NAME = 'precondqsm_bids'
BIDS_VERSION = '1.10.0'

README = f"""Derivatives of {NAME}: preconditioned quantitative susceptibility mapping.

sub-*.html    the report: look at it first
anat/         susceptibility (Chimap, ppm), R2*, T2*, S0, R2', masks, values per labelled region
fmap/         total, flattened and local field (Hz) and the magnitude
figures/      what the report shows
logs/         settings and log of every run of the program

desc-precond_Chimap is the result; desc-conventional is the same inversion without a prior,
desc-consensus (with --preset consensus) the choice of the QSM consensus, and
desc-prior plus desc-residual, minus the reference, is desc-precond; desc-precondstd is its
standard deviation, and desc-support the part of each value that the field decided. The JSON
beside each map says how it was made, with every number.
"""


def bids_uri(path: str | Path, bids_dir: str | Path, derivatives: Mapping[str, Any]) -> str:
    """A BIDS URI, whose dataset name `write_dataset_description` lists under DatasetLinks.

    A file in none of the datasets gets a file URI.

    >>> bids_uri('/data/sub-1/anat/x.nii', '/data', {})
    'bids:raw:sub-1/anat/x.nii'
    """
    absolute = Path(path).absolute()
    # The folder may be given through a link; the file itself may be one (git-annex) and stays it.
    resolved = absolute.parent.resolve() / absolute.name
    # Derivatives first: they may live inside the raw dataset.
    for name, root in [*derivatives.items(), ('raw', bids_dir)]:
        for candidate, folder in (
            (absolute, Path(root).absolute()),
            (resolved, Path(root).resolve()),
        ):
            if candidate.is_relative_to(folder):
                return f'bids:{name}:{quote(candidate.relative_to(folder).as_posix())}'
    return absolute.as_uri()


def fieldmap_stem(label: str) -> str:
    """A run's label as that of its fieldmaps: what theirs may not have is in acq, to stay unique.

    >>> fieldmap_stem('sub-01_ses-a_acq-x_rec-y_run-1')
    'sub-01_ses-a_acq-xrecy_run-1'
    """
    pairs = dict(pair.split('-', 1) for pair in label.split('_'))
    own = ('sub', 'ses', 'acq', 'run', 'chunk')
    folded = ''.join(f'{key}{value}' for key, value in pairs.items() if key not in own)
    if folded:
        pairs['acq'] = pairs.get('acq', '') + folded
    return '_'.join(f'{key}-{pairs[key]}' for key in own if key in pairs)


def write_dataset_description(
    output_dir: str | Path,
    bids_dir: str | Path,
    derivatives: Mapping[str, str | Path] | None = None,
) -> Path:
    """Write ``dataset_description.json``, ``.bidsignore`` and a README of the derivatives.

    Processes may do this at the same time; a file that another user put there is good enough.
    ``derivatives`` are other datasets that were read, by the names that BIDS URIs use for them;
    those of earlier calls stay. Returns the path of the description; raises ValueError where a
    name would be of two datasets.
    """
    output_dir, bids_dir = Path(output_dir).absolute(), Path(bids_dir).absolute()
    raw = _described(bids_dir)
    links = dataset_links(output_dir, bids_dir, derivatives or {})
    description = {
        'Name': f'{NAME}: preconditioned quantitative susceptibility mapping',
        'BIDSVersion': BIDS_VERSION,
        'DatasetType': 'derivative',
        'GeneratedBy': [{'Name': NAME, 'Version': full_version()} | _code_url() | _container()],
        'SourceDatasets': [
            {'DOI': raw['DatasetDOI']} if raw.get('DatasetDOI') else {'URL': links['raw']}
        ],
        'DatasetLinks': links,
        'HowToAcknowledge': (
            f'Cite {NAME} {__version__} and the publications that the methods section of each '
            f"participant's report names, besides the source dataset."
        ),
    }
    # Licence and authors of derived data follow from the raw data; without them we know none.
    description |= {key: raw[key] for key in ('License', 'Authors') if raw.get(key)}

    output_dir.mkdir(parents=True, exist_ok=True)
    if not any(output_dir.glob('README*')):
        write_shared(output_dir / 'README', README)
    write_bidsignore(output_dir)
    return write_shared(
        output_dir / 'dataset_description.json', json.dumps(description, indent=2) + '\n'
    )


def dataset_links(
    output_dir: Path, bids_dir: Path, derivatives: Mapping[str, Any]
) -> dict[str, str]:
    """Names of the datasets that sidecars refer to and where they are, of earlier calls too.

    Raises ValueError if a name is that of another dataset in an earlier call. One that is no
    longer where it was has moved.
    """
    output_dir = output_dir.absolute()
    links = _described(output_dir).get('DatasetLinks')
    links = links if isinstance(links, dict) else {}
    for name, root in {'raw': bids_dir, **derivatives}.items():
        link = _link(Path(root).absolute(), output_dir)
        before = _target(str(links.get(name, link)), output_dir)
        if before.exists() and before.resolve() != Path(root).resolve():
            way_out = 'another output folder' if name == 'raw' else f'-d NAME={root}, a new name'
            raise ValueError(
                f'"{name}" is {before} in sidecars of {output_dir}, and cannot be {root} as well: '
                f'give {way_out}'
            )
        links[name] = link
    return links


def whose_dataset(folder: Path) -> str:
    """What a folder is, if it is a dataset that this program did not make; else an empty string.

    Writing into it would put the description of these derivatives in the place of its own.
    """
    content = _described(folder)
    made_by = content.get('GeneratedBy')
    made_by = made_by if isinstance(made_by, list) else [made_by]
    names = [str(step['Name']) for step in made_by if isinstance(step, dict) and 'Name' in step]
    if not content or NAME in names:
        return ''
    called = f'the dataset "{content.get("Name", folder.name)}"'
    return f'{called} of {", ".join(names)}' if names else called


def _described(folder: Path) -> dict[str, Any]:
    """The description of a dataset, empty where there is none that can be read."""
    try:
        content = json.loads((folder / 'dataset_description.json').read_text('utf-8-sig'))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _target(link: str, start: Path) -> Path:
    """What a relative link or a file URI leads to.

    >>> _target('..', Path('/a/out')), _target('file:///a/b%20c', Path('/out'))
    (PosixPath('/a/out/..'), PosixPath('/a/b c'))
    """
    return Path(unquote(urlsplit(link).path)) if link.startswith('file:') else start / link


def _link(target: Path, start: Path) -> str:
    """Relative where the two travel together, else a URI."""
    if start.is_relative_to(target) or target.is_relative_to(start):
        return Path(os.path.relpath(target, start)).as_posix()
    return target.as_uri()


def _code_url() -> dict[str, str]:
    """The project's page as the installed package declares it (``url`` in setup.cfg)."""
    with suppress(PackageNotFoundError):
        declared = package_metadata(NAME)
        if 'Home-page' in declared:
            return {'CodeURL': declared['Home-page']}
    return {}


def _container() -> dict[str, dict[str, str]]:
    if image := os.environ.get('APPTAINER_CONTAINER') or os.environ.get('SINGULARITY_CONTAINER'):
        return {'Container': {'Type': 'singularity', 'URI': Path(image).absolute().as_uri()}}
    if tag := os.environ.get('PRECONDQSM_BIDS_DOCKER_TAG'):
        return {'Container': {'Type': 'docker', 'Tag': tag}}
    return {}
