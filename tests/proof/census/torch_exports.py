"""Networks of torch, torchvision, timm, transformers and Ultralytics as ONNX models.

With random weights, by both exporters of torch (`script` and `dynamo`). The packages are not
among this project's dependencies:

    python -m venv /tmp/torch
    /tmp/torch/bin/pip install torch torchvision onnx onnxscript transformers timm ultralytics
    /tmp/torch/bin/python tests/proof/census/torch_exports.py FOLDER [part of a name]
"""

# mypy: disable-error-code="misc"

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)
PICTURE = (2, 3, 64, 64)
VISION = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s",
    "googlenet", "inception_v3", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small",
    "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnext50_32x4d",
    "shufflenet_v2_x0_5", "squeezenet1_0", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn",
    "vit_b_16", "wide_resnet50_2", "maxvit_t",
)  # fmt: skip
SEGMENTATION = "fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"
TIMM = (
    "beit_base_patch16_224", "botnet26t_256", "cait_xxs24_224", "coat_tiny", "coatnet_0_rw_224",
    "convit_tiny", "convmixer_768_32", "crossvit_9_240", "cspdarknet53", "deit_tiny_patch16_224",
    "dla34", "dpn48b", "edgenext_xx_small", "efficientformer_l1", "efficientnet_lite0",
    "efficientvit_b0", "fastvit_t8", "gcresnet33ts", "ghostnet_100", "halonet26t",
    "hardcorenas_a", "hrnet_w18_small", "inception_v4", "lambda_resnet26t", "lcnet_050",
    "levit_128s", "mixer_s32_224", "mobilenetv4_conv_small", "mobileone_s0", "mobilevit_xxs",
    "mobilevitv2_050", "nf_resnet26", "nfnet_f0", "pit_ti_224", "poolformer_s12", "pvt_v2_b0",
    "repvgg_a0", "res2net50_26w_4s", "resmlp_12_224", "resnest14d", "rexnet_100", "selecsls42b",
    "seresnet18", "skresnet18", "tf_efficientnet_b0", "tinynet_e", "tiny_vit_5m_224", "tresnet_m",
    "twins_svt_small", "vgg11", "visformer_tiny", "volo_d1_224", "xception41",
    "xcit_nano_12_p16_224",
)  # fmt: skip
YOLO = (
    "yolov3-tiny", "yolov5n", "yolov6n", "yolov8n", "yolov8n-cls", "yolov8n-seg", "yolov8n-pose",
    "yolov8n-obb", "yolov9t", "yolov10n", "yolo11n", "yolo11n-cls", "yolo11n-seg", "yolo11n-pose",
    "yolo12n",
)  # fmt: skip
TEXTS = (
    "bert", "roberta", "distilbert", "albert", "electra", "mpnet", "xlm-roberta", "deberta-v2",
    "camembert", "roformer", "squeezebert", "mobilebert", "funnel", "fnet", "convbert",
    "big_bird", "ernie", "rembert", "nystromformer", "splinter", "layoutlm", "gpt2", "gpt_neo",
    "gpt_neox", "opt", "llama", "qwen2", "mistral", "gemma", "phi", "bloom", "xlnet", "xlm",
    "longformer", "ibert", "luke", "esm", "modernbert", "nomic_bert", "jina_embeddings_v3",
)  # fmt: skip
SPEECH = (
    "wav2vec2",
    "hubert",
    "wavlm",
    "sew",
    "unispeech",
    "data2vec-audio",
    "audio-spectrogram-transformer",
    "wav2vec2-bert",
)
PICTURES = (
    "vit", "deit", "swin", "convnext", "resnet", "mobilenet_v1", "mobilenet_v2", "poolformer",
    "segformer", "dinov2", "levit", "regnet", "cvt", "van", "yolos", "glpn", "pvt", "focalnet",
    "bit", "mobilevit", "efficientnet", "swiftformer", "beit", "data2vec-vision", "hiera",
)  # fmt: skip


class First(nn.Module):
    """A network's tensors without those that are None, caches or not tensors."""

    def __init__(self, inner: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self.inner, self.names = inner, names

    def forward(self, *tensors: Any) -> Any:
        """Run it with its inputs by name."""
        found = self.inner(**dict(zip(self.names, tensors, strict=False)))
        if hasattr(found, "to_tuple"):
            found = found.to_tuple()
        while isinstance(found, (tuple, list)):
            found = found[0]
        return found if isinstance(found, torch.Tensor) else next(iter(found.values()))


class Recurrent(nn.Module):
    """An embedding, a recurrent layer, and the last step's classes."""

    def __init__(self, layer: Any, **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.layer = layer(8, 6, batch_first=True, **options)
        self.last = nn.Linear(12 if options.get("bidirectional") else 6, 3)

    def forward(self, tokens: Any) -> Any:
        """Classify tokens."""
        return self.last(self.layer(self.embedding(tokens))[0][:, -1]).softmax(-1)


def small() -> dict[str, tuple[Any, Any, set[int]]]:
    """Networks of layers: module, an input, and its open axes besides the first."""
    vector, line, picture = torch.randn(2, 16), torch.randn(2, 4, 40), torch.randn(2, 4, 20, 20)
    steps, tokens = torch.randn(2, 10, 16), torch.randint(0, 50, (2, 10))
    volume = torch.randn(2, 2, 8, 8, 8)

    class Dilated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                *(nn.Conv1d(4, 4, 3, dilation=d, padding=d) for d in (1, 2, 4, 8))
            )
            self.dense = nn.Linear(4, 5)

        def forward(self, x: Any) -> Any:
            return self.dense(self.layers(x).transpose(1, 2))

    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.dense = nn.Conv1d(4, 4, 3, dilation=4), nn.Linear(4, 5)

        def forward(self, x: Any) -> Any:
            x = self.conv(nn.functional.pad(x, (8, 0)))
            return self.dense(x.transpose(1, 2)).mean(1)

    class UNet(nn.Module):
        def __init__(self, **options: Any) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(12, 4, 3, padding=1)
            self.options = options

        def forward(self, x: Any) -> Any:
            low = nn.functional.max_pool2d(self.down(x), 2)
            if "transposed" in self.options:
                return low
            high = nn.functional.interpolate(low, **(self.options or {"scale_factor": 2}))
            return self.up(torch.cat([high, x], 1))

    def of(function: Any) -> Any:
        class Wrapped(nn.Module):
            def forward(self, x: Any) -> Any:
                return function(x)

        return Wrapped()

    relu, softmax = nn.ReLU(), nn.Softmax(-1)
    return {
        "mlp": (nn.Sequential(nn.Linear(16, 8), relu, nn.Linear(8, 3), softmax), vector, set()),
        "mlp-norm": (nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.GELU(),
                                   nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 3)), vector, set()),
        "activations": (nn.Sequential(nn.ELU(), nn.CELU(), nn.SELU(), nn.Mish(), nn.Hardswish(),
                                      nn.Hardsigmoid(), nn.LeakyReLU(), nn.PReLU(), nn.Softplus(),
                                      nn.Softsign(), nn.Tanhshrink(), nn.GELU("tanh"),
                                      nn.LogSoftmax(-1)), vector, set()),
        "cnn": (nn.Sequential(nn.Conv2d(4, 8, 3), relu, nn.MaxPool2d(2), nn.Flatten(),
                              nn.Linear(8 * 81, 3)), picture, set()),
        "cnn-open": (nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8), relu,
                                   nn.MaxPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                   nn.Linear(8, 3)), picture, {2, 3}),
        "pools": (nn.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(2, 1, 1),
                                nn.AvgPool2d(2, count_include_pad=False)), picture, set()),
        "pools-open": (nn.Sequential(nn.MaxPool2d(3, 2, 1, ceil_mode=True),
                                     nn.AvgPool2d(2)), picture, {2, 3}),
        "lp-pool": (nn.LPPool2d(2, 2), picture, set()),
        "adaptive": (nn.Sequential(nn.AdaptiveAvgPool2d((4, 5)), nn.Flatten()), picture, set()),
        "transposed": (nn.Sequential(nn.ConvTranspose2d(4, 3, 2, 2), nn.ConvTranspose2d(
            3, 2, 3, 2, 1, output_padding=1)), picture, {2, 3}),
        "u-net": (UNet(), picture, set()),
        "u-net-bilinear": (UNet(scale_factor=2, mode="bilinear"), picture, set()),
        "u-net-corners": (UNet(size=(20, 20), mode="bilinear", align_corners=True), picture, set()),
        "dilated": (Dilated(), line, {2}),
        "causal": (Causal(), line, {2}),
        "conv1d": (nn.Sequential(nn.Conv1d(4, 8, 5, padding="same"), relu, nn.MaxPool1d(2)),
                   line, {2}),
        "conv3d": (nn.Sequential(nn.Conv3d(2, 4, 3), nn.MaxPool3d(2), nn.Flatten()), volume, set()),
        "norms": (nn.Sequential(nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True),
                                nn.LocalResponseNorm(2)), picture, set()),
        "shuffle": (nn.Sequential(nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.ChannelShuffle(2)),
                    picture, set()),
        "pads": (nn.Sequential(nn.ReflectionPad2d(1), nn.ReplicationPad2d(1), nn.ZeroPad2d(1)),
                 picture, {2, 3}),
        "gru": (Recurrent(nn.GRU), tokens, {1}),
        "lstm": (Recurrent(nn.LSTM, bidirectional=True, num_layers=2), tokens, {1}),
        "rnn": (Recurrent(nn.RNN), tokens, {1}),
        "encoder": (nn.TransformerEncoder(nn.TransformerEncoderLayer(
            16, 2, 32, batch_first=True), 2), steps, {1}),
        "encoder-first": (nn.TransformerEncoder(nn.TransformerEncoderLayer(
            16, 2, 32, batch_first=True, norm_first=True, activation="gelu"), 1), steps, set()),
        "attention": (of(lambda x: nn.functional.scaled_dot_product_attention(x, x, x)),
                      torch.randn(2, 2, 10, 8), {2}),
        "attention-causal": (of(lambda x: nn.functional.scaled_dot_product_attention(
            x, x, x, is_causal=True)), torch.randn(2, 2, 10, 8), {2}),
        "top-k": (of(lambda x: x.topk(3).values), vector, set()),
        "arg-max": (of(lambda x: x.argmax(-1)), vector, set()),
        "one-hot": (of(lambda x: nn.functional.one_hot(x, 50).float().mean(1)), tokens, {1}),
        "norm-of-rows": (of(lambda x: nn.functional.normalize(x)), vector, set()),
        "pooled": (of(lambda x: (x * (x > 0)).sum(1) / (x > 0).sum(1).clamp(min=1)), steps, {1}),
        "standardized": (of(lambda x: (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)),
                         vector, set()),
        "cumulated": (of(lambda x: x.cumsum(1).flip(1).roll(1, 1)), vector, set()),
        "log-sum": (of(lambda x: x.logsumexp(1, keepdim=True) + x.amax(1, keepdim=True)
                       + x.norm(dim=1, keepdim=True) + x.prod(1, keepdim=True)), vector, set()),
        "parts": (of(lambda x: torch.cat([part * 2 for part in x.chunk(4, 1)], 1)), vector, set()),
        "gathered": (of(lambda x: x.gather(1, x.argsort(1)[:, :3])), vector, set()),
        "windows": (of(lambda x: x.unfold(2, 8, 4).mean(-1)), line, set()),
        "grid": (of(lambda x: nn.functional.grid_sample(x, x.permute(0, 2, 3, 1)[..., :2].tanh(),
                                                        align_corners=False)), picture, set()),
        "einsum": (of(lambda x: torch.einsum("bij,bkj->bik", x, x)), steps, {1}),
        "masked": (of(lambda x: x.masked_fill(x < 0, -1e9).softmax(-1).triu()), steps, set()),
        "frames": (of(lambda x: torch.stft(x, 32, 16, window=torch.hann_window(32),
                                           return_complex=False)), torch.randn(2, 256), set()),
        "functions": (of(lambda x: torch.stack([
            f(x.sigmoid()) for f in (
                torch.floor, torch.ceil, torch.round, torch.sin, torch.cos, torch.tan, torch.asin,
                torch.acos, torch.atan, torch.sinh, torch.cosh, torch.asinh, torch.acosh,
                torch.atanh, torch.sign, torch.reciprocal, torch.erf, torch.exp, torch.log,
                torch.log1p, torch.expm1, torch.rsqrt, torch.square, torch.frac,
                nn.functional.softsign, nn.functional.hardtanh, nn.functional.softshrink,
                nn.functional.hardshrink,
            )], 1)), vector, set()),
        "reduced": (of(lambda x: torch.stack([
            x.amin(1), x.amax(1), x.abs().sum(1), x.norm(1, dim=1), x.std(1), x.logsumexp(1),
            x.prod(1), x.mean(1), x.square().sum(1).sqrt(), x.argmin(1).float()], 1)),
            vector, set()),
        "compared": (of(lambda x: torch.where(torch.isnan(x) | torch.isinf(x), 0.0, x)
                        * ((x > 0) & (x <= 3) ^ (x == 1)).float() + torch.fmod(x, 2)
                        + torch.remainder(x, 2) + torch.minimum(x, -x) + x.clamp(-1, 1)),
                     vector, set()),
        "rms-norm": (nn.RMSNorm(16), vector, set()),
        "hard": (of(lambda x: nn.functional.threshold(x, 0.5, 0.0) + nn.functional.glu(
            torch.cat([x, x], 1)) + nn.functional.dropout(x, 0.5, False)), vector, set()),
        **{f"cast-{kind}": (of(lambda x: x.float() / 100), torch.ones(2, 16, dtype=kind), set())
           for kind in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
                        torch.bool)},
        "half": (nn.Sequential(nn.Linear(16, 8), relu, nn.Linear(8, 3)).half(), vector.half(),
                 set()),
        "double": (nn.Sequential(nn.Linear(16, 8), nn.Sigmoid()).double(), vector.double(), set()),
    }  # fmt: skip


def write(name: str, exporter: str, module: Any, inputs: Any, open_axes: Any, path: Path) -> None:
    """Export a module with an open first axis, and others."""
    module.eval()
    names = [f"x{number}" for number in range(len(inputs))]
    if exporter == "script":
        axes = {
            each: {0: "batch"} | {at: f"axis{at}" for at in sorted(open_axes)} for each in names
        }
        torch.onnx.export(module, inputs, str(path), input_names=names, output_names=["y"],
                          dynamic_axes=axes | {"y": {0: "batch"}}, dynamo=False,
                          opset_version=17)  # fmt: skip
    else:
        dynamic = torch.export.Dim.DYNAMIC
        shapes = tuple(dict.fromkeys((0, *open_axes), dynamic) for _ in inputs)
        given = (shapes,) if isinstance(module, First) else shapes  # of its *tensors
        torch.onnx.export(module, inputs, str(path), input_names=names, dynamic_shapes=given,
                          dynamo=True, external_data=False, verbose=False,
                          opset_version=23 if exporter == "dynamo23" else None)  # fmt: skip


def tiny(config: Any) -> Any:
    """Make a configuration small, where it has the usual names."""
    small_sizes = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "num_key_value_heads": 2, "vocab_size": 100, "d_model": 32,
        "n_embd": 32, "n_layer": 2, "n_head": 4, "dim": 32, "n_layers": 2, "n_heads": 4,
        "hidden_dim": 64, "num_layers": 2, "num_heads": 4, "embedding_size": 32,
        "max_position_embeddings": 64, "word_embed_proj_dim": 32, "ffn_dim": 64, "head_dim": 8,
        "emb_dim": 32, "d_inner": 64, "d_head": 8, "conv_depthwise": False,
    }  # fmt: skip
    for key, number in small_sizes.items():
        if isinstance(getattr(config, key, None), int):
            try:
                setattr(config, key, number)
            except Exception:  # a name that only reads another one
                continue
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if isinstance(getattr(config, key, None), int):
            setattr(config, key, 1)
    config._attn_implementation = "eager"
    return config


def cases() -> Any:
    """Yield the name, a maker of module and inputs, and the open axes besides the first."""
    for name, (module, example, axes) in small().items():
        yield f"torch-{name}", lambda m=module, x=example: (m, (x,)), axes
    import torchvision

    for name in VISION:
        size = {"swin_t": 224, "swin_v2_t": 256, "vit_b_16": 224, "maxvit_t": 224,
                "inception_v3": 128}.get(name, 64)  # fmt: skip
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        make = lambda n=name, s=size, o=options: (  # noqa: E731
            torchvision.models.get_model(n, weights=None, **o),
            (torch.randn(2, 3, s, s),),
        )
        yield f"torchvision-{name}", make, set()
    for name in SEGMENTATION:
        make = lambda n=name: (  # noqa: E731
            First(torchvision.models.get_model(n, weights=None, weights_backbone=None), ("x",)),
            (torch.randn(2, 3, 64, 64),))  # fmt: skip
        yield f"torchvision-{name}", make, set()
    import timm

    for name in TIMM:

        def made(name: str = name) -> Any:
            module = timm.create_model(name, pretrained=False, exportable=True)
            return module, (torch.randn(2, *module.default_cfg["input_size"]),)

        yield f"timm-{name}", made, set()
    from transformers import AutoConfig, AutoModel

    tokens, mask = torch.randint(2, 90, (2, 12)), torch.ones(2, 12, dtype=torch.int64)
    for name in TEXTS:

        def text(name: str = name) -> Any:
            module = AutoModel.from_config(tiny(AutoConfig.for_model(name, use_cache=False)))
            return First(module, ("input_ids", "attention_mask")), (tokens, mask)

        yield f"transformers-{name}", text, {1}
    for name in SPEECH:

        def speech(name: str = name) -> Any:
            config = tiny(AutoConfig.for_model(name))
            key = "input_features" if name == "wav2vec2-bert" else "input_values"
            wave = torch.randn(2, 4000)
            if name == "audio-spectrogram-transformer":
                wave = torch.randn(2, config.max_length, config.num_mel_bins)
            if name == "wav2vec2-bert":
                wave = torch.randn(2, 40, 160)
            return First(AutoModel.from_config(config), (key,)), (wave,)

        yield f"transformers-{name}", speech, set()
    for name in PICTURES:

        def picture(name: str = name) -> Any:
            config = AutoConfig.for_model(name)
            size = getattr(config, "image_size", 64)
            size = size if isinstance(size, int) else 64
            return First(AutoModel.from_config(config), ("pixel_values",)), (
                torch.randn(2, 3, size, size),)  # fmt: skip

        yield f"transformers-{name}", picture, set()


def write_yolo(name: str, folder: Path, *, is_open: bool) -> None:
    """Export a detector of Ultralytics with random weights, by its own command."""
    from ultralytics import YOLO

    end = "-open" if is_open else ""
    target = folder / f"ultralytics-{name}{end}-script.onnx"
    if not target.exists():
        model = YOLO(f"{name}.yaml")
        made = model.export(format="onnx", imgsz=64, dynamic=is_open, simplify=False, device="cpu",
                            verbose=False)  # fmt: skip
        Path(made).rename(target)


def main() -> None:
    """Write all models whose names have the given part."""
    warnings.simplefilter("ignore")
    folder, part = Path(sys.argv[1]).absolute(), (sys.argv[2:] or [""])[0]
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    for name, make, axes in cases():
        is_new = any(each in name for each in ("attention", "encoder", "rms", "deit", "causal"))
        for exporter in ("script", "dynamo", *["dynamo23"] * is_new):
            path = folder / f"{name}-{exporter}.onnx"
            if part not in path.name or path.exists():
                continue
            try:
                with torch.no_grad():
                    module, inputs = make()
                    write(name, exporter, module, inputs, axes, path)
            except Exception as err:  # exporters raise anything
                path.unlink(missing_ok=True)
                print(f"{path.stem}: {type(err).__name__}: {str(err)[:100]!r}", flush=True)
    for name in YOLO:
        for is_open in (False, True):
            if part in f"ultralytics-{name}":
                try:
                    write_yolo(name, folder, is_open=is_open)
                except Exception as err:
                    print(f"ultralytics-{name}: {type(err).__name__}: {str(err)[:100]!r}")


if __name__ == "__main__":
    main()
