"""ONNX's own test cases, with some of their inputs as rows."""

import itertools

import numpy as np
import onnx
from onnx import numpy_helper


def with_rows(case):
    """A case's model with some inputs as rows, and these inputs' arrays."""
    if case.model is None or not case.data_sets:
        return
    inputs = list(case.model.graph.input)
    values = dict(zip([each.name for each in inputs], case.data_sets[0][0], strict=False))
    if not all(isinstance(each, np.ndarray) and each.dtype.kind != "V" for each in values.values()):
        return
    able = [each for each in inputs if len(each.type.tensor_type.shape.dim)][:4]
    for number in range(1, len(able) + 1):
        for chosen in itertools.combinations(able, number):
            names = {each.name for each in chosen}
            if len({len(values[name]) for name in names}) == 1:
                model = onnx.ModelProto.FromString(case.model.SerializeToString())
                del model.graph.input[:]
                for each in chosen:
                    model.graph.input.add().CopyFrom(each)
                    size = model.graph.input[-1].type.tensor_type.shape.dim[0]
                    size.dim_param = "N"
                for name in sorted(values.keys() - names):
                    model.graph.initializer.append(numpy_helper.from_array(values[name], name))
                for each in model.graph.output:
                    each.type.tensor_type.ClearField("shape")
                yield model, {name: values[name] for name in sorted(names)}
