import pytest

from training.fitting import epochs


@pytest.fixture(scope="module", autouse=True)
def no_compilation():
    """XLA compiles for seconds, and is tested by the training of the suite's model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epochs, "IS_FUSED", False)
        yield
