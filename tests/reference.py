"""NumPy float64 references, written from the paper's algorithms; no code of the package.

θ parameters, α base rate, η_t schedule multiplier, λ decay per step, λ′ (`l2`) the L2
coefficient, t counted from 0. `gradient(θ, t)` is the batch gradient ∇f_t(θ).
"""

from collections.abc import Callable, Sequence

import numpy as np

Gradient = Callable[[np.ndarray, int], np.ndarray]


def sgd(
    theta: np.ndarray,
    gradient: Gradient,
    eta: Sequence[float],
    alpha: float,
    *,
    l2: float = 0.0,
    decay: Sequence[float] | None = None,
    momentum: float = 0.9,
    nesterov: bool = False,
    scale_before_momentum: bool = True,
) -> np.ndarray:
    """Algorithm 1: the parameters after every step. `decay` is c_t = λ_t η_t."""
    decay = decay if decay is not None else [0.0] * len(eta)
    buffer, path = np.zeros_like(theta), []
    for t in range(len(eta)):
        g = gradient(theta, t) + l2 * theta
        before, after = (eta[t] * alpha, 1.0) if scale_before_momentum else (1.0, eta[t] * alpha)
        buffer = momentum * buffer + before * g
        step = before * g + momentum * buffer if nesterov else buffer
        theta = theta - after * step - decay[t] * theta
        path.append(theta)
    return np.stack(path)


def adam(
    theta: np.ndarray,
    gradient: Gradient,
    eta: Sequence[float],
    alpha: float,
    *,
    l2: float = 0.0,
    decay: Sequence[float] | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    nesterov: bool = False,
) -> np.ndarray:
    """Algorithm 2: the parameters after every step. `decay` is c_t = λ_t η_t."""
    decay = decay if decay is not None else [0.0] * len(eta)
    m, v, path = np.zeros_like(theta), np.zeros_like(theta), []
    for t in range(len(eta)):
        g = gradient(theta, t) + l2 * theta
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        v_hat = v / (1 - b2 ** (t + 1))
        m_hat = m / (1 - b1 ** (t + 1))
        if nesterov:  # Dozat 2016
            m_hat = b1 * m / (1 - b1 ** (t + 2)) + (1 - b1) * g / (1 - b1 ** (t + 1))
        theta = theta - eta[t] * alpha * m_hat / (np.sqrt(v_hat) + eps) - decay[t] * theta
        path.append(theta)
    return np.stack(path)


def warm_restarts(first: int, mult: float, eta_min: float, steps: int) -> list[float]:
    """η_t of SGDR, counted cycle by cycle."""
    eta: list[float] = []
    cycle = 0
    while len(eta) < steps:
        length = round(first * mult**cycle)
        angles = np.pi * np.arange(length) / length
        eta += list(eta_min + 0.5 * (1 - eta_min) * (1 + np.cos(angles)))
        cycle += 1
    return eta[:steps]


def normalized_decay(norm: float, first: int, mult: float, steps: int) -> list[float]:
    """λ_i = λ_norm / √(steps of the cycle)."""
    decay: list[float] = []
    cycle = 0
    while len(decay) < steps:
        length = round(first * mult**cycle)
        decay += [norm / np.sqrt(length)] * length
        cycle += 1
    return decay[:steps]
