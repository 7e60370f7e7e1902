"""The requests that other projects' clients send, as a file for their environments."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def samples(tmp_path_factory, classifier, images):
    """Images and the probabilities that are expected for them."""
    path = tmp_path_factory.mktemp("samples") / "samples.npz"
    probabilities = classifier.classify(images).probabilities
    np.savez(path, images=images, probabilities=probabilities)
    return path
