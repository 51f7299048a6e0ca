"""Trees of derivatives as the participant level leaves them, written by hand."""

import csv
import json

import pytest

MAP_FILES = ('R2starmap', 'desc-roi_mask', 'desc-prior_Chimap')


class Derivatives:
    """A dataset and its derivatives, with runs that are added one by one."""

    def __init__(self, root):
        self.raw, self.out = root / 'raw', root / 'out'
        for folder in (self.raw, self.out):
            folder.mkdir(parents=True)
            (folder / 'dataset_description.json').write_text(
                '{"Name": "x", "BIDSVersion": "1.10.0", "DatasetType": "%s"}'
                % ('raw' if folder == self.raw else 'derivative')
            )

    def folder(self, root, name):
        """Folder of the images of a run, made if needed."""
        parts = [part for part in name.split('_') if part.startswith(('sub-', 'ses-'))]
        path = root.joinpath(*parts, 'anat')
        path.mkdir(parents=True, exist_ok=True)
        return path

    def add_raw(self, name, suffix='MEGRE'):
        """Images of the dataset."""
        for echo in (1, 2):
            for part in ('mag', 'phase'):
                file = f'{name}_echo-{echo}_part-{part}_{suffix}.nii.gz'
                (self.folder(self.raw, name) / file).touch()

    def add(self, name, *, regions=None, conventional=True, **stages):
        """Outputs of a run; ``stages`` go into the record, ``regions`` into the table."""
        self.add_raw(name)
        record = {
            'echo_fit': {'noise_sd': 1.0, 'echo_times': [0.004, 0.008], 'offset_model': 'quartic'},
            'shape_mask': {'roi_voxels': 1000},
            'prior_fit': {'priors': {'contrast': {'parcels': 7}}},
            'dipole_inversion': {'reg_weight': 0.1, 'rule': 'risk', 'warnings': []},
            'recombination': {'reference': 'none', 'reference_value': None},
            'comparison': {'explained': 0.5, 'warnings': []},
        }
        for stage, numbers in stages.items():
            record[stage] = record.get(stage, {}) | numbers
        self.write(name, 'desc-precond_Chimap.json', {
            'Parameters': record, 'Settings': {'conventional': conventional},
        })  # fmt: skip
        self.write(name, 'desc-precond_Chimap.nii.gz', '')
        if conventional:
            numbers = {'conventional_dipole_inversion': {'reg_weight': 0.2}}
            self.write(name, 'desc-conventional_Chimap.json', {'Parameters': numbers})
            self.write(name, 'desc-conventional_Chimap.nii.gz', '')
        for file in MAP_FILES:
            self.write(name, f'{file}.nii.gz', '')
        if regions:
            columns = list(dict.fromkeys(key for row in regions for key in row))
            lines = [columns, *([str(row.get(key, 'n/a')) for key in columns] for row in regions)]
            self.write(name, 'desc-rois_values.tsv', '\n'.join(map('\t'.join, lines)) + '\n')
            described = {key: {'Description': f'what {key} is', 'Units': 'u'} for key in columns}
            self.write(name, 'desc-rois_values.json', described | {'Sources': ['bids:raw:x']})

    def write(self, name, file, content):
        """One output file of a run."""
        text = content if isinstance(content, str) else json.dumps(content)
        path = self.folder(self.out, name) / f'{name}_{file}'
        path.write_text(text)
        return path

    def about(self, subject, runs, crash_files=()):
        """What the participant level keeps beside the figures; without runs, of none."""
        path = self.out / f'sub-{subject}' / 'figures' / f'sub-{subject}_desc-about_report.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        crashes = {'crash_files': {str(file): 'y <b>' for file in crash_files}}
        path.write_text(json.dumps({'runs': dict.fromkeys(runs, crashes)} if runs else crashes))
        return path

    def crash(self, subject):
        """A crash file of a participant."""
        path = self.out / f'sub-{subject}' / 'log' / 'now' / 'crash-1.txt'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('Node: x\nValueError: y\n')
        return path

    def table(self, name):
        """A table of the group."""
        with (self.out / f'group_{name}.tsv').open(newline='') as stream:
            return list(csv.DictReader(stream, delimiter='\t'))


@pytest.fixture
def derivatives(tmp_path):
    """A dataset and its derivatives, both empty."""
    return Derivatives(tmp_path)
