"""Which cases of exhaustive or slow tests `make test` runs. `make test-slow` and the gate run all.

A test that is not listed runs with all of its cases. ``()`` leaves the whole test to
`make test-slow`; otherwise a case runs if its id contains one of the texts.
"""

# Optimizers of `cases.py` that are built differently.
OF_EACH_KIND = ("adamw]", "adamc]", "start]", "brake]", "sgdw]", "adam_l2]", "adamwr]", "decouple]")

SUBSET: dict[str, tuple[str, ...]] = {
    # The site's examples and pages: `make docs` runs the examples too.
    "test_examples.py::test_runs": ("quickstart", "landscape_cluster"),
    "test_docs.py::test_a_pages_code_runs": ("plan_it", "faq", "low_precision", "which_decay"),
    # One dtype of each kind, and one case of each optimizer.
    "test_contract.py::test_convergence": ("parabola", "rosenbrock-float32-adamw]"),
    "test_contract.py::test_dtypes_and_shapes_are_stable": ("bfloat16", "float32", "complex64"),
    "test_contract.py::test_a_first_step_is_finite": ("bfloat16", "float32", "complex64"),
    "test_contract.py::test_dtypes_are_stable_with_float32_hyperparameters": ("bfloat16",),
    "test_contract.py::test_gradient_accumulation_takes_the_step_of_the_mean_gradient": (
        "float32",
        "bfloat16-adamw]",
    ),
    "test_contract.py::test_inject_hyperparams": OF_EACH_KIND,
    "test_contract.py::test_masked_and_partition": OF_EACH_KIND,
    "test_contract.py::test_apply_if_finite_skips_a_broken_gradient": OF_EACH_KIND,
    "test_contract.py::test_donation_of_params_and_a_fresh_state": OF_EACH_KIND,
    "test_modes_of_jax.py::test_arrays_schedules_and_masks_under_strict_promotion": ("float32",),
    "test_modes_of_jax.py::test_x64_changes_no_parameter_of_32_bits_or_fewer": (
        "float32",
        "bfloat16-adamw]",
        "bfloat16-sgdw]",
    ),
    # Settings of the paper's algorithms: `coupled_and_decoupled` has the chains themselves.
    "test_algorithms.py::test_sgdw_is_algorithm_1": ("float64-cosine-0.01", "float64-drops-0.04"),
    "test_algorithms.py::test_sgd_l2_is_algorithm_1_with_l2": ("float64-cosine-0.01",),
    "test_algorithms.py::test_adamw_is_algorithm_2": ("float64-cosine", "float32-cosine"),
    "test_algorithms.py::test_adam_l2_is_algorithm_2_with_l2": ("float64-cosine",),
    "test_algorithms.py::test_adamwr_and_sgdwr_follow_appendix_b": ("2-float64",),
    # The benchmarks' networks and data, whose results are committed.
    "test_benchmark_models.py::test_a_network_draws_by_its_key": (),
    "test_benchmark_models.py::test_resnets_classify_and_keep_statistics": (),
    "test_benchmark_models.py::test_tasks_report_the_loss_of_the_last_epoch": (),
    "test_benchmark_models.py::"
    "test_training_draws_independent_uniform_coefficients_for_each_image": (),
    "test_modular_addition.py::"
    "test_each_seed_holds_other_pairs_out_and_a_layer_norm_ignores_the_size": (),
    "test_modular_addition.py::test_a_short_run_is_the_beginning_of_a_long_one": (),
    "test_readme.py::test_the_numbers_are_those_of_the_committed_results": (),
    # Wrappers, ports and meshes of one mechanism.
    "test_state.py::test_the_run_goes_on_as_if_nothing_had_happened": ("adam", "injected"),
    "test_port_map.py::test_optax": ("hand", "l2", "nanodo"),
    "test_ports_of_libraries.py::test_one_convention_takes_their_steps": ("0.02",),
    "test_devices.py::test_wrapped_optimizers": ("accumulated", "masked"),
    "test_toward.py::test_shards_are_pulled_as_one": ("tensor parallel",),
    "test_multipliers.py::test_each_element_loses_its_own_fraction": ("adamw-", "layers"),
    "test_multipliers.py::test_strict_dtypes_and_ranks": (
        "asarray0-bfloat16",
        "asarray1-float32-layers",
    ),
    "test_norm_change.py::test_the_new_weight_of_numpy": ("float32", "complex64-0.7"),
    "test_explain_norm_change.py::test_a_brake_is_no_decay_and_the_decay_beside_it_is_decoupled": (
        "factors0-adamw",
        "factors2",
    ),
    "test_program.py::test_equal_layers_may_be_one_array_at_first_and_differ_later": (
        "adamw",
        "ours",
        "lamb",
        "norms",
        "adafactor",
        "accumulating",
        "jitted",
        "shifted",
    ),
    "test_hyperball.py::test_adamc_is_two_chains": ("0.03-decay_mask",),
    "test_schedules.py::test_positions_are_exact_up_to_the_last_int32_step": ("1000-", "2147"),
    "test_schedules.py::test_every_restart_is_exactly_one": (),
    "test_precision.py::test_derivatives_through_a_step_are_those_of_float32": ("bfloat16",),
    "test_settling.py::test_adamw_settles_where_predicted": ("0.001-0.01-",),
    "test_settling.py::test_lion_settles_where_predicted": (),
    # Damaged files: one of each kind of damage, in a cell and in the manifest.
    "test_sweep_resume.py::test_a_damaged_file_is_refused": ("{-", "content3"),
    "test_sweep_resume.py::test_a_cell_that_was_edited_is_refused": (
        "changes0",
        "changes3",
        "changes7",
    ),
    "test_sweep_output.py::test_an_interrupt_before_the_first_cell_is_explained": ("0",),
}


def is_left_to_the_slow_tests(file: str, test: str, case: str) -> bool:
    kept = SUBSET.get(f"{file}::{test}")
    return kept is not None and not any(text in f"{case}]" for text in kept)
