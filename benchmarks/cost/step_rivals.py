"""What JAX's step is measured against: PyTorch's AdamW, and the machine's own limit.

Both live in a process of their own, which takes a step when it is asked to, so that they
are interleaved with JAX's without sharing its threads.
"""

import contextlib
import ctypes
import math
import multiprocessing
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

RATE, DECAY = 1e-3, 1e-4
# Reads four numbers for each parameter and writes three of them: the traffic of AdamW.
LIMIT_SOURCE = """
void limit(long n, const float *g, float *p, float *m, float *v) {
  #pragma omp parallel for simd
  for (long i = 0; i < n; i++) { p[i] += g[i]; m[i] += g[i]; v[i] += g[i]; }
}
"""


@contextlib.contextmanager
def rivals(shapes: dict[str, tuple[int, ...]], gpu: bool) -> Iterator[dict[str, Callable]]:
    """Functions that take one step and return its seconds; only of what is installed."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(there, list(shapes.values()), gpu), daemon=True)
    process.start()
    there.close()  # so that a dead process is an error here

    def step(name: str) -> float:
        here.send(name)
        return here.recv()

    try:
        yield {name: lambda name=name: step(name) for name in here.recv()}
    finally:
        here.send(None)
        process.join()


def _serve(connection: Any, shapes: list[tuple[int, ...]], gpu: bool) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # idle threads leave the cores to JAX
    steps = {**_torch_steps(shapes, gpu), **_limit_step(sum(map(math.prod, shapes)), gpu)}
    connection.send(list(steps))
    while (name := connection.recv()) is not None:
        start = time.perf_counter()
        steps[name]()
        connection.send(time.perf_counter() - start)


def _torch_steps(shapes: list[tuple[int, ...]], gpu: bool) -> dict[str, Callable[[], None]]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {}
    device = "cuda" if gpu else "cpu"
    torch.set_num_threads(os.cpu_count() or 1)

    def make(**implementation: bool) -> Callable[[], None]:
        params = [torch.full(shape, 0.1, device=device, requires_grad=True) for shape in shapes]
        for p in params:
            p.grad = torch.full_like(p, 1e-3)
        optimizer = torch.optim.AdamW(params, lr=RATE, weight_decay=DECAY / RATE, **implementation)

        def step() -> None:
            optimizer.step()
            if gpu:
                torch.cuda.synchronize()

        return step

    return {"torch, fused": make(fused=True), "torch, foreach": make(foreach=True)}


def _limit_step(size: int, gpu: bool) -> dict[str, Callable[[], None]]:
    """Needs a C compiler, and memory that it can reach."""
    if gpu:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "limit.c"), Path(folder, "limit.so")
        source.write_text(LIMIT_SOURCE)
        flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
        try:
            subprocess.run(["cc", *flags, "-o", library, source], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return {}  # no compiler here
        limit = ctypes.CDLL(str(library)).limit
    # Arrays that begin at the same place of a page would compete for the same lines of the cache.
    arrays = [np.full(size + 1000 * i, 0.1, np.float32)[-size:] for i in range(4)]
    pointers = [x.ctypes.data_as(ctypes.c_void_p) for x in arrays]

    def step() -> None:
        limit(ctypes.c_long(size), *pointers)

    return {"machine limit": step}
