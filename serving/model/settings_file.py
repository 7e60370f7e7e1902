"""config.pbtxt, Triton's file of a model's settings: read, and checked for what is served here."""

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from google.protobuf import text_format

from serving.config import BatchingMode, Device, SpotChecking
from serving.errors import ConfigurationError
from serving.model.repository import companion, is_file
from serving.model.settings import NO_SETTINGS, SETTINGS, ModelSettings
from serving.proof.onnx_file import message_classes
from serving.system.files import read_regular
from serving.tensors import DTYPES

(ModelConfig,) = message_classes("serving.model", "model_config.binpb", "digits.triton.ModelConfig")
_MAX_BYTES = 64 << 10
_MAX_DEPTH = 16
_MAX_DELAY_US = 10**12
"""As many seconds as `--max-queue-delay` takes."""
_IGNORED = {
    "runtime", "batch_input", "batch_output", "optimization", "metric_tags", "model_warmup",
    "model_operations", "cc_model_filenames", "model_transaction_policy", "response_cache",
    "model_repository_agents", "model_metrics",
}  # fmt: skip
"""Fields of Triton's that have no meaning here."""
_USED: dict[str, set[str]] = {
    "name": set(), "platform": set(), "backend": set(), "max_batch_size": set(),
    "default_model_filename": set(), "version_policy": set(), "parameters": set(),
    "input": {"name", "data_type", "dims", "reshape"},
    "output": {"name", "data_type", "dims", "reshape"},
    "instance_group": {"name", "count", "kind"},
    "dynamic_batching": {"max_queue_delay_microseconds"},
}  # fmt: skip
"""Fields of the schema that have a meaning here, and which of their own fields; none: all."""
_OWN_PARAMETERS = ("batching", "spot_checks", "max_run_seconds")
"""Keys of `parameters` that only this server reads."""
_OF_CUDA = {"cudnn_conv_algo_search", "gpu_mem_limit", "arena_extend_strategy", "use_tf32",
            "do_copy_in_default_stream"}  # fmt: skip
"""Keys that are options of CUDA's execution provider."""
_CONV_SEARCH = {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"}
"""Triton's numbers for `cudnn_conv_algo_search`."""
_THREADS, _ARENA = "intra_op_thread_count", "enable_mem_arena"
_MAX_THREADS = 1024
_OF_SESSIONS = {
    "session.intra_op.allow_spinning", "session.intra_op.spin_duration_us",
    "session.force_spinning_stop", "session.dynamic_block_base",
    "session.set_denormal_as_zero", "session.disable_prepacking", "session.disable_quant_qdq",
    "session.enable_quant_qdq_cleanup", "session.qdqisint8allowed",
    "session.use_device_allocator_for_initializers", "session.intra_op_thread_affinities",
}  # fmt: skip
"""Keys that are entries of a session's configuration. Others name files to read or to write, which
no model's settings may."""
_PARAMETERS = {*_OWN_PARAMETERS, *_OF_CUDA, *_OF_SESSIONS, _THREADS, _ARENA}
"""Keys of `parameters` that have a meaning here."""
_OF_ONNX_RUNTIME = {
    "inter_op_thread_count", "execution_mode", "enable_mem_pattern",
    "memory.enable_memory_arena_shrinkage",
}  # fmt: skip
"""Further keys that Triton's backend for ONNX Runtime reads, as are all that begin with
`session.`."""
_NEAR = 0.75
"""Likeness from which another key is taken for a misspelled one of ours."""
_REFUSED = {"ensemble_scheduling": "ensembles", "sequence_batching": "models with a state"}
_TOKEN = re.compile(
    r"""\s+|\#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|[{}\[\]<>:,;]|[^\s{}\[\]<>:,;#"']+"""
)


def parse_settings(data: bytes) -> ModelSettings:
    """Parse a config.pbtxt.

    Raises:
        ConfigurationError: it is malformed, or a field is unknown or can't be served.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{SETTINGS}: it is no text in UTF-8") from None
    known = ModelConfig.DESCRIPTOR.fields_by_name
    kept, ignored = [], []
    for name, statement in statements(text):
        if name in known:
            kept.append(statement)
        elif name in _REFUSED:
            raise ConfigurationError(f"{SETTINGS}: {name}: {_REFUSED[name]} are not served here")
        elif name in _IGNORED:
            ignored.append(name)
        else:
            raise ConfigurationError(f"{SETTINGS}: there is no field {name[:100]!r}")
    try:
        message = text_format.Parse("\n".join(kept), ModelConfig())
    except (text_format.ParseError, ValueError) as err:
        reason = re.sub(r"^\d+:\d+ : ", "", str(err)).replace("digits.triton.", "")
        raise ConfigurationError(f"{SETTINGS}: {' '.join(reason.split())[:200]}") from None
    return _settings_of(message, (*ignored, *_unused(message)))


def _unused(message: Any) -> Iterator[str]:
    """Yield the fields and parameters of the schema that are set and have no effect."""
    for known, value in message.ListFields():
        parts = value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
        if used := _USED[known.name]:
            found = {each.name: None for part in parts for each, _ in part.ListFields()}
            yield from (f"{known.name}.{name}" for name in found if name not in used)
    for each in message.parameters:
        if each.key not in _PARAMETERS:
            yield f"parameters.{each.key[:100]}"


def _parameters(message: Any) -> Mapping[str, str]:
    """Return the parameters by their keys.

    Raises:
        ConfigurationError: a key stands there twice, or is one of ours, misspelled.
    """
    given: dict[str, str] = {}
    for each in message.parameters:
        key = each.key
        if key in given:
            raise ConfigurationError(f"{SETTINGS}: parameters: {key[:100]!r} stands there twice")
        given[key] = each.value.string_value
        if key in _PARAMETERS or key in _OF_ONNX_RUNTIME or key.startswith("session."):
            continue
        plain = key.strip().lower().replace("-", "_")
        if near := get_close_matches(plain, sorted(_PARAMETERS), 1, _NEAR):
            raise ConfigurationError(
                f"{SETTINGS}: parameters: there is no {key!r}: did you mean {near[0]}?"
            )
    return given


def statements(text: str) -> Iterator[tuple[str, str]]:
    """Divide a file into its fields, each with its text."""
    depth, name, begin, previous = 0, "", 0, ""
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            raise ConfigurationError(f"{SETTINGS}: a text has no end: {text[at : at + 40]!r}")
        word, at = token[0], token.end()
        if word[0].isspace() or word[0] == "#":
            continue
        if word in "{[<":
            depth += 1
            if depth > _MAX_DEPTH:
                raise ConfigurationError(f"{SETTINGS}: {name}: nested more than {_MAX_DEPTH} deep")
        elif word in "}]>":
            depth -= 1
        elif not depth and previous != ":" and re.match(r"[A-Za-z_]", word):
            if name:
                yield name, text[begin : token.start()]
            name, begin = word, token.start()
        previous = word
    if depth:
        raise ConfigurationError(f"{SETTINGS}: {name}: a bracket is not closed")
    if name:
        yield name, text[begin:]


def _settings_of(message: Any, ignored: tuple[str, ...]) -> ModelSettings:
    for name in ("backend", "platform"):
        value = getattr(message, name)
        if value not in ("", "onnxruntime", "onnxruntime_onnx"):
            raise ConfigurationError(
                f"{SETTINGS}: {name}: expected onnxruntime, got {value[:100]!r}"
            )
    given = _parameters(message)
    mode: Any = given.get("batching", "")
    max_run = given.get("max_run_seconds", "")
    if max_run and not (re.fullmatch(r"\d{1,6}(\.\d{1,6})?", max_run) and float(max_run)):
        raise ConfigurationError(
            f"{SETTINGS}: parameters: max_run_seconds: expected a number above 0, "
            f"got {max_run[:100]!r}"
        )
    most = message.max_batch_size if message.HasField("max_batch_size") else None
    if most is not None and most < 0:
        raise ConfigurationError(f"{SETTINGS}: max_batch_size: expected 0 or more, got {most}")
    if mode not in ("", *get_args(BatchingMode)):
        raise ConfigurationError(
            f"{SETTINGS}: parameters: batching: expected auto, always or never, got {mode[:100]!r}"
        )
    checks: Any = given.get("spot_checks", "")
    if checks not in ("", *get_args(SpotChecking)):
        raise ConfigurationError(
            f"{SETTINGS}: parameters: spot_checks: expected on or off, got {checks[:100]!r}"
        )
    delay = message.dynamic_batching.max_queue_delay_microseconds
    has_delay = message.HasField("dynamic_batching") and delay > 0
    if delay > _MAX_DELAY_US:
        raise ConfigurationError(
            f"{SETTINGS}: dynamic_batching: max_queue_delay_microseconds: expected at most "
            f"{_MAX_DELAY_US}, got {delay}"
        )
    versions, num_latest = _versions_of(message.version_policy)
    instances, device = _instances_of(message.instance_group)
    file_name = message.default_model_filename or None
    is_name = file_name is None or (file_name == Path(file_name).name and file_name.isprintable())
    if not is_name or (file_name or "").startswith("."):
        raise ConfigurationError(
            f"{SETTINGS}: default_model_filename: expected a name in the version's folder, "
            f"got {message.default_model_filename[:100]!r}"
        )
    return ModelSettings(
        batching="never" if most == 0 else mode or "auto",
        max_batch_size=most or 1 << 31,
        max_queue_delay_s=delay / 1e6 if has_delay else None,
        max_run_s=float(max_run) if max_run else None,
        spot_checks=checks or None,
        instances=instances,
        device=device,
        versions=versions,
        num_latest=num_latest,
        file_name=file_name,
        tensors=tuple(map(_tensor_of, [*message.input, *message.output])),
        has_batch_axis=bool(most),
        name=message.name or None,
        ignored=ignored,
        num_threads=_whole(given, _THREADS, 1, _MAX_THREADS) or 0,
        keeps_memory=None if _ARENA not in given else bool(_whole(given, _ARENA, 0, 1)),
        provider_options=_provider_options(given),
        config={key: value for key, value in given.items() if key in _OF_SESSIONS},
    )


def _whole(given: Mapping[str, str], key: str, least: int, most: int) -> int | None:
    """Return a parameter that is a whole number; None if it is not given."""
    text = given.get(key)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,6}", text) or not least <= int(text) <= most:
        raise ConfigurationError(
            f"{SETTINGS}: parameters: {key}: expected {least} to {most}, got {text[:100]!r}"
        )
    return int(text)


def _provider_options(given: Mapping[str, str]) -> dict[str, str]:
    """Return the options of CUDA's execution provider."""
    options = {key: value for key, value in given.items() if key in _OF_CUDA}
    search = options.get("cudnn_conv_algo_search")
    if search is not None:
        options["cudnn_conv_algo_search"] = _CONV_SEARCH.get(search, search)
    return options


def _tensor_of(tensor: Any) -> tuple[str, str | None, tuple[int, ...]]:
    types = ModelConfig.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number
    if tensor.data_type not in types:
        raise ConfigurationError(f"{SETTINGS}: data_type: there is no type {tensor.data_type}")
    name = types[tensor.data_type].name.removeprefix("TYPE_").replace("STRING", "BYTES")
    if tensor.data_type and name not in DTYPES:
        raise ConfigurationError(f"{SETTINGS}: data_type: {name} is not served here")
    dims = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
    return tensor.name, name if tensor.data_type else None, tuple(dims)


def _versions_of(policy: Any) -> tuple[str | None, int]:
    choice = policy.WhichOneof("policy_choice")
    if choice == "specific":
        if not policy.specific.versions or min(policy.specific.versions) < 1:
            raise ConfigurationError(f"{SETTINGS}: version_policy: expected versions from 1 on")
        return ",".join(map(str, policy.specific.versions)), 1
    return choice, max(policy.latest.num_versions, 1)


def _instances_of(groups: Any) -> tuple[int | None, Device]:
    kinds = {(each.kind, tuple(each.gpus)) for each in groups}
    if len(kinds) > 1:
        raise ConfigurationError(f"{SETTINGS}: instance_group: one kind of device expected")
    device: Device = "auto"
    for kind, _ in kinds:
        names = {1: "cuda", 2: "cpu"}
        device = names.get(kind, "auto")  # type: ignore[assignment]
    count = sum(max(each.count, 1) for each in groups)
    if count > 1024:
        raise ConfigurationError(f"{SETTINGS}: instance_group: at most 1024 expected, got {count}")
    return (count if any(each.count for each in groups) else None), device


def read_settings(model: Path) -> ModelSettings:
    """Read the settings of a model's folder, or of an ONNX file.

    Raises:
        ConfigurationError: the file can't be read or used, or is that of another model; the text
            names the field.
    """
    file = companion(model, SETTINGS)
    if file is None:
        return NO_SETTINGS
    try:
        data = read_regular(file, _MAX_BYTES)
    except FileNotFoundError:
        return NO_SETTINGS
    except OSError as err:
        raise ConfigurationError(f"can't read {SETTINGS}: {err.strerror}") from err
    settings = parse_settings(data)
    # A folder may be a symbolic link to the one that the file was written for.
    names = {file.absolute().parent.name, file.resolve().parent.name}
    if is_file(model):
        names.add(model.stem)
    if settings.name is not None and settings.name not in names:
        expected = " or ".join(map(repr, sorted(names)))
        raise ConfigurationError(
            f"{SETTINGS}: name: it is that of model {settings.name[:100]!r}, expected {expected}"
        )
    return settings
