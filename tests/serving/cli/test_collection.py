"""`classify --collect`: unsure pictures are kept, to be labelled."""

from pathlib import Path

import pytest
from PIL import Image

from serving.__main__ import main
from serving.cli.collection import Collection
from serving.images import Images


@pytest.fixture
def scans(tmp_path: Path, images: Images) -> Path:
    """Two folders, each with another picture of the same name."""
    folder = tmp_path / "scans"
    for name, image in zip(("a/x.png", "b/x.png"), images, strict=False):
        (folder / name).parent.mkdir(parents=True)
        Image.fromarray(image.reshape(28, 28)).save(folder / name)
    return folder


def collect(models: Path, scans: Path, own: Path, below: str = "1") -> int:
    options = ["--models", str(models), "--reject-below", below, "--collect", str(own)]
    return main(["classify", str(scans), *options])


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_unsure_pictures_are_copied_under_their_guess(
    models: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own"
    assert collect(models, scans, own) == 0
    output = capsys.readouterr()
    guesses = [line.partition("perhaps ")[2][0] for line in output.out.splitlines()]
    expected = [(scans / name / "x.png").read_bytes() for name in ("a", "b")]
    if guesses[0] == guesses[1]:
        names = [f"unsure/{guesses[0]}/x.png", f"unsure/{guesses[0]}/x-2.png"]
    else:
        names = [f"unsure/{guess}/x.png" for guess in guesses]
    assert files_in(own) == dict(zip(names, expected, strict=True))
    assert output.err == f"2 pictures kept in {own}\n"


def test_one_picture_is_one(
    models: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert collect(models, scans / "a", tmp_path / "own") == 0
    assert capsys.readouterr().err == f"1 picture kept in {tmp_path / 'own'}\n"


def test_picture_that_was_labelled_is_not_kept_again(
    models: Path, scans: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    collect(models, scans, own)
    for number, name in enumerate(files_in(own)):
        (own / "3").mkdir(exist_ok=True)
        (own / name).rename(own / "3" / f"renamed-{number}.png")
    before = files_in(own)
    collect(models, scans, own)
    assert files_in(own) == before


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "x.png").write_bytes(bytes([number]))
    others = tmp_path / "own" / "unsure" / "7" / "x.png"
    others.parent.mkdir(parents=True)
    others.write_bytes(b"another one's")
    collection = Collection(tmp_path / "own")
    for number in (0, 1, 2, 1):
        collection.add(tmp_path / str(number) / "x.png", 7)
    assert collection.num_kept == 3
    assert files_in(tmp_path / "own" / "unsure" / "7") == {
        "x.png": b"another one's", "x-2.png": b"\0", "x-3.png": b"\1", "x-4.png": b"\2",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("x.png", "--collect", "own"), "--reject-below"),
        (("-", "--reject-below", "0.9", "--collect", "own"), "stdin"),
        (("x.png", "--reject-below", "0.9", "--collect", "/dev/null/own"), "Not a directory"),
    ],
)
def test_collection_that_can_keep_nothing_is_one_line(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
