"""The requests that other projects' clients send, as a file for their environments."""

from pathlib import Path

import numpy as np
import pytest

from serving import Classifier
from serving.predictions import Images


@pytest.fixture(scope="session")
def samples(
    tmp_path_factory: pytest.TempPathFactory, classifier: Classifier, images: Images
) -> Path:
    """Images and the probabilities that are expected for them."""
    path = tmp_path_factory.mktemp("samples") / "samples.npz"
    probabilities = classifier.classify(images).probabilities
    np.savez(path, images=images, probabilities=probabilities)
    return path
