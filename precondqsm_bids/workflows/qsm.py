"""The reconstruction: the method's stages in order, and the conventional arm beside them."""

from collections.abc import Sequence

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow

from precondqsm_bids.config import resolve_prior_fit
from precondqsm_bids.interfaces import (
    BackgroundRemoval,
    Comparison,
    DipoleInversion,
    EchoFit,
    FlattenField,
    PriorFit,
    R2PrimePrior,
    Recombination,
    ShapeMask,
)

INPUTS = (
    'magnitude', 'phase', 'echo_times', 'field_strength', 'phase_units', 'manufacturer',
    'field_strength_source', 'labels', 'label_names',
    'mask', 'tissue', 'tissue_names', 'r2_map', 'r2_map_kind',
    'contrasts',
)  # fmt: skip
MAPS = (
    'precond_chi', 'conventional_chi', 'prior_chi', 'residual_chi', 'r2star', 't2star', 's0',
    'r2prime', 'shape_mask', 'roi_mask', 'total_field', 'field_sd', 'flattened_field',
    'local_field', 'conventional_local_field', 'magnitude', 'usable_echoes', 'misfit',
)  # fmt: skip
OUTPUTS = (*MAPS, 'prior_labels', 'l_curve', 'conventional_l_curve', 'record')
OF_MANY_ECHOES = ('r2star', 't2star', 's0', 'r2prime', 'misfit')
"""Outputs that a run of a single echo does not have."""
MANY_PARCELS = ('contrast', 'tissue')
"""Priors that can describe what is inside."""
LONGER = 3
"""Factor on the iterations of PDF after such a prior."""


def init_precondqsm_wf(
    *,
    name: str = 'precondqsm_wf',
    omp_nthreads: int = 1,
    mem_gb: float = 1.0,
    one_echo: bool = False,
    phase_difference: bool = False,
    phase_sign: int | None = None,
    prior: str | Sequence[str] = 'contrast',
    prior_fit: str = 'auto',
    contrasts: Sequence[str] = (),
    r2: float | str = 'median',
    shape: bool = True,
    mask_erosion: float = 0.0,
    conventional: bool = True,
    pdf_iterations: int = 30,
    reg_weight: float | None = None,
    reg_rule: str = 'auto',
    reference: str = 'roi-mean',
) -> LiterateWorkflow:
    """Preconditioned susceptibility map of one multi-echo gradient-echo run.

    Parameters
    ----------
    name : str
        Name of the workflow.
    omp_nthreads : int
        Threads of a node's Fourier transforms.
    mem_gb : float
        Size of one run's magnitude and phase in memory (float32), GB; the nodes' estimates are
        multiples of it.
    one_echo : bool
        Whether the runs have a single echo. Then R2* is not known: the contrast prior is made of
        the magnitude alone, and the outputs :data:`OF_MANY_ECHOES` stay empty.
    phase_difference : bool
        Whether the phase of the one echo is the difference of two, and so has no phase offset.
    phase_sign : int, optional
        Sign of the stored phase, 1 or -1; told by the field of the object's shape if omitted, and
        assumed where that does not decide.
    prior : str or sequence of str
        What the prior is the sum of: ``contrast``, cells of the joint histogram of R2* and
        magnitude; ``tissue``, one constant per class; ``r2prime-by-tissue``; ``r2prime``,
        static-dephasing theory; ``map:FILE``, a susceptibility map, ppm. Or ``shape`` alone:
        nothing inside.
    prior_fit : str
        ``none``, ``global`` or ``clusters`` for ``r2prime`` and ``map:FILE``; ``auto`` is
        ``none`` for ``r2prime`` and ``shape`` alone and ``global`` otherwise.
    contrasts : sequence of str
        What the files of the input contrasts are, such as ``T1w``, for the methods text.
    r2 : float or str
        Transverse relaxation rate, 1/s; or ``median`` (of R2* over the region), ``map`` (the
        input r2_map) or ``literature`` (by the class of the input tissue).
    shape : bool
        Whether the object's shape against air is part of the prior.
    mask_erosion : float
        Depth that is taken off the region of interest, mm.
    conventional : bool
        Whether the conventional arm is computed too.
    pdf_iterations : int
        Conjugate-gradient iterations of the background removal; three times as many after a
        prior of many parcels (``contrast`` and the tissue priors).
    reg_weight : float, optional
        Lambda of the inversion, mm, in both arms; each arm's by ``reg_rule`` if omitted.
    reg_rule : str
        ``l-curve``, ``risk`` (least expected error) or ``auto``: the first in the conventional
        and the second in the preconditioned arm.
    reference : str
        ``none``, ``roi-mean`` or the name of a label.

    Returns
    -------
    workflow : LiterateWorkflow
        ``inputnode``: magnitude and phase (lists of files ordered by echo time), echo_times (s),
        field_strength (T), and optionally phase_units (``rad`` or ``arbitrary``), manufacturer
        (of the scanner), field_strength_source (words for the record), labels (file),
        label_names (dict) and mask (file), which restricts the region of interest; without it,
        that is the object; tissue (file: classes, or 4D shares) and tissue_names (list); r2_map
        (file) and r2_map_kind (``R2map``, 1/s, or ``T2map``, s); contrasts (list of files),
        images on the same grid whose cells ``contrast`` has too.
        ``outputnode``: the maps (NIfTI, float32, ppm for fields and susceptibilities, on the
        input's grid), prior_labels (int32; only of a fitted prior), both L-curves, and
        ``record``, what each stage measured and chose.

    Raises
    ------
    ValueError
        ``prior`` and ``prior_fit`` do not go together, or the prior is made of R2* and there is
        one echo.
    """
    prior = (prior,) if isinstance(prior, str) else tuple(prior)
    fit = resolve_prior_fit(prior, prior_fit)
    if one_echo and any(name.startswith('r2prime') for name in prior):
        raise ValueError(f'the prior {" ".join(prior)} is made of R2*, which takes two echoes')
    by_theory = fit is None and prior == ('r2prime',)
    rich = any(name in MANY_PARCELS for name in prior)
    workflow = LiterateWorkflow(name=name)
    workflow.__desc__ = describe(
        one_echo, prior, fit, contrasts, r2, shape, conventional, pdf_iterations, reg_weight,
        reg_rule, reference, phase_difference,
    )  # fmt: skip
    inputnode = pe.Node(niu.IdentityInterface(INPUTS), name='inputnode')
    outputnode = pe.Node(niu.IdentityInterface(OUTPUTS), name='outputnode')

    def stage(interface, name, memory, threads=1):
        node = pe.Node(interface, name=name, mem_gb=memory * mem_gb, n_procs=threads)
        if threads > 1:
            node.inputs.num_threads = threads
        return node

    shape_mask = stage(ShapeMask(erosion=mask_erosion), 'shape_mask', 1)
    echo_fit = stage(
        EchoFit(phase_sign=phase_sign or 'auto', phase_difference=phase_difference),
        'echo_fit',
        13,
        omp_nthreads,
    )
    flattening = stage(FlattenField(), 'flattening', 3, omp_nthreads)

    # fmt: off
    workflow.connect([
        (inputnode, shape_mask, [(('magnitude', _first), 'magnitude'), ('mask', 'mask')]),
        (inputnode, echo_fit, [(field, field) for field in INPUTS[:7]]),
        (shape_mask, echo_fit, [('roi_mask', 'mask'), ('shape_mask', 'shape_mask')]),
        (echo_fit, flattening, [('total_field', 'total_field')]),
        (shape_mask, flattening, [('roi_mask', 'mask')]),
        (shape_mask, outputnode, [('shape_mask', 'shape_mask'), ('roi_mask', 'roi_mask')]),
        (echo_fit, outputnode, [(field, field) for field in (
            'total_field', 'field_sd', 'magnitude', 'usable_echoes')]),
        (flattening, outputnode, [('flattened_field', 'flattened_field')]),
    ])
    # fmt: on
    recorded = [shape_mask, echo_fit, flattening]
    if not one_echo:
        estimate = r2prime_prior = stage(R2PrimePrior(), 'r2prime_prior', 1)
        recorded.insert(2, r2prime_prior)
        if isinstance(r2, str):
            r2prime_prior.inputs.r2_source = r2
        else:
            r2prime_prior.inputs.trait_set(r2_source='number', r2=r2)
        # fmt: off
        workflow.connect([
            (inputnode, r2prime_prior, [(field, field) for field in (
                'field_strength', 'tissue', 'tissue_names', 'r2_map', 'r2_map_kind')]),
            (echo_fit, r2prime_prior, [('r2star', 'r2star'), ('reliable', 'reliable')]),
            (shape_mask, r2prime_prior, [('roi_mask', 'mask')]),
            (echo_fit, outputnode, [(field, field) for field in (
                'r2star', 't2star', 's0', 'misfit')]),
            (r2prime_prior, outputnode, [('r2prime', 'r2prime')]),
        ])
        # fmt: on
    if not by_theory:
        estimate = stage(
            PriorFit(priors=list(prior), fit=fit or 'none', own_sources=rich),
            'prior_fit',
            5,
            omp_nthreads,
        )
        recorded.insert(-1, estimate)
        # fmt: off
        workflow.connect([
            (inputnode, estimate, [(field, field) for field in (
                'field_strength', 'tissue', 'tissue_names')]),
            (echo_fit, estimate, [('total_field', 'total_field'), ('field_sd', 'field_sd')]),
            (shape_mask, estimate, [('roi_mask', 'mask')]),
        ])
        # fmt: on
        if fit:
            workflow.connect(estimate, 'prior_labels', outputnode, 'prior_labels')
        if 'contrast' in prior:
            workflow.connect(inputnode, 'contrasts', estimate, 'further_contrasts')
        if 'contrast' in prior and one_echo:
            workflow.connect(inputnode, ('magnitude', _first), estimate, 'contrasts')
        elif 'contrast' in prior:
            merged = pe.Node(niu.Merge(2), name='contrasts', run_without_submitting=True)
            # fmt: off
            workflow.connect([
                (echo_fit, merged, [('r2star', 'in1')]),
                (inputnode, merged, [(('magnitude', _first), 'in2')]),
                (merged, estimate, [('out', 'contrasts')]),
                (echo_fit, estimate, [
                    ('magnitude', 'combined_magnitude'), ('reliable', 'reliable')]),
                (shape_mask, estimate, [('inner', 'inner')]),
            ])
            # fmt: on
        if any(name.startswith('r2prime') for name in prior):
            workflow.connect(r2prime_prior, 'prior_chi', estimate, 'prior_chi')
    workflow.connect(estimate, 'prior_chi', flattening, 'prior_chi')
    workflow.connect(estimate, 'prior_chi', outputnode, 'prior_chi')
    if shape and not by_theory:
        workflow.connect(shape_mask, 'shape_chi', estimate, 'shape_chi')
    if shape and rich:
        # Only a prior that can describe what is inside leaves to the surface what is its own.
        workflow.connect(shape_mask, 'shape_sd', estimate, 'shape_sd')
    if shape:
        shaped = shape_mask if by_theory else estimate
        workflow.connect(shaped, 'shape_chi', flattening, 'shape_chi')

    for arm in ('', 'conventional_') if conventional else ('',):
        background_removal = stage(
            BackgroundRemoval(iterations=_arm_iterations(pdf_iterations, () if arm else prior)),
            f'{arm}background_removal', 3, omp_nthreads,
        )  # fmt: skip
        # A prior with few coefficients is corrected by the residual, which must stay whole.
        dipole_inversion = stage(
            DipoleInversion(rule=_arm_rule(reg_rule, arm), hold_down=rich and not arm),
            f'{arm}dipole_inversion', 3, omp_nthreads,
        )  # fmt: skip
        if reg_weight is not None:
            dipole_inversion.inputs.reg_weight = reg_weight
        recombination = stage(Recombination(reference=reference), f'{arm}recombination', 1)
        # fmt: off
        workflow.connect([
            (echo_fit, background_removal, [('field_sd', 'field_sd')]),
            (shape_mask, background_removal, [('roi_mask', 'mask')]),
            (background_removal, dipole_inversion, [('local_field', 'local_field')]),
            (echo_fit, dipole_inversion, [('field_sd', 'field_sd')]),
            (shape_mask, dipole_inversion, [('roi_mask', 'mask')]),
            (dipole_inversion, recombination, [('chi', 'residual_chi')]),
            (shape_mask, recombination, [('roi_mask', 'mask')]),
            (inputnode, recombination, [('labels', 'labels'), ('label_names', 'label_names')]),
            (background_removal, outputnode, [('local_field', f'{arm}local_field')]),
            (dipole_inversion, outputnode, [('l_curve', f'{arm}l_curve')]),
        ])
        if rich and not arm:
            workflow.connect(estimate, 'expected_size', background_removal, 'floor')
        if arm:
            workflow.connect([
                (echo_fit, background_removal, [('total_field', 'field')]),
                (recombination, outputnode, [('chi', 'conventional_chi')]),
            ])
        else:
            workflow.connect([
                (flattening, background_removal, [('flattened_field', 'field')]),
                (estimate, recombination, [('prior_chi', 'prior_chi')]),
                (dipole_inversion, outputnode, [('chi', 'residual_chi')]),
                (recombination, outputnode, [('chi', 'precond_chi')]),
            ])
        # fmt: on
        recorded += [background_removal, dipole_inversion, recombination]

    if conventional:
        comparison = stage(Comparison(), 'comparison', 3, omp_nthreads)
        for arm in ('', 'conventional_'):
            for source, port in (('recombination', 'chi'), ('background_removal', 'local_field')):
                node = workflow.get_node(f'{arm}{source}')
                workflow.connect(node, port, comparison, f'{arm}{port}')
        workflow.connect(echo_fit, 'field_sd', comparison, 'field_sd')
        workflow.connect(shape_mask, 'roi_mask', comparison, 'mask')
        workflow.connect(echo_fit, 'record', comparison, 'echo_fit')
        if not one_echo:
            workflow.connect(echo_fit, 'r2star', comparison, 'r2star')
        recorded.append(comparison)

    gather = pe.Node(
        niu.Function(
            function=_gather,
            input_names=[node.name for node in recorded],
            output_names=['record'],
        ),
        name='gather',
        run_without_submitting=True,
    )
    for node in recorded:
        workflow.connect(node, 'record', gather, node.name)
    workflow.connect(gather, 'record', outputnode, 'record')
    return workflow


def _arm_rule(reg_rule: str, arm: str) -> str:
    """Rule for lambda of one arm: the published one where nothing is preconditioned."""
    return ('l-curve' if arm else 'risk') if reg_rule == 'auto' else reg_rule


def _arm_iterations(pdf_iterations: int, prior: Sequence[str]) -> int:
    """Iterations of PDF of an arm, by its prior.

    What a prior of many parcels leaves is so weak that late iterations take the rest of the
    background, not sources inside.
    """
    return pdf_iterations * (LONGER if set(prior) & set(MANY_PARCELS) else 1)


def _first(values):
    """The first of a list of files; a bare file is a list of one."""
    return values if isinstance(values, str) else values[0]


def _gather(**records):
    return dict(records)


def describe(
    one_echo,
    prior,
    fit,
    contrasts,
    r2,
    shape,
    conventional,
    pdf_iterations,
    reg_weight,
    reg_rule,
    reference,
    phase_difference=False,
) -> str:
    """Methods sentences for these settings."""
    own_iterations = _arm_iterations(pdf_iterations, prior)
    rule = {
        'l-curve': 'the corner of the L-curve as regularisation weight',
        'risk': 'the regularisation weight of least expected error',
        'auto': 'the regularisation weight of least expected error',
    }[reg_rule]
    if reg_weight is not None:
        rule = f'a regularisation weight of {reg_weight:g} mm'
    offset = (
        'it is the difference of two echoes, so that it has no phase offset'
        if phase_difference
        else 'the phase offset of the coil, which one echo does not tell from it, is part of it'
    )
    sentences = [
        'The total field is the phase of the single echo, unwrapped in space [@herraez2002], '
        f'over its echo time; {offset}, and R2* is not known.'
        if one_echo
        else 'The total field, R2* and S0 were estimated by a nonlinear fit of the complex '
        'multi-echo signal [@liu2013], after spatial unwrapping [@herraez2002] and with a '
        'smooth phase offset.',
        _estimate_sentence(one_echo, prior, fit, contrasts, r2),
        'The field of this estimate'
        + (
            ' and (where the region reaches its surface) of the shape of the object in air'
            if shape
            else ''
        )
        + ', computed by convolution with the voxel-integrated dipole [@marques2005; '
        '@jenkinson2004], was subtracted from the total field.',
        f'From the flattened field the background was removed by {own_iterations} iterations of '
        'projection onto dipole fields [@liu2011]; the residual was inverted in closed form '
        f'with l2 gradient regularisation [@bilgic2014], with {rule}; and the estimate was '
        'added back.',
    ]
    if conventional:
        sentences.append(
            'The same background removal and inversion of the field that was not flattened '
            'gave the conventional map for comparison'
            + (f', with {pdf_iterations} iterations' if own_iterations != pdf_iterations else '')
            + (
                ', with the corner of the L-curve as regularisation weight.'
                if reg_rule == 'auto' and reg_weight is None
                else '.'
            )
        )
    sentences.append(
        'Maps are not referenced.'
        if reference == 'none'
        else 'Maps are relative to the mean of '
        + ('the region of interest.' if reference == 'roi-mean' else f'the region "{reference}".')
    )
    return '\n'.join(sentences) + '\n'


def _estimate_sentence(one_echo, prior, fit, contrasts, r2) -> str:
    terms = [_term(name, fit, contrasts, r2, one_echo) for name in prior]
    if fit is None:
        return f'A first estimate of the susceptibility was taken to be {terms[0]}.'
    return (
        'A first estimate of the susceptibility was fitted to the field, together with the '
        f'sources outside the region: {"; ".join(terms)}.'
    )


def _term(name, fit, contrasts, r2, one_echo) -> str:
    """What one prior is, in words."""
    if name == 'contrast':
        first, histogram = 'magnitude', 'histogram of the magnitude'
        if not one_echo:
            first, histogram = 'R2*', 'joint histogram of R2* and magnitude'
        return (
            f'one constant for each cell of the {histogram}'
            + ''.join(f' and of that of {first} and {name}' for name in contrasts)
            + ', over the whole region and in blocks of 60, 30 and 15 mm'
            + (
                ''
                if one_echo
                else '; images were freed of their shading by a polynomial of degree 4 beside any '
                'function of R2* [@vanleemput1999]'
            )
        )
    if name == 'shape':
        return 'zero inside the object'
    if name == 'tissue':
        return 'one constant for each tissue class'
    rate = {
        'median': 'the median R2* of the region',
        'map': 'that of a measured map',
        'literature': 'that of the literature for each tissue class [@gelman1999]',
    }
    theory = (
        "the susceptibility that static-dephasing theory [@yablonskiy1994] gives to R2' = R2* - "
        f'R2, R2 being {rate[r2] if isinstance(r2, str) else f"{r2:g}/s"}'
    )
    if r2 == 0:
        theory += " (R2* used as R2')"
    if name == 'r2prime-by-tissue':
        return f'{theory}, with one coefficient for each tissue class'
    what = theory if name == 'r2prime' else 'a given susceptibility map'
    unit = {None: '', 'clusters': ', with one coefficient for each of its connected clusters'}
    return what + unit.get(fit, ', with one coefficient for the whole of it')
