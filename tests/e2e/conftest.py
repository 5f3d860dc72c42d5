"""Some commands run in the test's own process."""

from tests.training.conftest import fresh_accelerate_state as fresh_accelerate_state
