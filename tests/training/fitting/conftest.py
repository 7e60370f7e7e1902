from collections.abc import Iterator

import pytest

from training.fitting import trainer


@pytest.fixture(scope="module", autouse=True)
def no_compilation() -> Iterator[None]:
    """XLA compiles for seconds, and is tested by the training of the suite's model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "IS_FUSED", False)
        yield
