"""One thread a test process, and no network for W&B: tests run side by side, and their figures do not depend on each other."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, here and in what tests start
os.environ.setdefault("WANDB_MODE", "offline")
