"""Running the graph: the plugin, its resources and limits, and what becomes of its jobs."""

import math
import os
import shutil
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from precondqsm_bids.cli.call import Call, Found
from precondqsm_bids.cli.environment import before_sigterm_ends, python_command
from precondqsm_bids.cli.progress import Progress, Stage, say

NODE_JOB = 'precondqsm_bids.cli.node_job'
"""Module that runs one node, in a job of a batch system."""

GRAPH_PLUGINS = ('CondorDAGMan', 'PBSGraph', 'SGEGraph', 'SLURMGraph')
"""These submit all jobs and return at once with success, whatever fails later."""


class Plugin(NamedTuple):
    """A plugin of Nipype by its name, and the ``plugin_args`` of the user."""

    name: str = 'MultiProc'
    args: Mapping[str, Any] = {}

    @property
    def is_local(self) -> bool:
        """True if all nodes run on this machine, within the limits of this process."""
        return self.name == 'MultiProc'


def read_plugin(path: Path | None) -> Plugin:
    """The plugin of a YAML file such as ``{plugin: SLURM, plugin_args: {sbatch_args: ...}}``.

    Raises InputError if it is not such a file, or the plugin does not wait for its jobs.
    """
    if path is None:
        return Plugin()
    import yaml
    from nipype.pipeline import plugins

    from precondqsm_bids.inputs.run import InputError

    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f'{path} is not a readable YAML file: {error}') from error
    if not isinstance(content, dict) or not isinstance(content.get('plugin'), str):
        raise InputError(f'{path} should name a plugin: "plugin: SLURM"')
    if unknown := sorted(set(content) - {'plugin', 'plugin_args'}):
        raise InputError(f'{path}: unknown key {", ".join(unknown)}; known: plugin, plugin_args')
    plugin = Plugin(content['plugin'], content.get('plugin_args', {}))
    if not isinstance(plugin.args, dict):
        raise InputError(f'{path}: plugin_args should be a mapping')
    if plugin.name in GRAPH_PLUGINS:
        raise InputError(
            f'{path}: {plugin.name} submits the jobs and returns at once with success, whatever '
            f'fails later; use {plugin.name.removesuffix("Graph").replace("DAGMan", "")} or '
            'MultiProc'
        )
    known = {name.removesuffix('Plugin') for name in dir(plugins) if name.endswith('Plugin')}
    if plugin.name not in known:
        names = ', '.join(sorted(known - set(GRAPH_PLUGINS)))
        raise InputError(f'{path}: unknown plugin {plugin.name}; known: {names}')
    return plugin


def execute(
    call: Call, workflow: Any, found: Found, plugin: Plugin, finished: Callable[[str], None]
) -> str:
    """Run the workflow, ``finished`` with each participant that is through; an error's traceback.

    Participants follow each other: as many are in progress as there are threads for.
    """
    from precondqsm_bids.workflows.base import node_name

    settings = call.settings
    nodes = _nodes(workflow)
    runs = {node_name(run.label): run for run in found.runs}
    stages = {
        f'{workflow.name}.{name}': _stage(name, node, call, runs) for name, node in nodes.items()
    }
    subjects = {node_name(f'participant-{name}'): name for name in found.subjects}
    progress = Progress(stages)

    def tick() -> None:
        progress.tick()
        prepare()

    plugin_args = {
        # Threads of a stage are idle at times: one stage of one thread has room beside it.
        'n_procs': settings.nprocs + (settings.omp_nthreads > 1),
        'memory_gb': settings.mem_gb,
        'raise_insufficient': False,
        'node_timeout': 60 * settings.node_timeout if settings.node_timeout else None,
        'status_callback': progress.follow,
        'tick': tick,
        'at_once': max(1, settings.nprocs // settings.omp_nthreads),
        'finished': lambda name: finished(subjects[name]),
        **plugin.args,
    }
    for name, node in nodes.items():
        if node.mem_gb > settings.mem_gb:
            say(
                f'warning: {name} may need {node.mem_gb:.3g} GB of memory, and '
                f'{settings.mem_gb:.3g} GB are allowed (--mem)'
            )
    runner, cancelling = _supervised(call, plugin.name, plugin_args)
    error = ''
    try:
        with cancelling:
            workflow.run(plugin=runner, plugin_args=plugin_args)
    except Exception:
        error = traceback.format_exc()
    monitored = Path(workflow.base_dir) / workflow.name / 'resource_monitor.json'
    if settings.resource_monitor and monitored.exists():
        shutil.copy(monitored, call.log_dir)
    return error


@cache
def prepare() -> None:
    """Import and compile what the last nodes and the report take.

    The plugin calls it for the first time while the first nodes run, which need none of it, and
    those that follow are forked from this process.
    """
    from precondqsm_bids.outputs import charts, slices  # noqa: F401
    from precondqsm_bids.outputs.page import compile_report

    compile_report()


def _nodes(workflow: Any) -> dict[str, Any]:
    """The nodes that do something, by their names below the workflow."""
    from nipype.interfaces.utility import IdentityInterface

    nodes = {name: workflow.get_node(name) for name in workflow.list_node_names()}
    idle = {n for n, node in nodes.items() if isinstance(node.interface, IdentityInterface)}
    return {name: node for name, node in nodes.items() if name not in idle}


def _stage(name: str, node: Any, call: Call, runs: Mapping[str, Any]) -> Stage:
    """Stage that a node counts as; all that write are one unless it should be verbose."""
    run = runs[name.split('.')[1]]
    writes = '.outputs_wf.' in name or node.run_without_submitting
    stage = 'outputs' if writes and not call.settings.verbose else name.rpartition('.')[2]
    return Stage(run.label, stage, math.prod(run.matrix))


def _supervised(
    call: Call, name: str, plugin_args: dict[str, Any]
) -> tuple[Any, AbstractContextManager[None]]:
    """Our plugin in the place of Nipype's of that name, and what cancels its jobs on SIGTERM."""
    from precondqsm_bids.workflows.plugins import BATCH_PLUGINS, SupervisedMultiProcPlugin

    if name == 'MultiProc':
        return SupervisedMultiProcPlugin(plugin_args), nullcontext()
    if name not in BATCH_PLUGINS:
        return name, nullcontext()
    plugin = BATCH_PLUGINS[name](
        plugin_args,
        # Nipype's own names the jobs by the user.
        environment={**call.environment, 'LOGNAME': os.environ['LOGNAME']},
        launcher=[*python_command(), '-m', NODE_JOB],
        warn=say,
    )
    return plugin, before_sigterm_ends(plugin.cancel)


def write_graph(workflow: Any, log_dir: Path) -> None:
    """Draw the workflow, or write what Graphviz would draw."""
    kind = 'svg' if shutil.which('dot') else 'dot'
    workflow.write_graph(
        dotfilename=str(log_dir / 'graph.dot'), graph2use='colored', format=kind, simple_form=True
    )
    hint = '; dot (Graphviz) is not installed here: draw it elsewhere with dot -Tsvg -O graph.dot'
    say(f'graph {log_dir / f"graph.{kind}"}{hint * (kind == "dot")}')
