"""What every test shares: property tests that neither flake on a busy machine nor change from run to run."""

import os

from hypothesis import settings

from bench.environment import wait_briefly

wait_briefly(os.environ)  # before anything imports torch

settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")
