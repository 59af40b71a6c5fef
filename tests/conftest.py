"""Eight CPU devices; rank promotion is refused; warnings are errors (see pyproject.toml)."""

import hypothesis
import jax

collect_ignore = ["ecosystem/golden"]  # a script that needs PyTorch

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples in every run; no deadline, because the first one compiles.
hypothesis.settings.register_profile("seeded", derandomize=True, deadline=None)
hypothesis.settings.load_profile("seeded")
