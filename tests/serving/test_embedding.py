"""A classifier inside somebody else's program: exceptions, forks, exits, pickles, event loops."""

import asyncio
import gc
import pickle
import shutil
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from digit_classifier import PRETRAINED, AsyncClassifier, Classifier
from digit_classifier.async_local import AsyncLocalDigits
from digit_classifier.local import LocalDigits
from digit_classifier.predictions import DIGITS
from serving.batching.run import Group, Result
from serving.config import BatchingConfig
from serving.embedded import AsyncModel, Model
from serving.errors import CorruptModel, ModelError, Unavailable
from serving.model import repository
from serving.model.fork import native_run
from serving.model.loaded import LoadedModel
from tests.support.fakes import TIMEOUT_S, FakeModel, GatedModel, images_of
from tests.support.published import edit_manifest, publish
from tests.support.servers import FORKS, ended


class Interrupt(BaseException):
    """Like KeyboardInterrupt, but never pytest's."""


def raising_at(number):
    """A trace function that raises at the line of that number, and whether it has."""
    lines = [0]

    def trace(frame, event, _):
        if event == "line":
            lines[0] += 1
            if lines[0] == number + 1:
                raise Interrupt
        return trace

    return trace, lambda: lines[0] > number


@pytest.mark.parametrize("num_images", [1, 300])  # one run; several, with helpers
def test_exception_at_any_line_leaves_nothing_held(classifier, images, num_images):
    few = images[:num_images]
    expected = classifier.classify(few).digits
    held = native_run()
    number, has_raised = 0, True
    before = sys.gettrace()
    with ThreadPoolExecutor(4) as others:
        while has_raised:
            trace, raised = raising_at(number)
            sys.settrace(trace)
            try:
                classifier.classify(few)
            except Interrupt:
                pass
            finally:
                sys.settrace(before)
            answers = [others.submit(classifier.classify, few) for _ in range(4)]
            for answer in answers:
                np.testing.assert_array_equal(answer.result(TIMEOUT_S).digits, expected)
            assert others.submit(is_free, held).result(), number
            has_raised, number = raised(), number + 1
    assert number > 10


def is_free(lock):
    if not lock.acquire(timeout=TIMEOUT_S):
        return False
    lock.release()
    return True


def run_script(code, models):
    """Run a program that has `classifier` and `images`, and say how it ended."""
    begin = f"""
        import os, signal, sys, threading, time
        import numpy as np
        from digit_classifier import Classifier
        classifier = Classifier.load({str(models / "digits")!r}, device="cpu")
        images = np.zeros((600, 784), np.uint8)
    """
    program = textwrap.dedent(begin) + textwrap.dedent(code)
    return ended([sys.executable, *FORKS, "-c", program])


FORK = """
    def classify_forever():
        while True:
            classifier.classify(images)

    classifier.classify(images)
    for _ in range(4):
        threading.Thread(target=classify_forever, daemon=True).start()
    for _ in range(20):
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # ends a child that hangs
            answers = []
            def classify():
                answers.append(len(classifier.classify(images)))
            threads = [threading.Thread(target=classify) for _ in range(8)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            os._exit(answers != [600] * 8)
        assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.slow
def test_classifier_made_before_a_fork_answers_in_the_child(models):
    done = run_script(FORK, models)
    assert (done.returncode, done.stderr) == (0, "")


EXITS = {
    "end": "",
    "sys.exit": "sys.exit(0)",
    "atexit": "import atexit; atexit.register(lambda: classifier.classify(images))",
}


@pytest.mark.parametrize("num_images", [1, 600])
@pytest.mark.parametrize("way", list(EXITS))
def test_exit_with_calls_running_is_clean(models, way, num_images):
    code = f"""
        def classify_forever():
            while True:
                classifier.classify(images[:{num_images}])

        for _ in range(8):
            threading.Thread(target=classify_forever, daemon=True).start()
        time.sleep(0.1)
        {EXITS[way]}
    """
    done = run_script(code, models)
    assert (done.returncode, done.stderr) == (0, "")


def test_forgotten_classifiers_leave_no_threads(models, images):
    before = set(threading.enumerate())
    for _ in range(3):
        Classifier.load(models / "digits", device="cpu").classify(images)
    gc.collect()
    assert set(threading.enumerate()) <= before


def test_pickled_classifier_is_loaded_again_by_path_version_and_settings(
    models, tmp_path, images, monkeypatch
):
    shutil.copytree(models, tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    batching = BatchingConfig(max_batch_size=100)
    with Classifier.load("models/digits", precision="int8", batching=batching) as classifier:
        pickled = pickle.dumps(classifier)
    onnx = (tmp_path / "models/digits/1/model.onnx").read_bytes()
    publish(tmp_path / "models/digits", "2", onnx)
    monkeypatch.chdir("/")
    with pickle.loads(pickled) as again:
        assert again.describe() == classifier.describe()
        assert len(again.classify(images)) == len(images)
    with pickle.loads(pickle.dumps(Classifier.pretrained("cpu"))) as again:
        assert len(again.classify(images)) == len(images)


@pytest.fixture
def engine(models):
    engine = GatedModel()
    yield engine
    engine.open(1000)


@pytest.fixture
def gated(engine, models, monkeypatch):
    """A classifier of one core, whose runs wait for the test."""
    monkeypatch.setattr("serving.embedded.usable_cores", lambda: 1)
    manifest = repository.load_manifest(models / "digits" / "1")
    model = AsyncModel(LoadedModel(engine, manifest, "fp32"), BatchingConfig(max_batch_size=2))
    return AsyncClassifier(AsyncLocalDigits(model))


def test_classifier_without_a_path_cannot_be_pickled(models):
    with Model.load(models / "digits", device="cpu") as model:
        classifier = Classifier(LocalDigits(model))
        with pytest.raises(TypeError, match="load"):
            pickle.dumps(classifier)


async def test_awaited_classification_leaves_the_loop_free(gated, engine):
    task = asyncio.create_task(gated.classify(images_of(7)))
    await asyncio.to_thread(engine.wait_until_running)
    assert not task.done()  # and this coroutine goes on meanwhile
    engine.open()
    assert [prediction.digit for prediction in await task] == [7]


def test_cancelled_classification_begins_no_further_run(gated, engine):
    async def scenario():
        task = asyncio.create_task(gated.classify(images_of(*range(10))))
        await asyncio.to_thread(engine.wait_until_running)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        engine.open(10)

    asyncio.run(scenario())  # waits for the executor's threads
    assert engine.ran == [[0, 1]]


def test_helpers_that_fail_are_made_up_for(models, monkeypatch):
    """A run that fails on a helper is run again by the caller, who gets the error if it stays."""
    caller = threading.get_ident()

    class Engine(FakeModel):
        def classify(self, images):
            if threading.get_ident() != caller:
                raise ModelError("only on helpers")
            return super().classify(images)

    monkeypatch.setattr("serving.embedded.usable_cores", lambda: 4)
    manifest = repository.load_manifest(models / "digits" / "1")
    engine = Engine()
    model = Model(LoadedModel(engine, manifest, "fp32"), BatchingConfig(max_batch_size=2))
    with Classifier(LocalDigits(model)) as it:
        values = [number % 10 for number in range(600)]
        assert it.classify(images_of(*values)).digits.tolist() == values
        engine.poison = frozenset({42})
        with pytest.raises(RuntimeError, match="poisoned"):
            it.classify(images_of(*values, 42))


def test_helpers_take_only_cores_that_no_call_uses(models, monkeypatch):
    caller, ran_on = threading.get_ident(), set[int]()
    both_run, go_on = threading.Event(), threading.Event()
    together = threading.Barrier(2, both_run.set)

    class Engine(FakeModel):
        def classify(self, images):
            ran_on.add(threading.get_ident())
            if threading.get_ident() != caller:
                together.wait(TIMEOUT_S)  # broken, unless the other thread's call has a helper
                assert go_on.wait(TIMEOUT_S)
            return super().classify(images)

    monkeypatch.setattr("serving.embedded.usable_cores", lambda: 2)
    manifest = repository.load_manifest(models / "digits" / "1")
    images = images_of(*[number % 10 for number in range(256)])
    classifier = Classifier(LocalDigits(Model(LoadedModel(Engine(), manifest, "fp32"))))
    with classifier, ThreadPoolExecutor(1) as other:
        for _ in range(2):  # the second time shows that the first has freed its cores
            both_run.clear()
            go_on.clear()
            helped = other.submit(classifier.classify, images)
            assert both_run.wait(TIMEOUT_S)
            ran_on.clear()
            assert len(classifier.classify(images)) == 256
            assert ran_on == {caller}
            go_on.set()
            assert len(helped.result(TIMEOUT_S)) == 256


async def test_many_awaited_classifications_get_their_own_answers(models, classifier, images):
    awaited = AsyncClassifier.load(models / "digits", device="cpu")
    answers = await asyncio.gather(*(awaited.classify(image[None]) for image in images))
    expected = classifier.classify(images).digits.tolist()
    assert [answer[0].digit for answer in answers] == expected


def test_awaited_classification_raises_the_same_errors(models):
    async def closed():
        async with AsyncClassifier.load(models / "digits", device="cpu") as classifier:
            pass
        await classifier.classify(images_of(1))

    with pytest.raises(Unavailable, match="the model is closed"):
        asyncio.run(closed())


@pytest.mark.parametrize(("enough_rows", "num_runs"), [(128, 2), (256, 1)])
def test_run_is_shared_where_its_parts_take_long_enough(enough_rows, num_runs):
    runs: list[int] = []

    class Counted:
        device, max_concurrent_runs, tensors = "cpu", 2, DIGITS.tensors

        def run(self, feeds):
            runs.append(len(feeds["images"]))
            return [np.full((runs[-1], 10), 0.1, np.float32)]

    engine = Counted()
    with Model.load(PRETRAINED / "digits") as good:
        manifest = good.served.manifest
    model = LoadedModel(engine, manifest, "fp32", enough_rows=enough_rows)
    with Classifier(LocalDigits(Model(model))) as classifier:
        assert len(classifier.classify(np.zeros((256, 784), np.uint8))) == 256
    assert runs == [256 // num_runs] * num_runs


def test_accuracy_is_the_manifests_to_the_image(classifier, mnist_sample):
    predictions = classifier.classify(mnist_sample.test_images)
    accuracy = float((predictions.digits == mnist_sample.test_labels).mean())
    assert accuracy == pytest.approx(classifier.describe().test_accuracy, abs=1e-9)
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


def test_int8_answers_as_fp32_does_whatever_the_batch(classifier, models, images):
    with Classifier.load(models / "digits", precision="int8") as int8:
        info = int8.describe()
        together = int8.classify(images)
        alone = int8.classify(images[7:8])
    assert (info.precision, info.device) == ("int8", "cpu")
    assert together.digits.tolist() == classifier.classify(images).digits.tolist()
    np.testing.assert_array_equal(alone.probabilities[0], together.probabilities[7])


def test_int8_is_checked_on_its_own_golden_samples(model_dir):
    edit_manifest(model_dir, "1", lambda each: each["golden"]["int8_probabilities"].reverse())
    Classifier.load(model_dir).close()
    with pytest.raises(CorruptModel, match="golden samples"):
        Classifier.load(model_dir, version="1", precision="int8")


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
