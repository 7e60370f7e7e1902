"""Networks in half precision, by onnxconverter-common: python half_exports.py FOLDER MODEL..."""

import sys
from pathlib import Path

import onnx
from onnxconverter_common import float16

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for path in map(Path, sys.argv[2:]):
        for is_outside in (False, True):
            try:
                made = float16.convert_float_to_float16(
                    onnx.load(path), keep_io_types=is_outside, disable_shape_infer=False
                )
                onnx.save(made, folder / f"{path.stem}-{'inside' if is_outside else 'all'}.onnx")
            except Exception as err:  # the converter raises anything
                print(f"{path.stem}: {type(err).__name__}: {str(err)[:100]!r}")
