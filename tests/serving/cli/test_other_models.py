"""The command line on models that are not digits'."""

import csv
import io
import json
import re

import pytest
from PIL import Image

from serving.__main__ import main
from serving.tensors import Signature
from tests.serving.model import templates
from tests.support.servers import running_server


def test_pictures_are_classified_by_other_models(other_models, tmp_path, images, capsys):
    pets = Signature((28, 28, 1), 3, ("cat", "dog", "fish"))
    templates.publish(tmp_path, "pets", pets)
    picture = tmp_path / "7.png"
    Image.fromarray(images[0].reshape(28, 28)).save(picture)
    classify = ["classify", str(picture), "--models"]
    assert main([*classify, str(other_models), "--model", "letters"]) == 0
    label = capsys.readouterr().out.removeprefix(f"{picture}: ").partition(" (")[0]
    assert label in templates.LETTERS.labels
    assert main([*classify, str(tmp_path), "--model", "pets"]) == 0
    label = capsys.readouterr().out.removeprefix(f"{picture}: ").partition(" (")[0]
    assert label in pets.labels
    assert main([*classify, str(tmp_path), "--model", "pets", "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert pets.labels[line["digit"]] == line["label"] == label
    assert main([*classify, str(tmp_path), "--model", "pets", "--csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["digit"], row["label"]) == (str(line["digit"]), label)


@pytest.mark.parametrize("name", ["letters", "glyphs"])
def test_info_shows_the_signature(other_models, name, capsys):
    signature = {"letters": templates.LETTERS, "glyphs": templates.GLYPHS}[name]
    with running_server(other_models, "--model", name) as server:
        for source in (("--models", str(other_models)), ("--target", server.address)):
            command = ["info", *source, "--model", name]
            assert main(command) == 0
            facts = dict(
                re.split("  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines()
            )
            assert facts["signature"] == str(signature)
            assert facts.get("labels", "") == ", ".join(signature.labels)
            assert main([*command, "--json"]) == 0
            assert json.loads(capsys.readouterr().out)["signature"] == signature.document()
