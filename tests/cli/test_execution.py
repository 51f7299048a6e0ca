"""Files that name a plugin, and what is imported when."""

import subprocess
import sys

from precondqsm_bids.cli.execution import Plugin, read_plugin


def test_plugin_file(tmp_path):
    path = tmp_path / 'plugin.yml'
    path.write_text('plugin: SLURM\nplugin_args: {sbatch_args: --mem=4G}\n')
    assert read_plugin(path) == Plugin('SLURM', {'sbatch_args': '--mem=4G'})


def test_without_a_file_the_nodes_run_here():
    assert read_plugin(None) == Plugin('MultiProc', {})
    assert read_plugin(None).is_local


def test_what_draws_is_not_imported_before_the_first_nodes_run():
    program = """
import sys
from precondqsm_bids.cli.execution import prepare
import precondqsm_bids.cli.run, precondqsm_bids.workflows.base
assert 'matplotlib.figure' not in sys.modules
prepare()
assert 'matplotlib.figure' in sys.modules
"""
    subprocess.run([sys.executable, '-c', program], check=True)
