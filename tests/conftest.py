"""What every test shares: property tests that neither flake on a busy machine nor change from run to run."""

from hypothesis import settings

settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")
