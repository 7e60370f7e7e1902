"""The table of rules beside ONNX's own schemas: no attribute, operator or version is overlooked."""

import pytest
from onnx import defs

from serving.model.onnx_runtime import runtime
from serving.proof.table import SETS, TABLE

MICROSOFT = "com.microsoft"
CONTROL = {"If", "Loop", "Scan"}
"""Operators with bodies: of these the walk itself follows a Scan that computes distances."""
WITHOUT_RULE = {
    # Values of other types than tensors.
    "ai.onnx.ml.CastMap", "ConcatFromSequence", "ai.onnx.ml.DictVectorizer", "Optional",
    "OptionalGetElement", "OptionalHasElement", "SequenceAt", "SequenceConstruct",
    "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap",
    "SplitToSequence", "ai.onnx.ml.ZipMap",
    # The number of elements depends on values.
    "ImageDecoder", "NonMaxSuppression", "StringSplit", "Unique",
    # Rows by number, losses over the batch, and training.
    "MaxRoiPool", "MaxUnpool", "NegativeLogLikelihoodLoss", "RoiAlign", "Scatter",
    "SoftmaxCrossEntropyLoss", "TensorScatter",
    # Nobody has asked yet.
    "AffineGrid", "BitCast", "CausalConvWithState", "CenterCropPad", "Col2Im", "DeformConv",
    "LinearAttention", "RotaryEmbedding", "SwiGLU",
    # No export of the census has them.
    "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "BlackmanWindow",
    "CastLike", "Compress", "ConvInteger", "CumProd", "DFT", "Det", "Dropout", "GlobalLpPool",
    "GroupNormalization", "HammingWindow", "HannWindow", "Hardmax", "LRN", "LpPool", "Mean",
    "MeanVarianceNormalization", "MelWeightMatrix", "NonZero", "ReduceLogSum", "RegexFullMatch",
    "Shrink", "Softsign", "SpaceToDepth", "StringConcat", "Swish", "TfIdfVectorizer",
    "ThresholdedRelu", "Upsample", "ai.onnx.ml.CategoryMapper", "ai.onnx.ml.FeatureVectorizer",
    "ai.onnx.ml.TreeEnsemble",
}  # fmt: skip
"""Operators of ONNX that end the proof."""
REFUSED = {"BatchNormalization": {"is_test"}, "Constant": {"sparse_value"},
           "com.microsoft.Attention": {"do_rotary", "past_present_share_buffer",
                                       "rotary_embedding_dim"},
           "StringNormalizer": {"stopwords"}}  # fmt: skip
"""Attributes of operators with a rule that end the proof."""


def schemas():
    """Each operator's schemas of all versions that models may use, by its name in the table."""
    by_name = {}
    for each in sorted(defs.get_all_schemas_with_history(), key=lambda each: each.since_version):
        if each.domain in SETS:
            by_name.setdefault(f"{each.domain}.{each.name}".lstrip("."), []).append(each)
    found = {}
    for name, versions in by_name.items():
        oldest, _ = SETS[versions[0].domain]
        ends = [each.since_version for each in versions[1:]]
        pairs = zip(versions, [*ends, oldest + 1], strict=True)
        found[name] = [each for each, end in pairs if end > oldest]
    return found


SCHEMAS = schemas()


def test_onnx_has_no_newer_operators_than_the_rules_were_compared_with():
    """If this fails: read the changes, add them to the table, then raise SETS."""
    newer = {
        f"{schema.name} {schema.since_version}"
        for schema in defs.get_all_schemas_with_history()
        if schema.domain in SETS and schema.since_version > SETS[schema.domain][1]
    }
    assert not newer
    assert defs.onnx_opset_version() <= SETS[""][1]


def test_operator_of_onnx_has_a_row_or_a_reason_for_none():
    ours = {name for name in TABLE if not name.startswith(MICROSOFT)}
    assert SCHEMAS.keys() - ours - CONTROL == WITHOUT_RULE
    assert not ours - SCHEMAS.keys()


@pytest.mark.parametrize("name", sorted(TABLE.keys() & SCHEMAS.keys()))
def test_row_covers_the_attributes_of_onnx(name):
    covered = TABLE[name].covered.keys() | REFUSED.get(name, set())
    for schema in SCHEMAS[name]:
        if schema.since_version >= TABLE[name].since or schema is SCHEMAS[name][-1]:
            assert set(schema.attributes) <= covered, schema.since_version


def test_rows_cover_the_attributes_of_onnx_runtimes_own_operators():
    schemas_of_all = runtime().capi.onnxruntime_pybind11_state.get_all_operator_schema()
    theirs = {
        f"{each.domain}.{each.name}": set(each.attributes)
        for each in schemas_of_all
        if each.domain == MICROSOFT
    }
    for name in TABLE:
        if name.startswith(MICROSOFT):
            covered = TABLE[name].covered.keys() | REFUSED.get(name, set())
            assert theirs[name] <= covered, name
