"""SGD's momentum: Optax's rule, with honest arithmetic in low precision."""

from __future__ import annotations

import optax

from optax_decoupled._common import checks
from optax_decoupled._common.dtypes import in_float32
from optax_decoupled._common.products import product_schedule
from optax_decoupled._common.types import Scalar, ScalarOrSchedule
from optax_decoupled._transforms.rounding import cast_first_moment


def momentum_sgd(
    learning_rate: ScalarOrSchedule,
    schedule: ScalarOrSchedule | None,
    momentum: Scalar,
    nesterov: bool,
    scale_before_momentum: bool,
) -> tuple[optax.GradientTransformation, ...]:
    """The parts of a chain: scaling by rate and schedule before the momentum, or after it."""
    checks.check_fraction("momentum", momentum, "0.0 is SGD without momentum.")
    checks.check_flag("nesterov", nesterov)
    checks.check_flag("scale_before_momentum", scale_before_momentum)
    step = optax.scale_by_schedule(product_schedule(learning_rate, schedule))
    trace = in_float32(optax.trace(momentum, nesterov), narrow=cast_first_moment)
    negate = optax.scale(-1.0)
    return (step, trace, negate) if scale_before_momentum else (trace, step, negate)
