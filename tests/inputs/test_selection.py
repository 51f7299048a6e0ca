"""Filter files: what they choose, and what is wrong with them."""

import pytest
from inputs import find

from precondqsm_bids.inputs.run import InputError
from precondqsm_bids.inputs.selection import read_filters


@pytest.mark.parametrize(
    'wanted, labels',
    [
        ({'acquisition': 'hi'}, ['sub-01_acq-hi_run-01', 'sub-01_acq-hi_run-02']),
        ({'acquisition': None}, ['sub-01']),
        ({'acquisition': '*'}, ['sub-01_acq-hi_run-01', 'sub-01_acq-hi_run-02']),
        ({'run': 2}, ['sub-01_acq-hi_run-02']),
        ({'run': ['1', None]}, ['sub-01', 'sub-01_acq-hi_run-01']),
        ({'acquisition': 'h'}, []),
    ],
)
def test_filters(dataset, tmp_path, wanted, labels):
    for stem in ('sub-01', 'sub-01_acq-hi_run-01', 'sub-01_acq-hi_run-02'):
        dataset.add_run(stem, echo_times=(0.004, 0.008))
    filters = read_filters(dataset.write_json(tmp_path / 'filters.json', {'megre': wanted}))
    runs, problems = find(dataset.root, filters=filters)
    assert [run.label for run in runs] == labels
    assert [problem.kind for problem in problems] == ['skipped']
    assert f'{4 * (3 - len(labels))} images' in problems[0].message


@pytest.mark.parametrize(
    'content, message',
    [
        ('{"megre": {"acq": "hi"}}', 'unknown entity "acq"'),
        ('{"bold": {}}', 'unknown query "bold"; known: megre, dseg, mask'),
        ('{"megre": "hi"}', 'filters look like'),
        ('[]', 'filters look like'),
        ('{"megre": {"run": {"a": 1}}}', 'should be a label'),
        ('{"megre": {"run": true}}', 'should be a label'),
        ('{', 'not valid JSON'),
        (None, 'cannot read'),
    ],
)
def test_bad_filters_are_refused(tmp_path, content, message):
    path = tmp_path / 'filters.json'
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_filters(path)
