"""Keras layers as ONNX models, by the converter that this project exports with.

`python -m tests.proof.keras_exports FOLDER` writes them as files.
"""

import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from training.export import conversion

STEPS = (12, 6)
OPEN_STEPS = (None, 6)
PICTURE = (16, 16, 3)
OPEN_PICTURE = (None, None, 3)
VOLUME = (8, 8, 8, 2)


def _attention(*, is_causal=False):
    def build(x):
        attention = layers.MultiHeadAttention(num_heads=2, key_dim=4)
        return layers.LayerNormalization()(x + attention(x, x, use_causal_mask=is_causal))

    return build


def _encoder(x):
    for _ in range(2):
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
        x = layers.LayerNormalization()(x + layers.Dense(6)(layers.Dense(24, "gelu")(x)))
    return layers.Dense(3, "softmax")(layers.GlobalAveragePooling1D()(x))


def _residual(x):
    x = layers.Conv2D(8, 3, padding="same")(x)
    for strides in (1, 2):
        y = layers.Conv2D(8, 3, strides, padding="same", use_bias=False)(x)
        y = layers.Activation("relu")(layers.BatchNormalization()(y))
        y = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(y))
        x = layers.Activation("relu")(y + layers.Conv2D(8, 1, strides)(x))
    return layers.Dense(4, "softmax")(layers.GlobalAveragePooling2D()(x))


def _separable(x):
    x = layers.DepthwiseConv2D(3, padding="same")(layers.SeparableConv2D(8, 3)(x))
    gate = layers.Dense(8, "sigmoid")(layers.Dense(2, "silu")(layers.GlobalMaxPooling2D()(x)))
    return layers.Flatten()(x * layers.Reshape((1, 1, 8))(gate))


def _u_net(x):
    wide = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    deep = layers.Conv2D(8, 3, padding="same")(layers.MaxPooling2D()(wide))
    up = layers.Conv2DTranspose(4, 2, strides=2)(deep)
    return layers.Conv2D(2, 1)(layers.Concatenate()([wide, up]))


def _words(x):
    vectors = layers.Embedding(50, 6, mask_zero=False)(x)
    return layers.Dense(2)(layers.Bidirectional(layers.LSTM(4))(vectors))


NETWORKS = {
    # name: (shape of a row, dtype, network)
    "dense": ((5,), "float32", lambda x: layers.Dense(3, "softmax")(layers.Dense(8, "relu")(x))),
    "normalization": ((5,), "float32", layers.Normalization(mean=[0.0] * 5, variance=[2.0] * 5)),
    "unit-normalization": ((5,), "float32", layers.UnitNormalization()),
    "rescaling": ((5,), "uint8", lambda x: layers.Rescaling(1 / 255)(ops.cast(x, "float32"))),
    "batch-normalization": ((5,), "float32", layers.BatchNormalization()),
    "layer-normalization": ((5,), "float32", layers.LayerNormalization()),
    "rms-normalization": (STEPS, "float32", layers.RMSNormalization()),
    "group-normalization": (PICTURE, "float32", layers.GroupNormalization(groups=3)),
    "spectral-normalization": ((5,), "float32", layers.SpectralNormalization(layers.Dense(3))),
    "prelu": ((5,), "float32", layers.PReLU()),
    "leaky-relu": ((5,), "float32", layers.LeakyReLU()),
    "elu": ((5,), "float32", layers.ELU()),
    "gelu": ((5,), "float32", layers.Activation("gelu")),
    "softplus": ((5,), "float32", layers.Activation("softplus")),
    "mish": ((5,), "float32", layers.Activation("mish")),
    "hard-silu": ((5,), "float32", layers.Activation("hard_silu")),
    "embedding": ((12,), "int32", layers.Embedding(50, 6)),
    "embedding-bag": (
        (12,), "int32", lambda x: layers.GlobalAveragePooling1D()(layers.Embedding(50, 6)(x))),
    "embedding-open": (
        (None,), "int32", lambda x: layers.GlobalMaxPooling1D()(layers.Embedding(50, 6)(x))),
    "category-encoding": ((4,), "int32", layers.CategoryEncoding(10, output_mode="multi_hot")),
    "discretization": ((4,), "float32", layers.Discretization(bin_boundaries=[-1.0, 0.0, 1.0])),
    "hashing": ((4,), "int32", layers.Hashing(10)),
    "integer-lookup": ((4,), "int64", layers.IntegerLookup(vocabulary=[7, 8, 9])),
    "string-lookup": ((4,), "string", layers.StringLookup(vocabulary=["a", "b"])),
    "lstm": (STEPS, "float32", layers.LSTM(4)),
    "lstm-sequences": (STEPS, "float32", layers.LSTM(4, return_sequences=True)),
    "lstm-backwards": (STEPS, "float32", layers.LSTM(4, go_backwards=True)),
    "lstm-open": (OPEN_STEPS, "float32", layers.LSTM(4)),
    "lstm-twice": (
        STEPS, "float32", lambda x: layers.LSTM(3)(layers.LSTM(4, return_sequences=True)(x))),
    "gru": (STEPS, "float32", layers.GRU(4, unroll=True)),
    "gru-before": (STEPS, "float32", layers.GRU(4, reset_after=False, unroll=True)),
    "gru-open": (OPEN_STEPS, "float32", layers.GRU(4, return_sequences=True)),
    "simple-rnn": (STEPS, "float32", layers.SimpleRNN(4, unroll=True)),
    "bidirectional-lstm": (STEPS, "float32", layers.Bidirectional(layers.LSTM(4))),
    "bidirectional-lstm-open": (
        OPEN_STEPS, "float32", layers.Bidirectional(layers.LSTM(4, return_sequences=True))),
    "bidirectional-gru": (STEPS, "float32", layers.Bidirectional(layers.GRU(4, unroll=True))),
    "bidirectional-words": ((12,), "int32", _words),
    "conv-lstm": ((4, 8, 8, 2), "float32", layers.ConvLSTM2D(3, 3)),
    "time-distributed": (STEPS, "float32", layers.TimeDistributed(layers.Dense(3))),
    "attention": (STEPS, "float32", lambda x: layers.Attention()([x, x])),
    "additive-attention": (STEPS, "float32", lambda x: layers.AdditiveAttention()([x, x])),
    "multi-head-attention": (STEPS, "float32", _attention()),
    "multi-head-attention-causal": (STEPS, "float32", _attention(is_causal=True)),
    "multi-head-attention-open": (OPEN_STEPS, "float32", _attention()),
    "grouped-query-attention": (
        STEPS, "float32", lambda x: layers.GroupQueryAttention(4, 4, 2)(x, x)),
    "encoder": (STEPS, "float32", _encoder),
    "encoder-open": (OPEN_STEPS, "float32", _encoder),
    "einsum-dense": (STEPS, "float32", layers.EinsumDense("abc,cd->abd", (None, 3))),
    "conv1d": (STEPS, "float32", layers.Conv1D(4, 3)),
    "conv1d-causal": (STEPS, "float32", layers.Conv1D(4, 3, padding="causal", dilation_rate=2)),
    "conv1d-open": (OPEN_STEPS, "float32", layers.Conv1D(4, 3, padding="same")),
    "conv1d-transpose": (STEPS, "float32", layers.Conv1DTranspose(4, 3, strides=2)),
    "conv2d": (PICTURE, "float32", layers.Conv2D(4, 3)),
    "conv2d-same": (PICTURE, "float32", layers.Conv2D(4, 3, 2, padding="same")),
    "conv2d-dilated": (PICTURE, "float32", layers.Conv2D(4, 3, dilation_rate=2, padding="same")),
    "conv2d-groups": (PICTURE, "float32", layers.Conv2D(6, 3, groups=3)),
    "conv2d-open": (OPEN_PICTURE, "float32", layers.Conv2D(4, 3, padding="same")),
    "conv2d-transpose": (PICTURE, "float32", layers.Conv2DTranspose(4, 3, strides=2)),
    "conv2d-transpose-open": (
        OPEN_PICTURE, "float32", layers.Conv2DTranspose(4, 3, strides=2, padding="same")),
    "conv3d": (VOLUME, "float32", layers.Conv3D(4, 3)),
    "conv3d-transpose": (VOLUME, "float32", layers.Conv3DTranspose(4, 3)),
    "depthwise-conv1d": (STEPS, "float32", layers.DepthwiseConv1D(3)),
    "separable-conv1d": (STEPS, "float32", layers.SeparableConv1D(4, 3)),
    "separable-conv2d": (PICTURE, "float32", _separable),
    "max-pooling1d": (STEPS, "float32", layers.MaxPooling1D(2, padding="same")),
    "max-pooling2d": (PICTURE, "float32", layers.MaxPooling2D(3, 2)),
    "max-pooling3d": (VOLUME, "float32", layers.MaxPooling3D(2)),
    "average-pooling1d": (STEPS, "float32", layers.AveragePooling1D(2)),
    "average-pooling2d": (PICTURE, "float32", layers.AveragePooling2D(3, 2, padding="same")),
    "average-pooling3d": (VOLUME, "float32", layers.AveragePooling3D(2)),
    "max-pooling2d-open": (OPEN_PICTURE, "float32", layers.MaxPooling2D(3, 2, padding="same")),
    "global-max-pooling2d-open": (OPEN_PICTURE, "float32", layers.GlobalMaxPooling2D()),
    "global-average-pooling3d": (VOLUME, "float32", layers.GlobalAveragePooling3D()),
    "adaptive-pooling2d": (PICTURE, "float32", lambda x: layers.AdaptiveAveragePooling2D(4)(x)),
    "residual": (PICTURE, "float32", _residual),
    "residual-open": (OPEN_PICTURE, "float32", _residual),
    "u-net": (PICTURE, "float32", _u_net),
    "zero-padding2d": (PICTURE, "float32", layers.ZeroPadding2D(2)),
    "cropping2d": (PICTURE, "float32", layers.Cropping2D(2)),
    "cropping1d": (STEPS, "float32", layers.Cropping1D(2)),
    "up-sampling1d": (STEPS, "float32", layers.UpSampling1D(2)),
    "up-sampling2d": (PICTURE, "float32", layers.UpSampling2D(2)),
    "up-sampling2d-bilinear": (
        PICTURE, "float32", layers.UpSampling2D(2, interpolation="bilinear")),
    "up-sampling3d": (VOLUME, "float32", layers.UpSampling3D(2)),
    "resizing": (PICTURE, "float32", layers.Resizing(8, 8)),
    "resizing-nearest": (PICTURE, "float32", layers.Resizing(8, 8, interpolation="nearest")),
    "resizing-open": (OPEN_PICTURE, "float32", layers.Resizing(8, 8)),
    "resizing-cropped": (
        OPEN_PICTURE, "float32", layers.Resizing(8, 8, crop_to_aspect_ratio=True)),
    "center-crop": (PICTURE, "float32", layers.CenterCrop(8, 8)),
    "flatten": (PICTURE, "float32", layers.Flatten()),
    "reshape": (PICTURE, "float32", layers.Reshape((-1, 6))),
    "permute": (STEPS, "float32", layers.Permute((2, 1))),
    "repeat-vector": ((5,), "float32", layers.RepeatVector(3)),
    "masking": (STEPS, "float32", lambda x: layers.LSTM(4)(layers.Masking()(x))),
    "softmax": (STEPS, "float32", layers.Softmax(axis=1)),
    "dropout": ((5,), "float32", layers.Dropout(0.5)),
    "gaussian-noise": ((5,), "float32", layers.GaussianNoise(0.5)),
    "spatial-dropout": (PICTURE, "float32", layers.SpatialDropout2D(0.5)),
    "dot": (STEPS, "float32", lambda x: layers.Dot(axes=(2, 2))([x, x])),
    "maximum": ((5,), "float32", lambda x: layers.Maximum()([x, 1 - x])),
    "concatenate": (STEPS, "float32", lambda x: layers.Concatenate(axis=1)([x, x])),
    "top-k": ((9,), "float32", lambda x: ops.top_k(x, 3)[0]),
    "argmax": ((9,), "float32", lambda x: ops.argmax(x, axis=-1)),
    "one-hot": ((), "int32", lambda x: ops.one_hot(x, 5)),
    "cumsum": (STEPS, "float32", lambda x: ops.cumsum(x, axis=1)),
    "sort": ((9,), "float32", lambda x: ops.sort(x, axis=-1)),
    "where": ((5,), "float32", lambda x: ops.where(x > 0, x, ops.mean(x, -1, keepdims=True))),
    "take": (STEPS, "float32", lambda x: ops.take(x, [0, 3], axis=1)),
    "fft": (STEPS, "float32", lambda x: ops.rfft(x)[0]),
    "mel-spectrogram": ((512,), "float32", layers.MelSpectrogram(64, 32)),
    # These do mix rows.
    "batch-mean": ((5,), "float32", lambda x: x - ops.mean(x, axis=0, keepdims=True)),
    "batch-maximum": ((5,), "float32", lambda x: x / ops.max(ops.abs(x))),
}  # fmt: skip
MIXING = {"batch-mean", "batch-maximum"}


def export(name):
    """Convert one of the networks; raises whatever Keras or tf2onnx raise."""
    keras.utils.set_random_seed(0)
    shape, dtype, network = NETWORKS[name]
    inputs = keras.Input(shape, dtype=dtype)
    keras_model = keras.Model(inputs, network(inputs))

    def run(call, x):
        return {"y": call(x)}

    spec = tf.TensorSpec((None, *shape), dtype, name="x")
    model = conversion.convert(keras_model, run, [spec])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    return model


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        try:
            data = export(name).SerializeToString()
        except Exception as err:
            print(f"{name}: not exported: {type(err).__name__}: {str(err).splitlines()[0][:100]}")
        else:
            np.asarray(memoryview(data)).tofile(folder / f"{name}.onnx")
