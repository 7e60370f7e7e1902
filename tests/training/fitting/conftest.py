import pytest

from training.fitting import trainer


@pytest.fixture(scope="module", autouse=True)
def no_compilation():
    """XLA compiles for seconds, and is tested by the training of the suite's model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "IS_FUSED", False)
        yield
