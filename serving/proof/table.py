"""The table of the proof of batching: the rule of each operator.

To add an operator, add a row, or its name to a row: the rule (rules.py says which kinds there are),
the inputs that may hold rows, and all attributes of all versions of the operator. A test names the
attributes of ONNX's schemas that are missing here, and operators that a new version of ONNX adds or
changes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from serving.proof import moves, rules, samples
from serving.proof.elements import follow
from serving.proof.numbering import counted, numbered
from serving.proof.onnx_file import Message
from serving.proof.shapes import Rule
from serving.proof.values import Mixes, Node, Value

SETS = {"": (7, 28), "ai.onnx.ml": (1, 5), "com.microsoft": (1, 1)}
"""The oldest and the newest version of each set of operators that the rules were compared with."""
_FLAGS = (
    "align_corners allowzero antialias ceil_mode count_include_pad detect_negative"
    " detect_positive exclude_outside exclusive fmod input_forget interleaved inverse"
    " is_case_sensitive is_causal keepdims largest layout linear_before_reset"
    " noop_with_empty_axes one_class onesided periodic reverse saturate select_last_index"
    " sorted storage_order training_mode transA transB unidirectional upper zeros"
)
"""Attributes that are 0 or 1. Of other numbers ONNX Runtime makes either, or no output at all: a
Cast with saturate=2 leaves the memory as it was."""
_IS_FLAG = frozenset(_FLAGS.split())
ALL = range(1 << 16)
"""All inputs."""
_WINDOWS = "auto_pad dilations kernel_shape pads strides"
_TREES = (
    "base_values base_values_as_tensor nodes_falsenodeids nodes_featureids nodes_hitrates"
    " nodes_hitrates_as_tensor nodes_missing_value_tracks_true nodes_modes nodes_nodeids"
    " nodes_treeids nodes_truenodeids nodes_values nodes_values_as_tensor post_transform"
)
_RECURRENT = (
    "activation_alpha activation_beta activations clip direction hidden_size input_forget layout=0"
    " linear_before_reset"
)


@dataclass(frozen=True, slots=True)
class Row:
    """The rule of some operators, and what it covers."""

    rule: Rule
    rows: Sequence[int] = (0,)
    """The inputs that may hold rows."""
    sizes: Sequence[int] = ()
    """The inputs that may depend on the number of rows, such as Reshape's second."""
    attributes: str = ""
    """The attributes that the rule covers: those that it reads, and those that change what an
    element is and never on which others it depends. `name=value` is covered with that value."""
    since: int = 0
    """The oldest version of the set that the rule covers, if not the oldest of SETS."""
    covered: dict[str, str] = field(init=False)
    """The attributes, and the value that they must have; "" for any."""

    def __post_init__(self) -> None:
        pairs = (each.partition("=") for each in self.attributes.split())
        object.__setattr__(self, "covered", {name: value for name, _, value in pairs})


def outputs_of(node: Node) -> list[Value]:
    """Return the values of a node's outputs.

    Raises:
        Mixes: rows meet, or it can't be excluded.
    """
    row = TABLE.get(node.op)
    if row is None:
        raise Mixes("this operator has no rule")
    if node.version < row.since:
        raise Mixes(f"version {node.version} of this operator has no rule")
    _require_covered(row, node)
    if (found := counted(node)) is not None:
        return node.outputs(found)
    has_rows = any(each.is_rows for each in node.given)
    is_size = False
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        if value.is_rows and index not in row.rows:
            raise Mixes(f"its input {index} depends on rows")
        if value.is_size and index not in row.sizes:
            is_size = True
    if has_rows and is_size:
        raise Mixes("the number of rows meets values")
    followed = follow(node)
    outputs = followed or row.rule(node)
    if is_size and not followed:
        outputs = [replace(each, varies=True) for each in outputs]
    means = {each.shape for each in node.given if each.is_mean}
    if means:
        outputs = [replace(each, is_mean=each.shape in means) for each in outputs]
    return [numbered(node, outputs[0]), *outputs[1:]]


def is_pointwise(operator: str) -> bool:
    """Return whether each element of an operator's output depends on those at its own place."""
    row = TABLE.get(operator)
    return row is not None and row.rule in (rules.like_first, rules.pointwise, rules.cast)


def _require_covered(row: Row, node: Node) -> None:
    for name, attribute in node.attributes.items():
        if name not in row.covered:
            raise Mixes(f"attribute {name[:100]} has no rule")
        if (wanted := row.covered[name]) and _shown(attribute) != wanted:
            raise Mixes(f"attribute {name} has a rule for {wanted} only")
        if name in _IS_FLAG and attribute.i not in (0, 1):
            raise Mixes(f"attribute {name} is neither 0 nor 1")


def _shown(attribute: Message) -> str:
    return str(attribute.s.decode("utf-8", "replace") if attribute.s else attribute.i)


def _row(names: str, rule: Rule, attributes: str = "", **options: Sequence[int] | int) -> None:
    row = Row(rule, attributes=attributes, **options)  # type: ignore[arg-type]
    for name in names.split():
        if name in TABLE:
            raise ValueError(f"two rows are about {name}")
        TABLE[name] = row


def _classical(names: str, rule: Rule, attributes: str = "", **options: Any) -> None:
    _row(" ".join(f"ai.onnx.ml.{each}" for each in names.split()), rule, attributes, **options)


TABLE: dict[str, Row] = {}
"""The row of each operator."""

# Element by element.
_row(
    "Abs Acos Acosh Asin Asinh Atan Atanh Ceil Cos Cosh Erf Exp Floor HardSwish Identity "
    "IsNaN Log Mish Neg Not Reciprocal Relu Round Sigmoid Sign Sin Sinh Softplus Sqrt Tan "
    "Tanh",
    rules.like_first,
)
_row("Celu Elu LeakyRelu", rules.like_first, "alpha")
_row("HardSigmoid Selu", rules.like_first, "alpha beta gamma bias lambd")
_row("Cast", rules.cast, "to saturate round_mode")
_row("Clip", rules.like_first, "min max")
_row("Gelu", rules.like_first, "approximate")
_row("IsInf", rules.like_first, "detect_negative detect_positive")
_classical("Binarizer", rules.like_first, "threshold")
_classical(
    "LabelEncoder",
    rules.like_first,
    "classes_strings default_float default_int64 default_string default_tensor keys_floats"
    " keys_int64s keys_strings keys_tensor values_floats values_int64s values_strings"
    " values_tensor",
)
_row(
    "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mul Or Pow Sub Sum "
    "Where Xor",
    rules.pointwise,
    rows=ALL,
)
_row("PRelu com.microsoft.BiasGelu com.microsoft.FastGelu", rules.onto_first, rows=(0, 1))
_row("Mod", rules.pointwise, "fmod", rows=ALL)
_row("BatchNormalization", rules.batch_normalization, "epsilon momentum spatial=1 training_mode")
_row(
    "QuantizeLinear DequantizeLinear",
    rules.quantized,
    "axis block_size output_dtype precision saturate",
)
_row("DynamicQuantizeLinear com.microsoft.DynamicQuantizeMatMul", rules.scaled_by_all)
_row(
    "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike",
    rules.random,
    "dtype high low mean sample_size scale seed shape",
)

# Along axes, and over axes.
_row("Softmax LogSoftmax", rules.along(rules.softmax_axes), "axis")
_row("LpNormalization", rules.along(rules.axis_of(-1)), "axis p")
_row("CumSum", rules.along(rules.running_axes), "exclusive reverse")
_row(
    "InstanceNormalization",
    rules.along(rules.all_but_first),
    "alpha beta bias epsilon num_groups size stash_type",
)
_row("Trilu", rules.along(rules.last_two), "upper")
_row("TopK", rules.sorted_by_size, "axis k largest sorted", sizes=(1,))
_row("ArgMax ArgMin", rules.reduced, "axis keepdims select_last_index")
_row(
    "ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare",
    rules.reduced,
    "axes keepdims noop_with_empty_axes",
)
_row(
    "LayerNormalization RMSNormalization",
    rules.normalized,
    "axis epsilon stash_type",
)
_row("com.microsoft.SkipLayerNormalization", rules.skip_normalized, "epsilon", rows=(0, 1))

# Sums of products.
_row("MatMul", rules.matrix_product, rows=(0, 1))
_row("MatMulInteger", rules.quantized_product(0, 1, of_all=(2,), of_columns=3), rows=(0, 1))
_row("QLinearMatMul", rules.quantized_product(0, 3, of_all=(6, 7), of_columns=4), rows=(0, 3))
_row(
    "com.microsoft.MatMulNBits",
    rules.product_of_few_bits,
    "K N accuracy_level bits block_size weight_prepacked=0",
)
_row("Gemm", rules.general_product, "alpha beta transA transB", rows=(0, 1, 2))
_row("Einsum", rules.einsum, "equation", rows=ALL)

# Each sample by itself.
_row("Conv", samples.by_sample(samples.convolved(1)), f"group {_WINDOWS}")
_row("QLinearConv", samples.by_sample(samples.convolved(3)), f"group {_WINDOWS}")
_row(
    "ConvTranspose",
    samples.by_sample(samples.widened),
    f"group output_padding output_shape {_WINDOWS}",
)
_row("MaxPool", samples.by_sample(samples.pooled), f"ceil_mode storage_order {_WINDOWS}")
_row("AveragePool", samples.by_sample(samples.pooled), f"ceil_mode count_include_pad {_WINDOWS}")
_row("GlobalAveragePool GlobalMaxPool", samples.by_sample(samples.one_each), "p")
_row("DepthToSpace", samples.by_sample(samples.depth_to_space), "blocksize mode")
_row(
    "GridSample",
    samples.by_sample(samples.sampled, others=(1,)),
    "align_corners mode padding_mode",
    rows=(0, 1),
)
_row("GRU LSTM RNN", samples.recurrent, _RECURRENT, rows=(0, 4, 5, 6))
_row(
    "com.microsoft.EmbedLayerNormalization",
    samples.embedded,
    "epsilon mask_index_type",
    rows=(0, 1, 7, 8),
)
_row(
    "com.microsoft.Attention",
    samples.self_attention,
    "mask_filter_value num_heads qkv_hidden_sizes scale unidirectional",
    rows=(0, 3),
)
_row(
    "Attention",
    samples.attention,
    "is_causal kv_num_heads left_window_size q_num_heads qk_matmul_output_mode right_window_size"
    " scale softcap softmax_precision",
    rows=(0, 1, 2, 3),
)
_row("ReverseSequence", samples.reversed_sequences, "batch_axis time_axis", rows=(0, 1))
_row("STFT", samples.by_sample(samples.short_fourier), "onesided")

# Classical models.
_classical(
    "Imputer",
    samples.columns,
    "imputed_value_floats imputed_value_int64s replaced_value_float replaced_value_int64",
)
_classical("Normalizer", samples.columns, "norm")
_classical("Scaler", samples.columns, "offset scale")
_classical(
    "LinearClassifier",
    samples.classified(samples.classes_of_lines),
    "classlabels_ints classlabels_strings coefficients intercepts multi_class post_transform",
)
_classical(
    "SVMClassifier",
    samples.classified(samples.unknown_classes),
    "classlabels_ints classlabels_strings coefficients kernel_params kernel_type post_transform"
    " prob_a prob_b rho support_vectors vectors_per_class",
)
_classical(
    "TreeEnsembleClassifier",
    samples.classified(samples.classes_of_trees),
    f"class_ids class_nodeids class_treeids class_weights class_weights_as_tensor"
    f" classlabels_int64s classlabels_strings {_TREES}",
)
_classical(
    "LinearRegressor",
    samples.scored("targets", 1),
    "coefficients intercepts post_transform targets",
)
_classical(
    "SVMRegressor",
    samples.scored("", 1),
    "coefficients kernel_params kernel_type n_supports one_class post_transform rho"
    " support_vectors",
)
_classical(
    "TreeEnsembleRegressor",
    samples.scored("n_targets", 0),
    f"aggregate_function n_targets target_ids target_nodeids target_treeids target_weights"
    f" target_weights_as_tensor {_TREES}",
)
_classical("OneHotEncoder", samples.one_hot_encoded, "cats_int64s cats_strings zeros")
_classical("ArrayFeatureExtractor", samples.extracted, rows=(0, 1))
_row("StringNormalizer", samples.texts, "case_change_action is_case_sensitive locale")

# Shapes.
_row(
    "Constant",
    moves.written,
    "value value_float value_floats value_int value_ints value_string value_strings",
)
_row("Shape", moves.shape_of, "end start", sizes=(0,))
_row("Size", moves.size_of, sizes=(0,))
_row("Reshape", moves.reshaped, "allowzero", sizes=(1,))
_row("Flatten", moves.flattened, "axis")
_row("Transpose", moves.transposed, "perm")
_row("Squeeze", moves.squeezed, "axes")
_row("Unsqueeze", moves.unsqueezed, "axes")
_row("Expand", moves.expanded, sizes=(1,))
_row("ConstantOfShape", moves.filled, "value", rows=(), sizes=(0,))
_row("Range", moves.counted, "stash_type", rows=(), sizes=(0, 1, 2))
_row("Tile", moves.tiled, sizes=(1,))
_row("Concat", moves.joined, "axis", rows=ALL)
_row("Split", moves.split, "axis num_outputs split", sizes=(1,))
_row("Slice", moves.sliced, "axes ends starts", sizes=(1, 2))
_row("Pad", moves.padded, "mode pads value", sizes=(1,))
_row(
    "Resize",
    moves.resized,
    "antialias axes coordinate_transformation_mode cubic_coeff_a exclude_outside"
    " extrapolation_value keep_aspect_ratio_policy=stretch mode nearest_mode scales",
    sizes=(1, 2, 3),
)
_row("OneHot", moves.one_hot, "axis", sizes=(1,))

# Elements by number.
_row("Gather", moves.gathered, "axis", rows=(0, 1))
_row("GatherElements", moves.by_element, "axis", rows=(0, 1))
_row("ScatterElements", moves.by_element, "axis reduction", rows=(0, 1, 2))
_row("GatherND", moves.gathered_many, "batch_dims=0", rows=(0, 1))

# Functions of constants.
_FIRST: Callable[[Node], int] = lambda node: node.value(0).rank  # noqa: E731
_row("EyeLike", rules.of_constants(_FIRST), "dtype k", rows=())
_row("ScatterND", rules.of_constants(_FIRST), "reduction", rows=())
