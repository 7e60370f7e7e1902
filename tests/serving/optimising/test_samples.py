import numpy as np
import pytest

from serving.errors import ConfigurationError
from serving.optimising.samples import read_samples
from serving.tensors import Tensor, TensorSignature


def signature(*inputs):
    return TensorSignature(inputs, (Tensor("y", "FP32", (-1, 2)),), is_batchable=False)


ROWS = signature(Tensor("x", "FP32", (-1, 4)))


def written(folder, name="samples.npz", **arrays):
    path = folder / name
    np.savez(path, **arrays)
    return path


def drawn(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_rows_become_calls_of_one_row(tmp_path):
    x = drawn(5, 4)
    samples = read_samples(written(tmp_path, x=x, labels=np.arange(5)), ROWS)
    assert [call["x"].shape for call in samples.calls] == [(1, 4)] * 5
    assert samples.labels.tolist() == [0, 1, 2, 3, 4]
    assert len(samples.digest) == 64
    assert read_samples({"x": x}, ROWS).labels is None


def test_exports_format_is_taken(tmp_path):
    """Images of rows and columns, for a graph that takes them flat."""
    images = np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2)
    pixels = signature(Tensor("pixels", "UINT8", (-1, 4)))
    samples = read_samples(written(tmp_path, images=images, labels=[0, 1, 0]), pixels)
    assert samples.calls[1]["pixels"].tolist() == [[4, 5, 6, 7]]


def test_inputs_without_a_batch_axis_have_their_samples_in_front(tmp_path):
    several = signature(
        Tensor("state", "FP32", (2, -1, 3)),
        Tensor("rate", "INT64", ()),
        Tensor("x", "FP32", (1, 4)),
    )
    path = written(tmp_path, state=drawn(5, 2, 1, 3), rate=np.int64(16_000), x=drawn(5, 4))
    call = read_samples(path, several).calls[2]
    assert (call["state"].shape, call["rate"].item(), call["x"].shape) == (
        (2, 1, 3),
        16_000,
        (1, 4),
    )


def test_folder_has_files_of_other_sizes(tmp_path):
    lengths = signature(Tensor("t", "INT64", (-1, -1)))
    for number, size in enumerate((3, 5)):
        written(tmp_path, f"{number}.npz", t=np.arange(2 * size).reshape(2, size), labels=[0, 1])
    samples = read_samples(tmp_path, lengths)
    assert [call["t"].shape for call in samples.calls] == [(1, 3), (1, 3), (1, 5), (1, 5)]
    assert samples.labels.tolist() == [0, 1, 0, 1]


def test_texts_are_read(tmp_path):
    texts = signature(Tensor("text", "BYTES", (-1,)))
    samples = read_samples(written(tmp_path, text=np.array(["a good film", "no"])), texts)
    assert [call["text"].tolist() for call in samples.calls] == [["a good film"], ["no"]]


def test_copies_are_left_out(tmp_path):
    """Else a call that scales are calibrated with would be held out, too."""
    x = drawn(5, 4)
    samples = read_samples({"x": np.concatenate([x, x]), "labels": [*range(5)] * 2}, ROWS)
    assert (len(samples), samples.num_copies) == (5, 5)
    assert samples.labels.tolist() == [0, 1, 2, 3, 4]


def test_split_is_repeated_with_its_seed_and_shares_nothing():
    samples = read_samples({"x": drawn(30, 4)}, ROWS)
    rows = [[call["x"].tobytes() for call in part.calls] for part in samples.split(3)]
    assert list(map(len, rows)) == [10, 20]
    assert not {*rows[0]} & {*rows[1]}
    assert rows == [[call["x"].tobytes() for call in part.calls] for part in samples.split(3)]
    assert rows != [[call["x"].tobytes() for call in part.calls] for part in samples.split(4)]


def test_arrays_beside_the_inputs_are_for_a_score(tmp_path):
    samples = read_samples({"x": drawn(3, 4), "boxes": drawn(3, 2)}, ROWS)
    assert samples.others[1]["boxes"].shape == (2,)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"z": drawn(3, 4), "w": drawn(3)}, r"array for each input \(x FP32 \[N, 4\]\), got w, z"),
        ({"x": drawn(3, 5)}, r"expected x FP32 \[N, 4\], got the shape \[1, 5\]"),
        ({"x": drawn(3, 4, 2)}, "samples along the first axis"),
        ({"x": np.float32(3)}, "samples along the first axis"),
        ({"x": np.ones((3, 4), np.complex64)}, "expected x FP32"),
        ({"x": np.full((3, 4), np.nan, np.float32)}, "numbers that are not finite"),
        ({"x": np.ones((3, 4), np.float32)}, "all 3 samples are alike"),
        ({"x": drawn(1, 4)}, "at least 2 samples"),
        ({"x": drawn(0, 4)}, "as many samples of each input"),
        ({"x": drawn(3, 4), "labels": [0, 1]}, "labels of shape"),
        ({"x": drawn(3, 4), "labels": [0.5, 1, 1]}, "integers from 0"),
        ({"x": drawn(3, 4), "labels": [0, -1, 1]}, "labels from 0, got -1"),
    ],
)
def test_samples_that_do_not_fit_are_refused(arrays, reason):
    with pytest.raises(ConfigurationError, match=reason):
        read_samples(arrays, ROWS)


def test_unlike_numbers_of_samples_are_refused():
    two = signature(Tensor("a", "FP32", (-1, 2)), Tensor("b", "FP32", (-1, 2)))
    with pytest.raises(ConfigurationError, match="as many samples of each input"):
        read_samples({"a": drawn(3, 2), "b": drawn(4, 2)}, two)


def test_files_that_are_none_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("text")
    np.save(tmp_path / "one.npy", drawn(3))
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], object))
    (tmp_path / "empty").mkdir()
    for name, reason in (
        ("none.npz", "No such file"),
        ("text.npz", "expected an NPZ file"),
        ("one.npy", "one array, without a name"),
        ("pickled.npz", "save texts as an array of str"),
        ("empty", r"expected files \*.npz"),
    ):
        with pytest.raises(ConfigurationError, match=reason):
            read_samples(tmp_path / name, ROWS)


def test_all_files_of_a_folder_have_labels_or_none_has(tmp_path):
    written(tmp_path, "1.npz", x=drawn(3, 4), labels=[0, 1, 2])
    written(tmp_path, "2.npz", x=drawn(2, 4) + 9)
    with pytest.raises(ConfigurationError, match=r"2\.npz: expected labels, as the files before"):
        read_samples(tmp_path, ROWS)
    written(tmp_path, "0.npz", x=drawn(2, 4) + 5)
    (tmp_path / "2.npz").unlink()
    with pytest.raises(ConfigurationError, match=r"1\.npz: labels, which the files before it lack"):
        read_samples(tmp_path, ROWS)


def test_some_of_the_samples_are_whole():
    given = {"x": drawn(5, 4), "labels": np.arange(5), "boxes": np.arange(10).reshape(5, 2)}
    samples = read_samples(given, ROWS)
    some = samples.take([3, 1])
    assert [call["x"].tolist() for call in some.calls] == [
        given["x"][[at]].tolist() for at in (3, 1)
    ]
    assert some.labels is not None
    assert some.labels.tolist() == [3, 1]
    assert [each["boxes"].tolist() for each in some.others] == [[6, 7], [2, 3]]
    assert (some.digest, some.num_copies, len(some)) == (samples.digest, 0, 2)


def test_only_input_may_have_any_name():
    x = drawn(3, 4)
    samples = read_samples({"data": x}, ROWS)
    assert [call["x"].tolist() for call in samples.calls] == [[row] for row in x.tolist()]
