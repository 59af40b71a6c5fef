"""Which cases of exhaustive or slow tests `make test` runs. `make test-slow` and the gate run all.

A test that is not listed runs with all of its cases. ``()`` leaves the whole test to
`make test-slow`, and a number runs so many cases, spread over all. Otherwise a case runs if its id
contains one of the texts, or all of a tuple of texts. On the newest Python the gate runs only
what `make test` runs, and at most two cases of each test (``--most-cases 2``).
"""

from collections.abc import Sequence

import numpy as np
import pytest

COLLECTED = pytest.StashKey[dict[str, list[str]]]()  # the cases of each test, by FILE::TEST

# Optimizers of `cases.py` that are built differently; and the same in float32.
OF_EACH_KIND = ("adamw]", "adamc]", "start]", "brake]", "sgdw]", "adam_l2]", "adamwr]", "decouple]")
OF_EACH_KIND_IN_FLOAT32 = tuple(("float32", kind) for kind in OF_EACH_KIND)
# Some of them: a chain, one that keeps the initial weights, a schedule, and Optax's optimizer.
OF_SOME_KINDS = ("adamw]", "start]", "adamwr]", "decouple]")

SUBSET: dict[str, int | tuple[str | tuple[str, ...], ...]] = {
    # The site's examples and pages: `make docs` runs the examples too.
    "test_examples.py::test_runs": ("quickstart",),
    "test_docs.py::test_a_pages_code_runs": ("plan_it", "faq", "low_precision", "which_decay"),
    # One dtype of each kind, and one optimizer of each kind.
    "test_contract.py::test_convergence": (
        *(("parabola", kind) for kind in OF_SOME_KINDS),
        ("parabola", "sgdw]"),
        "rosenbrock-float32-adamw]",
    ),
    "test_contract.py::test_dtypes_and_shapes_are_stable": (
        "bfloat16-adamw]",
        "bfloat16-adam_l2]",
        "complex64-adamw]",
        *OF_EACH_KIND_IN_FLOAT32,
    ),
    "test_contract.py::test_a_first_step_is_finite": (
        "strict-bfloat16",
        "strict-float32",
        "standard-complex64",
    ),
    "test_contract.py::test_dtypes_are_stable_with_float32_hyperparameters": tuple(
        ("bfloat16", kind) for kind in OF_SOME_KINDS
    ),
    "test_contract.py::test_gradient_accumulation_takes_the_step_of_the_mean_gradient": (
        "bfloat16-adamw]",
        *(("float32", kind) for kind in OF_SOME_KINDS),
    ),
    "test_contract.py::test_extra_arguments_are_ignored": OF_EACH_KIND,
    "test_contract.py::test_second_call_does_not_recompile": OF_EACH_KIND,
    "test_contract.py::test_the_step_lowers_for_tpu_and_cuda": OF_SOME_KINDS,
    "test_contract.py::test_inject_hyperparams": OF_SOME_KINDS,
    "test_contract.py::test_masked_and_partition": OF_SOME_KINDS,
    "test_contract.py::test_apply_if_finite_skips_a_broken_gradient": OF_SOME_KINDS,
    "test_contract.py::test_donation_of_params_and_a_fresh_state": OF_SOME_KINDS,
    "test_modes_of_jax.py::test_arrays_schedules_and_masks_under_strict_promotion": (
        "Adam-float32",
        "restarts-float32",
        "a mask of arrays-float32",
        "hyperball-float32",
        "toward an rms-float32",
    ),
    "test_contract.py::test_decay_with_x64_and_float32_params_stays_float32": OF_SOME_KINDS,
    "test_modes_of_jax.py::test_x64_changes_no_parameter_of_32_bits_or_fewer": (
        *(("float32", kind) for kind in OF_SOME_KINDS),
        "bfloat16-adamw]",
        "bfloat16-sgdw]",
    ),
    "test_modes_of_jax.py::test_a_mode_of_jax_changes_nothing": (
        "[adamw-strict",
        "brake-strict",
        "[decouple-strict",
        "adamwr-strict",
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
    # Optimizers, wrappers, ports, shapes and meshes of one mechanism.
    "test_decouple.py::test_update_is_the_inner_one_minus_decay": ("[sgd]", "adam]", "adafactor"),
    "test_decouple.py::test_one_that_does_not_is_not": ("lion", "a sphere"),
    "test_decouple.py::test_an_optimizer_of_traced_numbers_is_not_asked": ("[jit]", "[grad]"),
    "test_hyperparameters.py::test_vmap_over_every_hyperparameter": ("[adamw]", "sgd_l2"),
    "test_hyperparameters.py::test_arrays_give_the_steps_of_numbers": ("[adamw]", "sgd_l2"),
    "test_masks.py::test_decay_mask_spares_biases_and_norms": (
        "[linen]",
        "[nnx state]",
        "[equinox]",
        "dataclass",
    ),
    "test_hyperball.py::test_rounding_does_not_add_up_over_millions_of_elements": ("shape0",),
    "test_precision.py::test_an_elements_choice_depends_on_its_index_alone": ("shape0",),
    "test_command_line.py::test_history_prints_what_a_checkpoint_holds": (
        "single",
        "manager/12",
        "prefixed",
    ),
    "test_explain_norm_change.py::test_a_brake_on_gradients_that_are_not_orthogonal": ("shape0",),
    "test_explain_run.py::test_a_run_is_the_sum_of_all_its_updates": (
        "warmup and cosine",
        "warm restarts",
        "accumulated gradients",
    ),
    "test_explain_kinds.py::test_decoupled_decay_is_measured": (
        "optax.adamw",
        "schedule-free",
        "MultiSteps",
        "[adamw]",
        "[sgdw]",
        "tiny",
    ),
    "test_explain_fractions.py::test_real_steps_remove_the_reported_fraction": ("0.02",),
    "test_explain_double.py::test_l2_and_decay_are_double_and_each_alone_is_not": (
        "[norm, momentum]",
        "block, Nesterov",
        "[norm, Adam]",
        "[sign]",
    ),
    "test_explain_errors.py::test_an_update_that_takes_a_loss_is_passed_one": ("True",),
    "test_recorder_wrapped.py::test_on_a_mesh_the_history_is_that_of_one_device": (
        "columns-AxisType.Explicit",
    ),
    "test_dynamics.py::test_the_sum_over_a_hundred_million_elements_does_not_stall": (),
    "test_dynamics.py::test_sharded_arrays_give_the_numbers_of_one_device": (
        "Auto",
        "spec2-AxisType.Explicit",
    ),
    "test_recorder.py::test_a_whole_sample_gives_the_numbers_of_the_weight": (
        "shape0",
        "shape2-bfloat16",
    ),
    "test_recorder.py::test_a_sample_sees_every_part_of_a_head": (
        "shape0-3",
        "shape0-96",
        "shape3-64",
    ),
    "test_sweep_devices.py::test_cells_on_eight_devices_give_the_numbers_of_one": (
        "None-AxisType.Auto",
        "16-AxisType.Explicit",
    ),
    "test_sweep_fingerprint.py::test_a_sweep_goes_on_in_a_process_with_another_hash_seed": (),
    "test_sweep_fingerprint.py::test_a_directory_of_another_sweep_is_refused_and_untouched": (
        "changes0",
        "changes3",
        "changes7",
    ),
    "test_sweep_directory.py::test_no_link_directory_or_pipe_is_read": ("-link", "lock-pipe"),
    "test_state.py::test_the_run_goes_on_as_if_nothing_had_happened": (
        "[adam-there",
        "injected schedule-",
    ),
    "test_port_map.py::test_optax": ("hand", "l2", "nanodo"),
    "test_decouple_around_optax.py::test_decouple_adds_its_decay_to_the_steps": (
        "[adamw]",
        "adafactor",
        "lbfgs",
        "[lion]",
        "muon",
        "schedule_free_adamw",
    ),
    "test_ports_of_libraries.py::test_one_convention_takes_their_steps": (
        "optimi.SGD at 0.02",
        "pytorch_optimizer.AdamC at 0.02",
        "QHAdam at 0.02",
        "adamw at 0.02",
        "independent at 0.02",
    ),
    "test_devices.py::test_wrapped_optimizers": ("accumulated", "masked"),
    "test_toward.py::test_shards_are_pulled_as_one": ("tensor parallel",),
    "test_multipliers.py::test_each_element_loses_its_own_fraction": (
        "adamw-layers",
        "adamw-columns",
        "gate",
        "sgdw-",
    ),
    "test_multipliers.py::test_strict_dtypes_and_ranks": (
        "asarray0-bfloat16",
        "asarray1-float32-layers",
    ),
    "test_norm_change.py::test_the_new_weight_of_numpy": ("float32", "complex64-0.7-0.5-1.0"),
    "test_explain_norm_change.py::test_a_brake_is_no_decay_and_the_decay_beside_it_is_decoupled": (
        "factors0-adamw",
        "factors2",
    ),
    "test_program.py::test_equal_layers_may_be_one_array_at_first_and_differ_later": (
        "ours",
        "two global norms",
    ),
    "test_program.py::test_layers_are_compiled_once": ("-2_1", "polynomial"),
    "test_program.py::test_three_updates_are_those_of_jit": (
        "ours",
        "adafactor",
        "accumulating",
        "noise",
        "callback",
        "norms of others",
        "by size",
    ),
    "test_program.py::test_it_maps_over_scalars": (),
    "test_explain_multipliers.py::test_a_decay_that_falls_with_depth_has_a_range": (
        "NumPy",
        "options0",
    ),
    "test_explain_toward.py::test_a_step_as_long_as_the_way_so_far_changes_no_kind": (
        "dog-0",
        "dowg-3-1.0",
    ),
    "test_recorder_wrapped.py::test_samples_of_a_weight_on_eight_devices_are_those_of_one": (
        "spec0",
        "spec2-AxisType.Explicit",
    ),
    "test_toward.py::test_trajectories_of_numpy": 4,
    "test_hyperball.py::test_updates_can_be_differentiated_backwards": ("ball-1.0",),
    "test_hyperball.py::test_adamc_is_two_chains": ("0.03-decay_mask",),
    "test_schedules.py::test_positions_are_exact_up_to_the_last_int32_step": (
        "1000-1.5",
        "2147483647-1]",
        "2147483647-1.01",
    ),
    "test_schedules.py::test_every_restart_is_exactly_one": (),
    "test_precision.py::test_derivatives_through_a_step_are_those_of_float32": ("bfloat16",),
    "test_settling.py::test_adamw_settles_where_predicted": ("0.001-0.01-",),
    "test_settling.py::test_sgdw_settles_where_predicted": ("0.1-0.9",),
    "test_settling.py::test_sgd_with_l2_settles_where_predicted": (),
    "test_settling.py::test_cautious_decay_acts_like_half_of_it_and_less_with_momentum": (),
    "test_history.py::test_a_random_walk_is_held_by_noise_at_the_predicted_size": ("adamw]",),
    "test_settling.py::test_lion_settles_where_predicted": (),
    # Damaged files: one of each kind of damage, in a cell and in the manifest.
    "test_sweep_resume.py::test_a_damaged_file_is_refused": ("{-", "content3"),
    "test_sweep_resume.py::test_a_cell_that_was_edited_is_refused": (
        "changes0",
        "changes3",
        "changes7",
    ),
    "test_sweep_output.py::test_an_interrupt_before_the_first_cell_is_explained": ("[1]",),
    # Tests of a second or more whose cases differ little, or whose mechanism has another test.
    "test_modes_of_jax.py::test_weight_dynamics_in_every_mode": 7,
    "test_settling.py::test_the_equilibrium_of_lion_is_within_2_percent_of_a_simulation": (
        "[0.01-0.9-0.99]",
        "[0.03-0.95-0.98]",
    ),
    "test_settling.py::test_the_rms_over_a_cosine_where_the_equilibrium_of_the_moment_fails": (),
    "test_settling.py::test_corrected_decay_keeps_the_rms": (),
    "test_masks.py::test_names_of_hidden_matrices": 10,
    "test_masks.py::test_the_same_rules_select_the_same_parameters": (
        "[linen]",
        "[nnx state]",
        "callable",
        "named tuple",
    ),
    "test_contract.py::test_zero_gradients_decay_or_not": OF_EACH_KIND,
    "test_precision.py::test_a_first_moment_that_equals_the_gradient_stays": (
        "bfloat16-no",
        "bfloat16-optimized",
        "float16-quickly",
    ),
    "test_precision.py::test_stochastic_rounding_is_unbiased_and_takes_a_neighbour": (
        "[1.2345",
        "-3.1e-07",
    ),
    "test_explain_states.py::test_a_schedule_free_warmup_has_the_decay_of_its_count": (
        "None-AdamW",
        "1-SGD",
        "4-wrapped",
    ),
    "test_explain_states.py::test_a_state_may_gain_leaves_at_the_first_update": (
        "False-monitor",
        "True-None",
    ),
    "test_explain_fractions.py::test_half_lives_are_those_of_real_steps": (
        "float32",
        "bfloat16-master",
    ),
    "test_dynamics.py::test_equals_the_float64_reference": ("float32", "0.001-", "1e-06-bfloat16"),
    "test_decay.py::test_without_decay_it_is_optax_bit_for_bit": (
        "adamw]",
        "sgdw nesterov",
        "sgd_l2",
        "decouple",
        "scale_by_adam",
    ),
    "test_explain_run.py::test_an_update_that_moves_nothing_is_told": ("<lambda>1",),
    "test_errors.py::test_multipliers_do_not_warn": (
        "[warmup",
        "short run",
        "restarts",
        "branches",
    ),
    "test_program.py::test_elements_alone_are_computed_as_among_all_others": (
        "ours",
        "accumulating",
        "clip",
    ),
    "test_program.py::test_arrays_may_be_empty_or_of_one_number": (),
    "test_valley_slope.py::test_valley_slope_is_exact_without_noise": ("False-1.0", "True-0.0"),
    "test_sweep_directory.py::test_other_versions_are_refused": ("optax_decoupled", "jaxlib"),
    "test_devices.py::test_trajectory_is_that_of_one_device": (
        "data parallel-sgdw",
        "fully sharded-adamw",
        "tensor parallel-adamw",
    ),
    "test_devices.py::test_moments_lie_like_their_parameters": tuple(
        kind.replace("]", "-auto") for kind in OF_EACH_KIND
    ),
    "test_sweep_output.py::test_an_interrupt_counts_the_kept_cells": ("[5]",),
    "test_port_map.py::test_the_tempting_value_is_far_away": ("lion", "muon", "nanodo"),
    "test_explain_kinds.py::test_the_last_update_of_a_schedule_has_the_kind_of_the_others": (
        "1-with",
        "2-at",
    ),
    "test_hyperball.py::test_the_norm_stays_for_ten_thousand_steps": 1,
    "test_benchmark_mnist1d.py::test_kernels_decay_and_only_batch_norm_keeps_statistics": (
        "None",
        "batch_norm",
    ),
    "test_benchmark_models.py::test_another_key_draws_other_coefficients": (),
    "test_recorder.py::test_merged_intervals_are_the_means_of_their_calls": 3,
    "test_history.py::test_a_quadratic_whose_minimum_is_not_0_holds_the_length": (),
    "test_sweep_directory.py::test_a_killed_process_blocks_no_directory": (),
    "test_sweep_output.py::test_an_interrupt_without_a_directory_suggests_one": (),
    "test_sweep_numbers.py::test_an_optimizer_that_takes_the_losss_value_gets_it": (),
    "test_sweep_numbers.py::test_a_task_may_hold_unhashable_objects_and_releases_them": (),
    "test_program.py::test_random_numbers_are_those_of_jit": ("two threefries",),
    "test_sweep_resume.py::test_a_cell_without_an_entry_is_refused": 2,
}


def spread(count: int, total: int) -> list[int]:
    """So many of the numbers below the total, the first and the last among them."""
    return [int(i) for i in np.linspace(0, total - 1, count).round()]


def left_to_the_slow_tests(file: str, test: str, cases: Sequence[str]) -> list[str]:
    """Which of a test's cases `make test` does not run."""
    kept = SUBSET.get(f"{file}::{test}")
    if kept is None:
        return []
    if isinstance(kept, int):
        chosen = spread(kept, len(cases))
        return [case for i, case in enumerate(cases) if i not in chosen]
    texts = [(x,) if isinstance(x, str) else x for x in kept]
    in_id = lambda each, case: all(text in f"[{case}]" for text in each)
    return [case for case in cases if not any(in_id(each, case) for each in texts)]
