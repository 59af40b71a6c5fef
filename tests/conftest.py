"""Eight CPU devices; rank promotion is refused; warnings are errors (see pyproject.toml)."""

import jax

collect_ignore_glob = ["golden/*"]  # a script that needs PyTorch

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
