import io
import json
import zipfile

import numpy as np
import pytest

from serving.errors import CorruptModel
from serving.model.agreement import AgreementLimits, AnswerComparison
from serving.model.golden import read_golden
from serving.model.loading import load_model
from serving.publishing.golden import golden_entry, golden_file
from serving.publishing.manifest import digests, render
from tests.serving.model.graphs import two_layers

COMPARISON = AnswerComparison({"y": "values"})


def rows(num=12):
    x = np.random.default_rng(1).normal(size=(num, 4)).astype(np.float32)
    return [{"x": each[None]} for each in x]


def answered(calls, factor=1.0):
    layers = {each.name: np.frombuffer(each.raw_data, np.float32).reshape(each.dims)
              for each in two_layers().graph.initializer}  # fmt: skip
    return [
        {"y": (np.maximum(call["x"] @ layers["first"], 0) @ layers["second"] * factor).astype("f4")}
        for call in calls
    ]


def publish(folder, answers, calls=None, version="1", **changes):
    """Write a version of any model with golden calls."""
    calls = rows() if calls is None else calls
    files = {
        "model.onnx": two_layers().SerializeToString(),
        "golden.npz": golden_file(calls, answers),
    }
    entry = golden_entry(COMPARISON, gated_on="a processor (avx512_vnni), cpu")
    contents = {"files": digests(files), "golden": entry} | changes
    place = folder / "net" / version
    place.mkdir(parents=True)
    for name, data in {**files, "manifest.json": render("net", version, contents)}.items():
        (place / name).write_bytes(data)
    return folder / "net"


def test_version_that_answers_as_its_writer_is_served(tmp_path):
    model = load_model(publish(tmp_path, answered(rows())))
    assert model.tensors.is_batchable
    assert model.manifest.golden is None  # the calls take no memory once they are compared
    assert model.manifest.unknown == ()


def test_version_that_answers_otherwise_is_refused_with_where_it_was_gated(tmp_path):
    folder = publish(tmp_path, answered(rows(), 1.5))
    with pytest.raises(CorruptModel) as refused:
        load_model(folder, "1")
    assert str(refused.value).startswith(
        "version 1 answers its golden calls otherwise here than on a processor (avx512_vnni), cpu: "
        "output y: "
    )


def test_version_below_serves_where_the_newest_answers_otherwise(tmp_path, caplog):
    publish(tmp_path, answered(rows()))
    folder = publish(tmp_path, answered(rows(), 1.5), version="2")
    assert load_model(folder).version == "1"
    assert "skipped version 2: version 2 answers its golden calls otherwise here" in caplog.text


def test_golden_calls_that_fail_refuse_the_version(tmp_path):
    calls = [{"x": np.zeros((1, 5), np.float32)}]
    folder = publish(tmp_path, [{"y": np.zeros((1, 3), np.float32)}], calls)
    with pytest.raises(CorruptModel, match="fails on golden call 0"):
        load_model(folder, "1")


def test_changed_golden_file_is_refused(tmp_path):
    folder = publish(tmp_path, answered(rows()))
    (folder / "1" / "golden.npz").write_bytes(golden_file(rows(3), answered(rows(3))))
    with pytest.raises(CorruptModel, match=r"1/golden\.npz: expected SHA-256"):
        load_model(folder, "1")
    (folder / "1" / "golden.npz").unlink()
    with pytest.raises(CorruptModel, match=r"1/golden\.npz"):
        load_model(folder, "1")


@pytest.mark.parametrize(
    "golden",
    [
        {"file": "../golden.npz"},
        {"file": "golden.npz"},
        {"file": "golden.npz", "outputs": {"y": "guess"}, "limits": {}},
        {**golden_entry(COMPARISON), "gated_on": "a\nline"},
        {**golden_entry(COMPARISON), "gated_on": 3},
    ],
)
def test_malformed_golden_field_is_refused(tmp_path, golden):
    folder = publish(tmp_path, answered(rows()), golden=golden)
    with pytest.raises(CorruptModel, match=r"manifest\.json is malformed"):
        load_model(folder, "1")


def test_golden_file_needs_its_digest(tmp_path):
    folder = publish(tmp_path, answered(rows()))
    path = folder / "1" / "manifest.json"
    document = json.loads(path.read_text())
    del document["files"]["golden.npz"]
    path.write_text(json.dumps(document))
    with pytest.raises(CorruptModel, match=r"the digest of golden\.npz expected"):
        load_model(folder, "1")


def test_calls_of_several_shapes_and_texts_survive_the_file():
    calls = [
        {"t": np.array(["one", "two"], object), "n": np.zeros((1, 2), np.int64)},
        {"t": np.array([b"three"], object), "n": np.zeros((1, 3), np.int64)},
    ]
    answers = [{"y": np.full((1, 2), each)} for each in (1.0, 2.0)]
    golden = read_golden(golden_file(calls, answers), COMPARISON)
    assert [call["t"].tolist() for call in golden.calls] == [["one", "two"], ["three"]]
    assert [call["n"].shape for call in golden.calls] == [(1, 2), (1, 3)]
    assert [answer["y"][0, 0] for answer in golden.answers] == [1.0, 2.0]
    assert golden.comparison.limits == AgreementLimits()


def archive(**entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in entries.items():
            file.writestr(name.replace("__", "/"), data)
    return buffer.getvalue()


def both(x, y, output="y"):
    return archive(**{"0__input__x.npy": x, f"0__output__{output}.npy": y})


def npy(array, allow_pickle=False):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def lying():
    """A header that claims a thousand times what follows."""
    data = npy(np.zeros(9, np.float32))
    return data.replace(b"(9,), }   ", b"(9000,), }", 1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no archive",
        archive(),
        archive(one=npy(np.zeros(3))),
        archive(**{"0__input__x.npy": npy(np.zeros((2, 1)))}),
        both(npy(np.zeros((2, 1))), npy(np.zeros((3, 1)))),
        both(npy(np.zeros((2, 1))), npy(np.zeros((2, 1))), output="z"),
        both(npy(np.zeros(())), npy(np.zeros(()))),
        both(lying(), npy(np.zeros(9))),
        both(npy(np.array([{}], object), True), npy(np.zeros(1))),
        both(b"\x93NUMPY\x09\x00", npy(np.zeros(1))),
        both(bytes(65 << 20), npy(np.zeros(1))),
    ],
)  # fmt: skip
def test_malformed_golden_file_is_refused(data):
    with pytest.raises(CorruptModel, match=r"golden\.npz is malformed"):
        read_golden(data, COMPARISON)


def test_golden_file_has_64_mib_with_all_that_is_in_it():
    """A small archive may claim any size."""
    with pytest.raises(CorruptModel, match="ValueError: at most 67108864 bytes of arrays expected"):
        read_golden(both(bytes(64 << 20), npy(np.zeros(1))), COMPARISON)
    with pytest.raises(CorruptModel, match="ValueError: 67108865 bytes, at most 67108864 expected"):
        read_golden(bytes((64 << 20) + 1), COMPARISON)
    with pytest.raises(CorruptModel, match="BadZipFile"):
        read_golden(bytes(64 << 20), COMPARISON)


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_array_of_either_format_is_read(version):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.float32([[3.0]]), version)
    golden = read_golden(both(npy(np.float32([[2.0]])), buffer.getvalue()), COMPARISON)
    assert [call["x"].tolist() for call in golden.calls] == [[2.0]]
    assert [answer["y"].tolist() for answer in golden.answers] == [[3.0]]
