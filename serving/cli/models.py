"""The model that a command's options name, to be loaded here; and options as configurations."""

import argparse
import logging
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from serving.applications import bundled_model
from serving.commandline import installation
from serving.config import BatchingConfig, ModelConfig, SecurityConfig, ServerConfig
from serving.errors import ConfigurationError

if TYPE_CHECKING:
    from serving.model.loaded import LoadedModel
    from serving.model.preprocessing import Preprocessing

_log = logging.getLogger(__name__)
Config = TypeVar("Config", BatchingConfig, ModelConfig, SecurityConfig, ServerConfig)


def load_with_pictures(
    options: argparse.Namespace, config: ModelConfig, path: Path | None = None
) -> "tuple[LoadedModel, Preprocessing | None]":
    """Load a model here, and how pictures become its input; None if it takes none.

    Raises:
        ServingError: see `load_model`; or it can't take pictures, though the options say so.
    """
    # Late, here and below: `infer` of a server loads no model, and `serve` sets how NumPy starts.
    from serving.model.loading import load_model
    from serving.model.picture_inputs import PictureInputs, read_labels
    from serving.model.repository import find

    inputs = PictureInputs(is_image=options.input == "image", labels=read_labels(options.labels))
    if inputs.labels and not inputs.is_image:
        raise ConfigurationError("--labels is for --input image")
    path = path or find(config.models, config.model)
    model = load_model(path, config.version, config.device, config.precision, tries_file=True)
    try:
        return model, inputs.of(model)
    except ValueError as err:
        raise ConfigurationError(f"{path}: {err}") from err


def config_of(kind: type[Config], options: argparse.Namespace, **others: object) -> Config:
    """Make a configuration from the options that are named like its fields, and from `others`."""
    names = [field.name for field in fields(kind) if field.name in options]
    return kind(**({name: getattr(options, name) for name in names} | others))


def model_config(options: argparse.Namespace) -> ModelConfig:
    """Make the configuration of one model.

    Raises:
        ConfigurationError: none is named, and there are several.
    """
    models = getattr(options, "models", None)
    if models is None and options.model.endswith(".onnx"):
        root = Path()
    elif models is None:
        root = usual_models(options.model)
    elif "://" in models:
        installation.require("fsspec")
        from serving.model.remote import RemoteRepository  # late: see above

        root = RemoteRepository(models, options.model_cache).fetch()
    else:
        root = Path(models)
    name = options.model or only_model(root)
    return config_of(ModelConfig, options, models=root, model=name)


def only_model(root: Path) -> str:
    """Return the name of the model to run where none is named: the only one, or the bundled one.

    Raises:
        ModelNotFound: there is none.
        ConfigurationError: there are several others.
    """
    from serving.model.repository import models_in, none_in  # late: see above

    found, bundled = [*models_in(root)], bundled_model()
    if len(found) == 1:
        return found[0]
    if not found:
        raise none_in(root)
    if bundled is not None and bundled.name in found:
        return bundled.name
    raise ConfigurationError(f"--model names one of {', '.join(found[:8])}")


def usual_models(model: str = "") -> Path:
    """Choose the repository if none is named; log if it is the bundled one."""
    from serving.model import repository  # late: see above

    usual, bundled = ModelConfig().models, bundled_model()
    if not model and (bundled is None or repository.models_in(usual)):
        return usual
    model = model or (bundled.name if bundled else "")
    root = repository.find_root(model, usual)
    if root != usual:
        _log.info("no model in %s: using the bundled one, %s", usual / model, root / model)
    return root
