"""Texts by scikit-learn's converter, transformers by ONNX Runtime's optimizer, and our own exports.

    python -m venv /tmp/converters
    /tmp/converters/bin/pip install skl2onnx onnxruntime
    /tmp/converters/bin/python tests/proof/census/other_exports.py FOLDER TRANSFORMER.onnx...

The models are written to FOLDER/texts, FOLDER/optimized.
"""

import sys
from pathlib import Path
from typing import Any

TEXTS = ["red green", "green blue a", "blue red", "a black cat"] * 10
LABELS = [0, 1, 1, 0] * 10


def write_texts(folder: Path) -> None:
    """Write classifiers of texts."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import StringTensorType
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline

    folder.mkdir(parents=True, exist_ok=True)
    for vectorizer in (
        CountVectorizer(),
        TfidfVectorizer(),
        TfidfVectorizer(ngram_range=(1, 2)),
        CountVectorizer(lowercase=False),
        TfidfVectorizer(norm="l1"),
    ):
        for model in (LogisticRegression(), MultinomialNB()):
            for axes in ([None], [None, 1]):
                pipeline = make_pipeline(vectorizer, model).fit(TEXTS, LABELS)
                name = f"{type(vectorizer).__name__}-{len(str(vectorizer))}-{type(model).__name__}"
                try:
                    made = to_onnx(pipeline, initial_types=[("x", StringTensorType(axes))],
                                   target_opset={"": 18, "ai.onnx.ml": 3})  # fmt: skip
                except Exception as err:  # converters raise anything
                    print(f"{name}: {type(err).__name__}: {str(err)[:100]!r}")
                    continue
                (folder / f"{name}-{len(axes)}.onnx").write_bytes(made.SerializeToString())


def write_optimized(folder: Path, paths: list[str]) -> None:
    """Write transformers as ONNX Runtime's own optimizer makes them for a CPU."""
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    folder.mkdir(parents=True, exist_ok=True)
    for path in map(Path, paths):
        for kind in ("bert", "gpt2", "vit"):
            options: Any = FusionOptions(kind)
            target = folder / f"{path.stem}-{kind}.onnx"
            try:
                made = optimizer.optimize_model(str(path), kind, 4, 32, options, opt_level=0)
                made.save_model_to_file(str(target))
            except Exception as err:
                print(f"{target.stem}: {type(err).__name__}: {str(err)[:100]!r}")


if __name__ == "__main__":
    write_texts(Path(sys.argv[1]) / "texts")
    write_optimized(Path(sys.argv[1]) / "optimized", sys.argv[2:])
