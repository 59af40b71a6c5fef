"""`explain_weight_decay`: verdicts (explain), measurements (probe), words (text, report)."""

from optax_decoupled._explain.explain import explain_weight_decay
from optax_decoupled._explain.report import DecayReport, DecayRow

__all__ = ["DecayReport", "DecayRow", "explain_weight_decay"]
