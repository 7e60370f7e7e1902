"""Estimators of scikit-learn and boosters as ONNX models, by the converters of their projects.

Every classifier, regressor and transformer that skl2onnx converts: alone, behind a
ColumnTransformer of numbers, and behind one that encodes words, too. The converters are not among
this project's dependencies:

    python -m venv /tmp/converters
    /tmp/converters/bin/pip install skl2onnx pandas lightgbm xgboost catboost onnxmltools
    /tmp/converters/bin/python tests/proof/scikit_exports.py FOLDER
    EXPORTS=FOLDER python -m pytest -m slow tests/proof/test_exports.py
"""

import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(150, 5)).astype(np.float32)
BINARY = (X[:, 0] > 0).astype(int)
CLASSES = BINARY + (X[:, 1] > 0.8)
NUMBERS = np.abs(X @ np.arange(1, 6)) + 0.1
WORDS = np.array([["a b", "red", "x"], ["c d e", "green", "y"], ["a e", "blue", "x"]] * 50, object)
OPSETS = {"": 18, "ai.onnx.ml": 3}
COUNTS = ("NB", "NMF", "LatentDirichlet")
"""Parts of names of models whose data must not be negative."""
PAIRS = ("MultiTask", "MultiOutputR", "RegressorChain", "PLS", "CCA")
"""Parts of names of models that have two targets."""


def arguments_of(name: str) -> dict[str, Any]:
    """What an estimator can't do without."""
    from sklearn import linear_model, preprocessing, tree

    classifier, regressor = linear_model.LogisticRegression(), linear_model.Ridge()
    scaler = preprocessing.StandardScaler()
    classifiers = [("a", classifier), ("b", tree.DecisionTreeClassifier())]
    regressors = [("a", regressor), ("b", tree.DecisionTreeRegressor())]
    special: dict[str, dict[str, Any]] = {
        "StackingClassifier": {"estimators": classifiers},
        "VotingClassifier": {"estimators": classifiers, "voting": "soft"},
        "StackingRegressor": {"estimators": regressors},
        "VotingRegressor": {"estimators": regressors},
        "GridSearchCV": {"estimator": classifier, "param_grid": {"C": [1, 2]}},
        "RandomizedSearchCV": {
            "estimator": classifier, "param_distributions": {"C": [1, 2]}, "n_iter": 2},
        "GaussianRandomProjection": {"n_components": 3},
        "SparseRandomProjection": {"n_components": 3},
        "MultiOutputRegressor": {"estimator": regressor},
        "RegressorChain": {"estimator": regressor},
        "TransformedTargetRegressor": {"regressor": regressor},
        "BaggingClassifier": {"estimator": tree.DecisionTreeClassifier(), "n_estimators": 3},
        "Pipeline": {"steps": [("s", scaler), ("m", classifier)]},
        "FeatureUnion": {
            "transformer_list": [("s", scaler), ("t", preprocessing.MinMaxScaler())]},
        "ColumnTransformer": {
            "transformers": [("s", scaler, [0, 1]), ("p", "passthrough", [2, 3])]},
        "KBinsDiscretizer": {"encode": "ordinal"},
    }  # fmt: skip
    taking = (
        "SelectFromModel", "RFE", "RFECV", "OneVsOneClassifier", "OneVsRestClassifier",
        "OutputCodeClassifier", "MultiOutputClassifier", "ClassifierChain",
        "CalibratedClassifierCV", "TunedThresholdClassifierCV", "FixedThresholdClassifier",
        "SelfTrainingClassifier", "SequentialFeatureSelector",
    )  # fmt: skip
    return {"estimator": classifier} if name in taking else special.get(name, {})


def data_of(name: str, kind: str | None) -> tuple[Any, Any]:
    """Inputs and targets that an estimator can be fitted to."""
    data = np.abs(X) if any(each in name for each in COUNTS) else X
    if name == "CategoricalNB":
        data = (np.abs(X) * 2).astype(int).clip(0, 3).astype(np.float32)
    if name == "IsotonicRegression":
        data = X[:, :1]
    target = NUMBERS if kind == "regressor" else CLASSES
    if any(name.startswith(each) for each in PAIRS):
        target = np.stack([NUMBERS, X[:, 1]], 1)
    if name in ("MultiOutputClassifier", "ClassifierChain"):
        target = np.stack([BINARY, BINARY[::-1]], 1)
    if name in ("TunedThresholdClassifierCV", "FixedThresholdClassifier"):
        target = BINARY
    return data, target


class Writer:
    """Writes models into a folder, and counts those that can't be exported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failures: dict[str, str] = {}

    def write(self, name: str, make: Any, *arguments: Any, **options: Any) -> bool:
        """Write what `make` returns of its arguments, and return whether it could."""
        try:
            data = make(*arguments, **options).SerializeToString()
            (self.folder / f"{name}.onnx").write_bytes(data)
        except Exception as err:  # estimators and converters raise anything
            lines = str(err).splitlines() or [""]
            self.failures[name] = f"{type(err).__name__}: {lines[0][:100]}"
            return False
        return True


def built(cls: Any) -> Any:
    """An estimator, with few trees."""
    model = cls(**arguments_of(cls.__name__))
    if isinstance(getattr(model, "n_estimators", None), int):
        model.set_params(n_estimators=5)
    return model


def behind_columns(cls: Any, kind: str | None, *, has_words: bool) -> Any:
    """A pipeline of a ColumnTransformer and an estimator, converted."""
    import pandas as pd
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, OrdinalEncoder, StandardScaler

    data, target = data_of(cls.__name__, kind)
    columns = [f"n{number}" for number in range(data.shape[1])]
    frame = pd.DataFrame({name: data[:, number] for number, name in enumerate(columns)})
    types = [(name, FloatTensorType([None, 1])) for name in columns]
    steps = [("m", MinMaxScaler(), columns[:2]), ("s", StandardScaler(), columns[2:])]
    if has_words:
        frame["colour"], frame["kind"] = WORDS[:, 1], WORDS[:, 2]
        types += [(name, StringTensorType([None, 1])) for name in ("colour", "kind")]
        unknown = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=9)
        steps = [
            ("n", MinMaxScaler(), columns), ("o", unknown, ["kind"]),
            ("c", OneHotEncoder(sparse_output=False, handle_unknown="ignore"), ["colour"]),
        ]  # fmt: skip
    head = ColumnTransformer(steps, sparse_threshold=0)
    pipeline = make_pipeline(head, built(cls)).fit(frame, target)
    return to_onnx(pipeline, initial_types=types, target_opset=OPSETS)


def alone(cls: Any, kind: str | None) -> Any:
    """An estimator, fitted and converted."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    data, target = data_of(cls.__name__, kind)
    types = [("x", FloatTensorType([None, data.shape[1]]))]
    return to_onnx(built(cls).fit(data, target), initial_types=types, target_opset=OPSETS)


def write_estimators(writer: Writer) -> None:
    """Write the estimators that are converted alone, alone and in pipelines."""
    from sklearn.utils import all_estimators

    seen = set()
    for kind in ("classifier", "regressor", "transformer", None):
        for name, cls in all_estimators(type_filter=kind):
            if name not in seen and writer.write(name, alone, cls, kind):
                writer.write(f"{name}-numbers", behind_columns, cls, kind, has_words=False)
                writer.write(f"{name}-words", behind_columns, cls, kind, has_words=True)
            seen.add(name)


def write_encoders(writer: Writer) -> None:
    """Write encoders of words and of whole numbers, alone and before a classifier."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import Int64TensorType, StringTensorType
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

    whole = (np.abs(X) * 2).astype(np.int64).clip(0, 2)
    for encoder in (OneHotEncoder(handle_unknown="ignore"), OrdinalEncoder()):
        for kind, data, tensor in (
            ("text", WORDS, StringTensorType([None, 3])),
            ("whole", whole, Int64TensorType([None, 5])),
        ):
            name, types = f"{type(encoder).__name__}-of-{kind}", [("x", tensor)]
            for end, parts in (("", []), ("-classified", [LogisticRegression()])):
                model = make_pipeline(encoder, *parts).fit(data, CLASSES)
                writer.write(name + end, to_onnx, model, initial_types=types, target_opset=OPSETS)


def write_boosters(writer: Writer) -> None:
    """Write models of LightGBM, XGBoost and CatBoost."""
    import catboost
    import lightgbm
    import onnx
    import onnxmltools
    import xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    def saved(model: Any) -> Any:
        with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
            model.save_model(file.name, format="onnx")
            return onnx.load(file.name)

    light: dict[str, Any] = {"n_estimators": 5, "verbose": -1}
    cat: dict[str, Any] = {"iterations": 5, "verbose": 0, "allow_writing_files": False}
    how: dict[str, Any] = {"initial_types": [("x", FloatTensorType([None, 5]))],
                           "target_opset": 15}  # fmt: skip
    for kind, target in (("binary", BINARY), ("classes", CLASSES)):
        for end, zipmap in (("", True), ("-tensor", False)):
            trees = lightgbm.LGBMClassifier(**light).fit(X, target)
            convert = onnxmltools.convert_lightgbm
            writer.write(f"lightgbm-{kind}{end}", convert, trees, zipmap=zipmap, **how)
        for cls in (xgboost.XGBClassifier, xgboost.XGBRFClassifier):
            trees = cls(n_estimators=5).fit(X, target)
            writer.write(f"{cls.__name__}-{kind}", onnxmltools.convert_xgboost, trees, **how)
        trees = catboost.CatBoostClassifier(**cat).fit(X, target)
        writer.write(f"catboost-{kind}", saved, trees)
    trees = lightgbm.LGBMRegressor(**light).fit(X, NUMBERS)
    writer.write("lightgbm-number", onnxmltools.convert_lightgbm, trees, **how)
    boosted = xgboost.XGBRegressor(n_estimators=5).fit(X, NUMBERS)
    writer.write("xgboost-number", onnxmltools.convert_xgboost, boosted, **how)
    numbers = catboost.CatBoostRegressor(**cat).fit(X, NUMBERS)
    writer.write("catboost-number", saved, numbers)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    writing = Writer(target)
    for write in (write_encoders, write_boosters, write_estimators):
        write(writing)
    for label, reason in writing.failures.items():
        print(f"{label}: not exported: {reason}")
    print(f"{len(list(target.glob('*.onnx')))} models in {target}")
