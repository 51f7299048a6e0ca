"""The reconstruction: the method's stages in order, and the conventional arm beside them."""

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow

from precondqsm_bids.cost import STAGE_MEMORY, stage_gb
from precondqsm_bids.interfaces import (
    BackgroundRemoval,
    Comparison,
    DipoleInversion,
    EchoFit,
    FlattenField,
    PriorFit,
    QualityMask,
    R2PrimePrior,
    Recombination,
    ShapeMask,
    TakeField,
    Uncertainty,
)
from precondqsm_bids.method import Arm, Method
from precondqsm_bids.outputs.maps import MAPS
from precondqsm_bids.outputs.sentences import sentences
from precondqsm_bids.terms import PORT

ECHOES = (
    'magnitude', 'phase', 'echo_times', 'field_strength', 'phase_units', 'manufacturer',
    'field_strength_source',
)  # fmt: skip
FIELD = (
    'total_field', 'field_units', 'field_sd', 'field_strength', 'field_strength_source', 'r2star',
)  # fmt: skip
"""Inputs of a given field."""
INPUTS = (
    *dict.fromkeys((*ECHOES, *FIELD)), 'labels', 'label_names', 'mask', 'tissue', 'tissue_names',
    'r2_map', 'r2_map_kind', 'contrasts', PORT,
)  # fmt: skip
FIELDS_AND_SHAPE = ('prior_field', 'shape_chi', 'background_field')
"""Outputs for those who embed the workflow, ppm; no files are written of them."""
OUTPUTS = (*MAPS, 'l_curve', 'conventional_l_curve', 'record', *FIELDS_AND_SHAPE)


def init_precondqsm_wf(
    method: Method | None = None,
    *,
    one_echo: bool = False,
    phase_difference: bool = False,
    omp_nthreads: int = 1,
    mem_gb: float = 0.25,
    n_echoes: int = 3,
    name: str = 'precondqsm_wf',
) -> LiterateWorkflow:
    """Preconditioned susceptibility map of one multi-echo gradient-echo run.

    Parameters
    ----------
    method : Method, optional
        Everything that changes the maps; its ``field_strength``, ``b0_dir`` and a file in
        ``mask`` are for the discovery of files: here the inputs and their headers count.
    one_echo : bool
        Whether the runs have a single echo, or a given field without a map of R2*. Then R2* is not
        known: the contrast prior is made of the magnitude alone, and the maps of relaxation stay
        empty.
    phase_difference : bool
        Whether the phase of the one echo is the difference of two, and so has no phase offset.
    omp_nthreads : int
        Threads of a node's Fourier transforms.
    mem_gb : float
        Size of one run's magnitude and phase in memory (float32), GB, as
        :func:`precondqsm_bids.interfaces.volumes.images_gb` reads it from their headers; the
        nodes' estimates follow from it. The default is that of a head at 1 mm with 3 echoes.
    n_echoes : int
        Number of its echoes, for the memory of the echo fit.
    name : str
        Name of the workflow.

    Returns
    -------
    workflow : LiterateWorkflow
        ``inputnode``: magnitude and phase (a list of files each, one per echo), echo_times (s),
        field_strength (T); and, where there are: phase_units, manufacturer,
        field_strength_source; mask (region of interest; by default as the
        method's ``mask`` says); labels and
        label_names of the reference; tissue (class of each voxel, or fractions of the classes,
        4D) and tissue_names; r2_map and r2_map_kind (``R2map``, 1/s, or ``T2map``, s); contrasts
        (list of files), images on the same grid whose cells ``contrast`` has too. With a field
        that is given (``Method(field='derivatives')``) no phase and echo_times, but total_field
        and field_units (``ppm``, ``Hz``, ``rad/s`` or ``T``), field_sd (in the same unit) and
        r2star (1/s), as far as there are. With the term ``map:prior_map`` prior_map, ppm.
        ``outputnode``: the maps (NIfTI, float32, ppm for fields and susceptibilities, on the
        input's grid), prior_labels (int32; only of a fitted prior), prior_field, shape_chi and
        background_field (ppm), both L-curves, and ``record``, what each stage measured and chose.

    Raises
    ------
    ValueError
        The prior is made of R2* and there is one echo; or threads, size or echoes are none.
    """
    method = method or Method()
    check_arguments(method, one_echo, omp_nthreads, mem_gb, n_echoes)
    workflow = LiterateWorkflow(name=name)
    workflow.__desc__ = sentences(method, one_echo, phase_difference)
    stages = stages_of(method, one_echo, phase_difference)
    nodes = {
        name: stage_node(name, stage, omp_nthreads, stage_gb(_stage(name), mem_gb, n_echoes))
        for name, stage in stages.items()
    }
    connect(workflow, nodes, edges_of(method, one_echo), OUTPUTS)
    return workflow


def check_arguments(method, one_echo, omp_nthreads, mem_gb, n_echoes):
    """Raise ValueError if a workflow cannot be made of these."""
    if not isinstance(method, Method):
        raise ValueError(f'method should be a Method, not a {type(method).__name__}')
    sizes = {'omp_nthreads': omp_nthreads, 'mem_gb': mem_gb, 'n_echoes': n_echoes}
    for name, value in sizes.items():
        if not value > 0:
            raise ValueError(f'{name} should be positive: {value}')
    if n_echoes == 1 and not one_echo and not method.field_given:
        raise ValueError('n_echoes is 1: give one_echo=True, as R2* is not known then')


def connect(workflow, nodes, edges, outputs):
    """Join nodes by edges that have both ends and ports, with inputnode, outputnode and record."""
    edges = [
        *edges,
        *((stage, 'gather', [('record', stage)]) for stage in nodes),
        ('gather', 'outputnode', [('record', 'record')]),
    ]
    gather = niu.Function(function=_gather, input_names=list(nodes), output_names=['record'])
    nodes = nodes | {
        'inputnode': pe.Node(niu.IdentityInterface(INPUTS), name='inputnode'),
        'outputnode': pe.Node(niu.IdentityInterface(outputs), name='outputnode'),
        'gather': pe.Node(gather, name='gather', run_without_submitting=True),
    }
    workflow.connect(
        [
            (nodes[source], nodes[target], ports)
            for source, target, ports in edges
            if ports and source in nodes and target in nodes
        ]
    )


def edges_of(method, one_echo):
    """Connections of all stages that a method can have."""
    return [
        *_edges(method, one_echo),
        *_judging_edges(method, one_echo),
        *_output_edges(method, one_echo),
        *(edge for arm in method.arms for edge in _arm_edges(method, arm)),
    ]


def stages_of(method, one_echo, phase_difference):
    """Interfaces of the stages by the names of their nodes, in the order of the data.

    Raises ValueError if the prior is made of R2* and there is one echo.
    """
    if one_echo and method.r2star_terms:
        raise ValueError(f'prior {" ".join(method.prior)} is made of R2*, which takes two echoes')
    sign = method.phase_sign or 'auto'
    stages = {
        'shape_mask': ShapeMask(
            erosion=method.mask_erosion, inside=method.inside, shape=method.shape
        ),
        'echo_fit': TakeField(phase_sign=sign)
        if method.field_given
        else EchoFit(phase_sign=sign, phase_difference=phase_difference),
    }
    if not one_echo:
        number = {} if isinstance(method.r2, str) else {'r2': method.r2}
        stages['r2prime_prior'] = R2PrimePrior(
            r2_source='number' if number else method.r2, **number
        )
    if not method.by_theory:
        further = {'n_contrasts': len(method.contrasts)} if method.reads_contrast else {}
        stages['prior_fit'] = PriorFit(
            priors=list(method.prior),
            fit=method.fit or 'none',
            free_voxels=method.describes_interior,
            **further,
        )
    stages['flattening'] = FlattenField()
    for arm in method.arms:
        given = {} if arm.reg_weight is None else {'reg_weight': arm.reg_weight}
        if arm.certain_field:
            stages[f'{arm.prefix}quality_mask'] = QualityMask()
        if arm.local_of is None:
            stages[f'{arm.prefix}background_removal'] = BackgroundRemoval(
                iterations=arm.iterations, background=arm.background
            )
        stages |= {
            f'{arm.prefix}dipole_inversion': DipoleInversion(
                rule=arm.rule, clip_outliers=arm.clip_outliers, inversion=arm.inversion, **given
            ),
            f'{arm.prefix}recombination': Recombination(
                reference='roi-mean' if arm.certain_field else method.reference
            ),
        }
    stages['uncertainty'] = Uncertainty(
        clip_outliers=method.preconditioned.clip_outliers, reference=method.reference
    )
    if method.conventional:
        stages['comparison'] = Comparison()
    return stages


def _stage(name):
    """The stage of a node, whatever its arm."""
    of_arms = ('quality_mask', 'background_removal', 'dipole_inversion', 'recombination')
    return next((stage for stage in of_arms if name.endswith(stage)), name)


def stage_node(name, interface, threads, mem_gb):
    """A stage as a node, with its memory and threads.

    The arms beside the preconditioned one have one thread, so that they are computed beside the
    fit of the prior, which takes longer; so has the comparison, beside the uncertainty.
    """
    node = pe.Node(interface, name=name, mem_gb=mem_gb)
    alone = ('shape_mask', 'comparison')
    if threads > 1 and name in ('echo_fit', *STAGE_MEMORY) and name not in alone:
        node.inputs.num_threads = node.n_procs = threads
    return node


def _edges(method, one_echo):
    """Connections from the images to the flattened field.

    Those of stages that this method does not have, or with no ports, are left out afterwards.
    """
    estimate = 'r2prime_prior' if method.by_theory else 'prior_fit'
    contrast, interior = method.reads_contrast, method.describes_interior
    return [
        ('inputnode', 'shape_mask', [(('magnitude', first), 'magnitude'), ('mask', 'mask')]),
        ('inputnode', 'echo_fit',
            [('total_field', 'field'), *_same(*FIELD[1:])] if method.field_given
            else _same(*ECHOES)),
        ('inputnode', 'echo_fit', [(('magnitude', first), 'magnitude')] * method.field_given),
        ('inputnode', 'shape_mask', [('total_field', 'field')] * method.field_given),
        ('shape_mask', 'echo_fit', [('roi_mask', 'mask'), ('shape_mask', 'shape_mask')]),
        # the estimate
        ('inputnode', 'r2prime_prior', _same(
            'field_strength', 'tissue', 'tissue_names', 'r2_map', 'r2_map_kind')),
        ('echo_fit', 'r2prime_prior', _same('r2star', 'reliable')),
        ('echo_fit', 'r2prime_prior', [('roi_mask', 'mask')]),
        ('inputnode', 'prior_fit', _same('field_strength', 'tissue', 'tissue_names')),
        ('inputnode', 'prior_fit',
            [(('magnitude', first), 'magnitude'), ('contrasts', 'contrasts')] * contrast),
        ('inputnode', 'prior_fit', _same(PORT) * method.takes_map),
        ('echo_fit', 'prior_fit', _same('total_field', 'field_sd')),
        ('echo_fit', 'prior_fit', [
            ('magnitude', 'combined_magnitude'), *_same('r2star', 'reliable'),
            *_same('r2star_sd', 'magnitude_sd') * (not method.field_given),
        ] * (contrast and not one_echo)),
        ('shape_mask', 'prior_fit', [('inner', 'inner')] * (contrast and not one_echo)),
        ('echo_fit', 'prior_fit', [('roi_mask', 'mask')]),
        ('r2prime_prior', 'prior_fit', _same('prior_chi') * bool(method.r2star_terms)),
        ('shape_mask', 'prior_fit', _same('shape_chi') * method.shape),
        # Only a prior that can describe what is inside leaves to the surface what is its own.
        ('shape_mask', 'prior_fit', _same('shape_sd') * (method.shape and interior)),
        # the flattening
        ('echo_fit', 'flattening', _same('total_field')),
        ('echo_fit', 'flattening', [('roi_mask', 'mask')]),
        (estimate, 'flattening', _same('prior_chi')),
        ('prior_fit', 'flattening', _same('tissue_shift') * interior),
        ('shape_mask' if method.by_theory else estimate, 'flattening',
            _same('shape_chi') * method.shape),
    ]  # fmt: skip


def _judging_edges(method, one_echo):
    """Connections of the comparison and of the uncertainty."""
    estimate = 'r2prime_prior' if method.by_theory else 'prior_fit'
    known = _known(method.preconditioned)
    return [
        # the comparison
        ('dipole_inversion', 'comparison', [
            ('chi', 'residual_chi'), ('reg_weight', 'reg_weight')]),
        ('background_removal', 'comparison', _same('local_field')),
        ('conventional_recombination', 'comparison', [('chi', 'conventional_chi')]),
        ('conventional_background_removal', 'comparison',
            [('local_field', 'conventional_local_field')]),
        ('echo_fit', 'comparison', [('field_sd', 'field_sd'), ('record', 'echo_fit')]),
        ('echo_fit', 'comparison', _same('r2star') * (not one_echo)),
        (known, 'comparison', [('roi_mask', 'mask')]),
        # the uncertainty
        ('background_removal', 'uncertainty', _same('local_field')),
        ('echo_fit', 'uncertainty', _same('field_sd')),
        (estimate, 'uncertainty', _same('prior_chi')),
        (estimate, 'uncertainty', [('expected_size', 'model_error')] * method.describes_interior),
        ('prior_fit', 'uncertainty', _same('prior_sd') * bool(method.fit)),
        ('dipole_inversion', 'uncertainty', [
            ('chi', 'residual_chi'), ('reg_weight', 'reg_weight')]),
        (known, 'uncertainty', [('roi_mask', 'mask')]),
        ('inputnode', 'uncertainty', _same('labels', 'label_names')),
    ]  # fmt: skip


def _output_edges(method, one_echo):
    """Connections of the maps up to the flattened field, and of those of both arms together."""
    estimate = 'r2prime_prior' if method.by_theory else 'prior_fit'
    known = _known(method.preconditioned)
    return [
        ('uncertainty', 'outputnode', _same('chi_sd', 'support')),
        ('shape_mask', 'outputnode', _same('shape_mask')),
        (known, 'outputnode', _same('roi_mask')),
        ('echo_fit', 'outputnode', _same(
            'total_field', 'field_sd', 'magnitude', 'usable_echoes')),
        ('echo_fit', 'outputnode', _same('r2star', 't2star') * (not one_echo)),
        ('echo_fit', 'outputnode',
            _same('s0', 'misfit') * (not one_echo and not method.field_given)),
        ('r2prime_prior', 'outputnode', _same('r2prime')),
        ('prior_fit', 'outputnode', _same('prior_labels') * bool(method.fit)),
        ('prior_fit', 'outputnode', _same('tissue_shift') * method.describes_interior),
        (estimate, 'outputnode', _same('prior_chi')),
        ('flattening', 'outputnode', _same('flattened_field', 'prior_field')),
        ('shape_mask' if method.by_theory else estimate, 'outputnode',
            _same('shape_chi') * method.shape),
    ]  # fmt: skip


def _arm_edges(method, arm: Arm):
    """Connections of one arm, from its field to its map."""
    estimate = 'r2prime_prior' if method.by_theory else 'prior_fit'
    quality, pdf, inversion, recombination = (
        f'{arm.prefix}{stage}'
        for stage in ('quality_mask', 'background_removal', 'dipole_inversion', 'recombination')
    )
    weighted = arm.inversion != 'l2' or arm.clip_outliers
    edges = [
        ('echo_fit', quality, _same('field_sd')),
        ('echo_fit', quality, [('roi_mask', 'mask')]),
        ('echo_fit', pdf, _same('field_sd')),
        (quality if arm.certain_field else 'echo_fit', pdf, [('roi_mask', 'mask')]),
        (_local(arm), inversion, _same('local_field')),
        (_known(arm), inversion, [('roi_mask', 'mask')]),
        (inversion, recombination, [('chi', 'residual_chi')]),
        (_known(arm), recombination, [('roi_mask', 'mask')]),
        ('inputnode', recombination, _same('labels', 'label_names') * (not arm.certain_field)),
        ('echo_fit', inversion, _same('field_sd') * weighted),
    ]
    if f'{arm.prefix}l_curve' in OUTPUTS:
        edges += [
            (pdf, 'outputnode', [('local_field', f'{arm.prefix}local_field')]),
            (inversion, 'outputnode', [('l_curve', f'{arm.prefix}l_curve')]),
        ]
    if arm.conventional:
        return [
            *edges,
            ('echo_fit', pdf, [('total_field', 'field')]),
            (recombination, 'outputnode', [('chi', f'{arm.prefix}chi')]),
            (pdf, 'outputnode', [('roi_mask', f'{arm.prefix}mask')] * arm.certain_field),
        ]
    return [
        *edges,
        ('flattening', pdf, [('flattened_field', 'field')]),
        (pdf, 'outputnode', _same('background_field')),
        (estimate, pdf, [('expected_size', 'model_error')] * method.describes_interior),
        (estimate, pdf, [('outer_chi', 'start')] * (arm.continued and arm.background == 'pdf')),
        (estimate, inversion,
            [('expected_size', 'model_error')] * (method.describes_interior and weighted)),
        (estimate, inversion, _same('trust') * method.describes_interior),
        (estimate, inversion, _same('prior_chi') * arm.weighted),
        (estimate, recombination, _same('prior_chi')),
        (inversion, 'outputnode', [('chi', 'residual_chi')]),
        (recombination, 'outputnode', [('chi', 'precond_chi')]),
    ]  # fmt: skip


def _known(arm: Arm) -> str:
    """Stage whose ``roi_mask`` is where the local field of an arm is known."""
    return 'echo_fit' if arm.background == 'pdf' else _local(arm)


def _local(arm: Arm) -> str:
    """Stage that made the local field of an arm."""
    return f'{arm.prefix if arm.local_of is None else arm.local_of}background_removal'


def _same(*ports):
    """Connections between ports of the same name."""
    return [(port, port) for port in ports]


def first(values):
    """The first of a list of files; a bare file is a list of one."""
    return values if isinstance(values, str) else values[0]


def _gather(**records):
    return dict(records)
