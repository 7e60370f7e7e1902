"""The types of elements, as the census counts them: what each operator makes of its inputs'."""

from collections.abc import Callable

from serving.proof.values import Node

NAMES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    8: "string", 9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
    16: "bfloat16", 21: "uint4", 22: "int4",
}  # fmt: skip
"""TensorProto.DataType; of all others the proof knows no name."""

_TRUTH = [
    "And",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "IsInf",
    "IsNaN",
    "Less",
    "LessOrEqual",
    "Not",
    "Or",
    "RegexFullMatch",
    "Xor",
]
_WHOLE = (
    "ArgMax", "ArgMin", "Shape", "Size",
)  # fmt: skip
_SCORES = [
    "FeatureVectorizer",
    "LinearRegressor",
    "Normalizer",
    "OneHotEncoder",
    "SVMRegressor",
    "Scaler",
    "TreeEnsembleRegressor",
]
_CLASSIFIERS = (
    "LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier",
)  # fmt: skip


def dtypes_of(node: Node) -> list[str]:
    """Return the name of the type of each output; "" where it is not known."""
    operator = node.op.removeprefix("ai.onnx.ml.")
    first = node.inputs[0].dtype if node.inputs and node.inputs[0] is not None else ""
    found = _DTYPES[operator](node) if operator in _DTYPES else [first]
    number = len(node.is_used)
    return [*found, *[found[-1]] * number][:number]


def _input(index: int) -> Callable[[Node], list[str]]:
    return lambda node: [node.value(index).dtype if node.has(index) else ""]


def _named(attribute: str) -> Callable[[Node], list[str]]:
    """As the attribute says; without it as the first input."""

    def named(node: Node) -> list[str]:
        number = node.number(attribute, 0)
        return [NAMES.get(number, "") if number else node.value(0).dtype]

    return named


def _written(node: Node) -> list[str]:
    ((name, attribute),) = node.attributes.items()
    if name == "value":
        return [NAMES.get(attribute.t.data_type, "")]
    kind = name.removeprefix("value_").removesuffix("s")
    return [{"int": "int64", "float": "float32"}.get(kind, kind)]


def _filled(node: Node) -> list[str]:
    value = node.attributes.get("value")
    return ["float32" if value is None else NAMES.get(value.t.data_type, "")]


def _labels(node: Node) -> str:
    return "string" if "classlabels_strings" in node.attributes else "int64"


def _encoded(node: Node) -> list[str]:
    """A LabelEncoder's values, by the attribute that has them."""
    for name, attribute in node.attributes.items():
        if name == "values_tensor":
            return [NAMES.get(attribute.t.data_type, "")]
        if name.startswith("values_"):
            kind = name.removeprefix("values_").removesuffix("s")
            return [{"float": "float32"}.get(kind, kind)]
    # An old one, from texts to numbers or back.
    return ["int64" if node.value(0).dtype == "string" else "string"]


def _quantized(node: Node) -> list[str]:
    if node.has(2):
        return [node.value(2).dtype]
    return [NAMES.get(node.number("output_dtype", 0), "uint8")]


def _with(second: str) -> Callable[[Node], list[str]]:
    return lambda node: [node.value(0).dtype, second]


_DTYPES: dict[str, Callable[[Node], list[str]]] = {
    **dict.fromkeys(_TRUTH, lambda node: ["bool"]),
    **dict.fromkeys(_WHOLE, lambda node: ["int64"]),
    **dict.fromkeys(_SCORES, lambda node: ["float32"]),
    **dict.fromkeys(_CLASSIFIERS, lambda node: [_labels(node), "float32"]),
    "MatMulInteger": lambda node: ["int32"],
    "com.microsoft.EmbedLayerNormalization": lambda node: [
        node.value(2).dtype, "int32", node.value(2).dtype
    ],
    **dict.fromkeys(("TopK", "MaxPool"), _with("int64")),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul"), _input(7)),
    **dict.fromkeys(("DequantizeLinear", "Where"), _input(1)),
    "Cast": _named("to"),
    "Constant": _written,
    "ConstantOfShape": _filled,
    "EyeLike": _named("dtype"),
    "LabelEncoder": _encoded,
    "OneHot": _input(2),
    "QuantizeLinear": _quantized,
}  # fmt: skip
