"""Quantized networks, by ONNX Runtime's quantizers: python quantized_exports.py FOLDER MODEL...

Per tensor and per channel (QDQ), by operators (QOperator), and weights by 4 and 8 bits
(MatMulNBits, and DequantizeLinear by blocks). `onnx_ir` is needed besides the packages that
torch_exports.py names.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime import InferenceSession, quantization
from onnxruntime.quantization import matmul_nbits_quantizer as nbits

TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


class Draws(quantization.CalibrationDataReader):  # type: ignore[misc]
    """A few rows that calibrate."""

    def __init__(self, path: Path) -> None:
        generator = np.random.default_rng(0)
        self._rows = iter(
            {
                each.name: (generator.random(
                    [2, *(size if isinstance(size, int) else 12 for size in each.shape[1:])]) * 3
                ).astype(TYPES[each.type])
                for each in InferenceSession(path).get_inputs()
            }
            for _ in range(2)
        )  # fmt: skip

    def get_next(self) -> Any:
        """Return the next rows."""
        return next(self._rows, None)


def write_all(path: Path, folder: Path) -> None:
    """Write a model in each way that it can be quantized."""
    ways: dict[str, Any] = {
        "qdq": {},
        "qdq-channels": {"per_channel": True},
        "qdq-int8": {"activation_type": quantization.QuantType.QInt8, "per_channel": True},
        "qdq-int16": {"activation_type": quantization.QuantType.QUInt16},
        "qoperator": {"quant_format": quantization.QuantFormat.QOperator},
    }
    for name, options in ways.items():
        target = folder / f"{path.stem}-{name}.onnx"
        try:
            quantization.quantize_static(path, target, Draws(path), **options)
        except Exception as err:
            print(f"{target.stem}: {type(err).__name__}: {str(err)[:100]!r}", flush=True)
    for bits in (4, 8):
        for form in quantization.QuantFormat:
            for is_symmetric in (False, True):
                target = folder / f"{path.stem}-{bits}-{form.name}-{is_symmetric}.onnx"
                try:
                    config = nbits.DefaultWeightOnlyQuantConfig(
                        block_size=32, is_symmetric=is_symmetric, accuracy_level=4,
                        quant_format=form, bits=bits)  # fmt: skip
                    quantizer = nbits.MatMulNBitsQuantizer(onnx.load(path), algo_config=config)
                    quantizer.process()
                    quantizer.model.save_model_to_file(str(target))
                except Exception as err:
                    print(f"{target.stem}: {type(err).__name__}: {str(err)[:100]!r}", flush=True)
    quantization.quantize_dynamic(path, folder / f"{path.stem}-dynamic.onnx")


if __name__ == "__main__":
    target_folder = Path(sys.argv[1])
    target_folder.mkdir(parents=True, exist_ok=True)
    for each in sys.argv[2:]:
        write_all(Path(each), target_folder)
