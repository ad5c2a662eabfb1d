"""One thread per test process: the same numbers, and the same speed, on every machine."""

import os

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import torch  # noqa: E402  (OpenMP reads the variables when it starts)

torch.set_num_threads(1)
