import gc
import json

import numpy as np
import pytest

from serving import Classifier
from serving.batching.runs import Group, Result
from serving.errors import CorruptModel, DeviceError
from tests.support.gpu import NO_GPU
from tests.support.published import publish


def test_accuracy_is_the_manifests_to_the_image(classifier, mnist_sample):
    predictions = classifier.classify(mnist_sample.test_images)
    accuracy = float((predictions.digits == mnist_sample.test_labels).mean())
    assert accuracy == pytest.approx(classifier.model_info().test_accuracy, abs=1e-9)
    assert accuracy > 0.8


def test_predictions_have_the_promised_shapes_and_dtypes(classifier, images):
    predictions = classifier.classify(images[:3])
    assert len(predictions) == 3
    assert predictions.digits.shape == (3,)
    num_classes = classifier.signature.num_classes
    assert predictions.digits.dtype == (np.uint8 if num_classes <= 256 else np.uint16)
    assert predictions.probabilities.shape == (3, num_classes)
    assert predictions.probabilities.dtype == np.float32
    np.testing.assert_allclose(predictions.probabilities.sum(axis=1), 1, atol=1e-6)
    assert predictions.model_version == "1"


@pytest.mark.parametrize("num_images", [1, 127, 129, 511, 513, 600])
def test_split_requests_equal_single_images(classifier, images, num_images):
    images = np.resize(images, (num_images, images.shape[1]))
    together = classifier.classify(images)
    one_by_one = [classifier.classify(image[None]).digits[0] for image in images]
    assert together.digits.tolist() == one_by_one


def test_version_without_a_manifest_is_passed_over(model_dir):
    publish(model_dir, "2", (model_dir / "1" / "model.onnx").read_bytes())
    (model_dir / "2" / "manifest.json").unlink()
    with Classifier.load(model_dir) as classifier:
        assert classifier.version == "1"


def test_int8_answers_as_fp32_does_whatever_the_batch(classifier, models, images):
    with Classifier.load(models / "digits", precision="int8") as int8:
        info = int8.model_info()
        together = int8.classify(images)
        alone = int8.classify(images[7:8])
    assert (info.precision, info.device) == ("int8", "cpu")
    assert together.digits.tolist() == classifier.classify(images).digits.tolist()
    np.testing.assert_array_equal(alone.probabilities[0], together.probabilities[7])


def test_int8_is_checked_on_its_own_golden_samples(model_dir):
    path = model_dir / "1" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["golden"]["int8_probabilities"].reverse()
    path.write_text(json.dumps(manifest))
    Classifier.load(model_dir).close()
    with pytest.raises(CorruptModel, match="golden samples"):
        Classifier.load(model_dir, version="1", precision="int8")


@pytest.mark.usefixtures("no_gpu")
def test_cuda_that_cannot_be_used_is_an_error_not_a_fallback(models):
    with pytest.raises(DeviceError, match=NO_GPU):
        Classifier.load(models / "digits", device="cuda")
    with Classifier.load(models / "digits", device="auto") as classifier:
        assert classifier.model_info().device == "cpu"


@pytest.mark.parametrize("num_images", [3, 600])  # at once; in several runs
def test_classified_images_do_not_wait_for_the_garbage_collector(classifier, images, num_images):
    images = np.resize(images, (num_images, images.shape[1]))
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        classifier.classify(images)
        gc.collect()
        assert not [each for each in gc.garbage if isinstance(each, (Group, Result))]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
