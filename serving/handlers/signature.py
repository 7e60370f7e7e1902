"""What a handler's class declares: checked, and as JSON, which its process sends to the server."""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from keyword import iskeyword
from pathlib import Path
from typing import Any, Self, get_args

from serving.errors import ConfigurationError
from serving.handlers.handler import Handler
from serving.handlers.kinds import Kind, Picture, document_of, kinds_of
from serving.tensors import Tensor, TensorSignature

SETUP = "setup"
PREPROCESS, POSTPROCESS, PREDICT = "preprocess", "postprocess", "predict"
METHODS = PREPROCESS, POSTPROCESS, PREDICT
PARAMETERS, METADATA, STATE = "parameters", "metadata", "state"
OPTIONS = PARAMETERS, METADATA, STATE
"""Keyword arguments that a method gets if it names them."""
_NO_METHODS = "expected preprocess, postprocess, or predict"


@dataclass(frozen=True, kw_only=True, slots=True)
class HandlerSignature:
    """A handler's inputs, outputs and methods."""

    name: str
    """The class's name."""
    text: str = ""
    """The first line of its docstring."""
    inputs: Mapping[str, Kind] | None
    """None: the model's own."""
    outputs: Mapping[str, Kind] | None
    """None: the model's own."""
    methods: tuple[str, ...]
    """The methods that it has, of METHODS."""
    options: tuple[str, ...] = ()
    """The options that a method of it names, of OPTIONS."""
    batching: bool = False
    uses: tuple[str, ...] = ()
    in_parts: bool = False
    """Whether its last method is a generator: each call is answered in parts."""
    is_async: bool = False
    """Whether a method is `async def`: a process has several calls in hand."""
    max_concurrency: int = Handler.max_concurrency
    """The most calls that a process has in hand, if it has several or answers in parts."""

    @property
    def needs_model(self) -> bool:
        """Whether a model runs between its methods."""
        return PREDICT not in self.methods

    @property
    def num_jobs(self) -> int:
        """The most calls, or joined ones, that a process works on at a time."""
        return self.max_concurrency if self.is_async else 1

    @property
    def has_pictures(self) -> bool:
        """Whether an input is decoded before the handler gets it."""
        return any(isinstance(kind, Picture) for kind in (self.inputs or {}).values())

    def tensors(self, network: TensorSignature | None) -> TensorSignature:
        """Return the inputs and outputs for callers.

        Args:
            network: those of the model; None without one.
        """
        return TensorSignature(
            _side(self.inputs, network.inputs if network else ()),
            _side(self.outputs, network.outputs if network else ()),
            is_batchable=network is None or network.is_batchable or self.inputs is not None,
            in_parts=self.in_parts,
        )

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "name": self.name,
            "text": self.text,
            "inputs": None if self.inputs is None else document_of(self.inputs),
            "outputs": None if self.outputs is None else document_of(self.outputs),
            "methods": self.methods,
            "options": self.options,
            "batching": self.batching,
            "uses": self.uses,
            "in_parts": self.in_parts,
            "is_async": self.is_async,
            "max_concurrency": self.max_concurrency,
        }

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """Parse `document`."""
        facts = dict(document)
        for side in ("inputs", "outputs"):
            if facts[side] is not None:
                facts[side] = kinds_of(facts[side])
        for name in ("methods", "options", "uses"):
            facts[name] = tuple(facts[name])
        return cls(**facts)


def _side(kinds: Mapping[str, Kind] | None, known: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if kinds is None:
        return known
    return tuple(kind.tensor(name) for name, kind in kinds.items())


def signature_of(handler: type[Handler]) -> HandlerSignature:
    """Check what a class declares.

    Raises:
        ConfigurationError: it can't be used; the text begins with its file and line.
    """
    methods = tuple(name for name in METHODS if callable(getattr(handler, name, None)))
    for each in (SETUP, PREPROCESS):
        _require_no_parts(handler, each)
    is_async = any(is_awaited(getattr(handler, each)) for each in methods)
    if is_awaited(handler.setup) and not is_async:
        text = "`async def` needs a method that is `async def`, too: write def"
        raise _error(handler, f"{SETUP}: {text}", SETUP)
    if not methods:
        raise _error(handler, f"{_NO_METHODS}, got none of them")
    if PREDICT in methods and len(methods) > 1:
        raise _error(handler, f"{_NO_METHODS}, got {' and '.join(methods)}: predict needs no model")
    found = HandlerSignature(
        name=handler.__name__,
        text=(inspect.cleandoc(handler.__doc__ or "").splitlines() or [""])[0],
        inputs=_kinds(handler, "inputs"),
        outputs=_kinds(handler, "outputs"),
        methods=methods,
    )
    if found.inputs is None and methods[0] in (PREPROCESS, PREDICT):
        raise _error(handler, f"{methods[0]} needs inputs, such as {{'text': serving.Text()}}")
    if found.outputs is None and methods[-1] in (POSTPROCESS, PREDICT):
        raise _error(handler, f"{methods[-1]} needs outputs, such as {{'label': serving.Text()}}")
    if found.inputs is not None and methods == (POSTPROCESS,):
        raise _error(handler, "inputs are declared, and there is no preprocess that takes them")
    if found.outputs is not None and methods == (PREPROCESS,):
        raise _error(handler, "outputs are declared, and there is no postprocess that makes them")
    if methods[0] != POSTPROCESS:
        arguments_of(handler, methods[0], tuple(found.inputs or ()))
    options = {name for each in methods for name in _options(getattr(handler, each))}
    if not isinstance(handler.batching, bool):
        raise _error(handler, f"batching: expected True or False, got {handler.batching!r}")
    if isinstance(handler.uses, str) or not all(isinstance(each, str) for each in handler.uses):
        raise _error(handler, f"uses: expected a tuple of models' names, got {handler.uses!r}")
    most: Any = handler.max_concurrency
    if type(most) is not int or most < 1:
        raise _error(handler, f"max_concurrency: expected a number of calls, got {most!r:.80}")
    in_parts = _has_parts(getattr(handler, methods[-1]))
    if in_parts and handler.batching:
        text = "a generator (it has `yield`) answers each call alone: write batching = False"
        raise _error(handler, f"{methods[-1]}: {text}", methods[-1])
    return replace(
        found,
        options=tuple(name for name in OPTIONS if name in options),
        batching=handler.batching,
        uses=tuple(handler.uses),
        in_parts=in_parts,
        is_async=is_async,
        max_concurrency=most,
    )


def is_awaited(method: Callable[..., Any]) -> bool:
    """Return whether a method is `async def`, with `yield` or without."""
    return inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)


def _has_parts(method: Callable[..., Any]) -> bool:
    """Return whether a method has `yield`."""
    return inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(method)


def _kinds(handler: type[Handler], side: str) -> dict[str, Kind] | None:
    kinds: Any = getattr(handler, side)
    if kinds is None:
        return None
    if not isinstance(kinds, Mapping) or not kinds:
        raise _error(handler, f"{side}: expected a kind for each name, got {kinds!r:.80}")
    for name, kind in kinds.items():
        if not isinstance(name, str) or not name or (side == "inputs" and name in OPTIONS):
            raise _error(handler, f"{side}: {name!r} can't be a name")
        if not isinstance(kind, Kind):
            known = " or ".join(f"serving.{each.__name__}(...)" for each in get_args(Kind))
            raise _error(handler, f"{side}: {name}: expected {known}, got {kind!r:.80}")
        if side == "outputs" and isinstance(kind, Picture):
            raise _error(handler, f"outputs: {name}: a picture can't be an output")
    return dict(kinds)


def _options(method: Callable[..., Any]) -> list[str]:
    """Return the names of OPTIONS that a method takes."""
    return [name for name in OPTIONS if name in inspect.signature(method).parameters]


def arguments_of(
    handler: type[Handler], method: str, names: tuple[str, ...]
) -> tuple[str, ...] | None:
    """Return how a method gets values of these names: as which arguments, or None for in order.

    A name that is no identifier is that of an argument with `_` for each character which none may
    have: `Identity:0` is `Identity_0`. In order is a single value, and several of which no name is
    an identifier: else a typo in one argument would exchange them without a word.

    Raises:
        ConfigurationError: it takes others; the text has the line to write.
    """
    if isinstance(inspect.getattr_static(handler, method), staticmethod | classmethod):
        raise _error(handler, f"{method}: expected a method of instances", method)
    parameters = [
        each
        for each in inspect.signature(getattr(handler, method)).parameters.values()
        if each.name not in OPTIONS
    ][1:]  # without self
    if [each.kind for each in parameters] == [inspect.Parameter.VAR_POSITIONAL]:
        return None
    own = [each.name for each in parameters]
    arguments = tuple(map(_argument, names))
    by_name = _by_name(parameters, names, arguments)
    if by_name is not None:
        return by_name
    are_positional = all(each.kind in _POSITIONAL for each in parameters)
    if are_positional and len(own) == len(names):
        others = {each for each in own if each in arguments}
        is_free = not others and not any(map(_is_argument, names))
        if len(names) == 1 or own == [*arguments] or is_free:
            return None
    wanted = arguments if len({*arguments}) == len(names) else ("*values",)
    function = getattr(handler, method)
    line = ", ".join(["self", *wanted, *_options(function)])
    word = "async def" if is_awaited(function) else "def"
    raise _error(
        handler,
        f"{method}: expected to be given {', '.join(sorted(own)) or 'nothing'}, "
        f"there is {', '.join(names)}: write {word} {method}({line})",
        method,
    )


_POSITIONAL = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD


def _by_name(
    parameters: list[inspect.Parameter], names: tuple[str, ...], arguments: tuple[str, ...]
) -> tuple[str, ...] | None:
    """Return the argument for each name: one of a method's own, or any where it takes all."""
    if any(each.kind not in _NAMED for each in parameters) or len({*arguments}) < len(names):
        return None
    own = {each.name for each in parameters if each.kind is not each.VAR_KEYWORD}
    required = {each.name for each in parameters if each.name in own and each.default is each.empty}
    if not required <= {*arguments} or not (len(own) < len(parameters) or {*arguments} <= own):
        return None
    return tuple(
        argument if argument in own else name
        for name, argument in zip(names, arguments, strict=True)
    )


_NAMED = (
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
    inspect.Parameter.VAR_KEYWORD,
)


def _is_argument(name: str) -> bool:
    return name.isidentifier() and not iskeyword(name)


def _argument(name: str) -> str:
    """Return the name of the argument for a value of a name, which may be no identifier."""
    if _is_argument(name):
        return name
    found = re.sub(r"\W|^(?=\d)", "_", name)
    return f"{found}_" if iskeyword(found) else found


def _require_no_parts(handler: type[Handler], method: str) -> None:
    """Refuse `yield` in a method whose values nobody could send.

    Raises:
        ConfigurationError: it is a generator.
    """
    function = getattr(handler, method, None)
    if function is not None and _has_parts(function):
        text = "a generator (it has `yield`) can't be served here: write return"
        if method == PREPROCESS:
            text += ", and yield the parts in postprocess"
        raise _error(handler, f"{method}: {text}", method)


def _error(handler: type[Handler], text: str, method: str = "") -> ConfigurationError:
    """Build an error about a class, or a method of it, with file and line."""
    function: Any = getattr(handler, method, None)
    code = getattr(function, "__code__", None)
    try:
        file = code.co_filename if code else inspect.getsourcefile(handler)
        line = code.co_firstlineno if code else inspect.getsourcelines(handler)[1]
        place = f"{Path(file or '?').name}:{line}: "
    except (OSError, TypeError):  # typed in, so without a file
        place = ""
    return ConfigurationError(f"{place}{handler.__name__}: {text}")
