"""From a file and a class's name to the class: where a handler is, and its import."""

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Collection, Iterable
from pathlib import Path
from types import FrameType, ModuleType
from typing import NamedTuple, Self

from serving.errors import ConfigurationError
from serving.handlers.handler import Handler

FILE = "handler.py"
"""The handler of a version in a repository, beside its files."""


_file_in_import: Path | None = None
"""The handler's file that is imported now."""


class NeedsModel(ConfigurationError):
    """A handler needs a model, and there is none of the name that it was given for."""


class HandlerSource(NamedTuple):
    """Where a handler is."""

    file: Path
    name: str = ""
    """The class; empty for the only one of the file."""

    @classmethod
    def of(cls, handler: "str | Path | type[Handler]") -> Self:
        """Return where a handler is.

        Args:
            handler: a class, or FILE.py or FILE.py:CLASS.

        Raises:
            ConfigurationError: there is no such file, or the class has none.
        """
        if isinstance(handler, type):
            return cls(*_place_of(handler))
        text = str(handler)
        file, _, name = text.rpartition(":") if not text.endswith(".py") else (text, "", "")
        path = Path(file or text).absolute()
        if path.suffix != ".py" or (name and not name.isidentifier()):
            raise ConfigurationError(f"handler: expected FILE.py or FILE.py:CLASS, got {text!r}")
        found = cls(path, name)
        found.require_file()
        return found

    def require_file(self) -> None:
        """Check that there is a file, not a FIFO or the like, which could not be read.

        Raises:
            ConfigurationError: there is none.
        """
        if self.file.is_file():
            return
        if self.file.is_symlink() and not self.file.exists():
            raise ConfigurationError(f"handler: {self.file} is a link to nothing")
        if self.file.exists():
            raise ConfigurationError(f"handler: {self.file} is no file")
        raise ConfigurationError(f"handler: there is no file {self.file}")

    def __str__(self) -> str:
        """Return it as the command line has it."""
        return f"{self.file}:{self.name}" if self.name else str(self.file)


def named_sources(options: Iterable[str]) -> dict[str, HandlerSource]:
    """Return where handlers are, by the models' names; "" for the only one without a name.

    Of several without a name each has that of its file.

    Args:
        options: NAME=FILE.py, FILE.py, or FILE.py:CLASS.

    Raises:
        ConfigurationError: there is no such file, or two have one name.
    """
    pairs = [option.partition("=") for option in options]
    is_one = sum(not equals for _, equals, _ in pairs) == 1
    found: dict[str, HandlerSource] = {}
    for name, equals, file in pairs:
        source = HandlerSource.of(file if equals else name)
        key = name if equals else "" if is_one else source.file.stem
        if key in found:
            raise ConfigurationError(
                f"handler: two of them for {key}, write NAME=FILE.py: {found[key]} and {source}"
            )
        found[key] = source
    return found


def source_for(model: str, option: str) -> HandlerSource:
    """Return the handler for the only model of a command.

    Args:
        model: its name.
        option: as for `named_sources`.

    Raises:
        ConfigurationError: there is no such file, or it is for a model of another name.
    """
    ((name, source),) = named_sources([option]).items()
    if name not in ("", model):
        raise ConfigurationError(f"handler {name}: the model is named {model}")
    return source


def assigned(
    sources: dict[str, HandlerSource], models: Collection[str]
) -> dict[str, HandlerSource]:
    """Give a handler without a name to the only model, or make it a model of its file's name.

    Raises:
        ConfigurationError: there are several models.
    """
    named = {name: source for name, source in sources.items() if name}
    if (unnamed := sources.get("")) is not None:
        if len(models) > 1:
            there = ", ".join(list(models)[:8])
            raise ConfigurationError(f"handler: expected NAME={unnamed.file}, of {there}")
        named[next(iter(models), unnamed.file.stem)] = unnamed
    return named


def _place_of(handler: type) -> tuple[Path, str]:
    """Return a class's file and name, by which a process of its own imports it."""
    name = handler.__qualname__
    if not issubclass(handler, Handler):
        raise ConfigurationError(f"handler: expected a subclass of serving.Handler, got {name}")
    try:
        file = inspect.getsourcefile(handler)
    except TypeError:  # it was typed in
        file = None
    if file is None or not Path(file).is_file():
        raise ConfigurationError(f"handler: {name} has no file: its processes import it from one")
    if "." in name:
        raise ConfigurationError(
            f"handler: {name} is defined inside of another: its processes import it by its name"
        )
    return Path(file).absolute(), name


def load(source: HandlerSource) -> type[Handler]:
    """Import a handler's class; its file's folder is importable from then on.

    Raises:
        ConfigurationError: it can't be imported, or there is no such class; the text begins with
            the file and the line.
    """
    global _file_in_import
    before, _file_in_import = _file_in_import, source.file
    try:
        module = _imported(source.file)
    except BaseException as err:  # of others: it raises anything, such as SystemExit
        raise ConfigurationError(line_of(err, source.file)) from err
    finally:
        _file_in_import = before
    if source.name:
        found = getattr(module, source.name, None)
        if not (isinstance(found, type) and issubclass(found, Handler)):
            raise ConfigurationError(
                f"{source.file.name}:1: there is no subclass of serving.Handler {source.name!r}"
            )
        return found
    own = [
        each
        for each in vars(module).values()
        if isinstance(each, type)
        and issubclass(each, Handler)
        and each.__module__ == module.__name__
    ]
    if len(own) == 1:
        return own[0]
    names = ", ".join(each.__name__ for each in own)
    hint = f"{names}: name one as {source.file.name}:CLASS" if own else "none"
    raise ConfigurationError(
        f"{source.file.name}:1: expected one subclass of serving.Handler, got {hint}"
    )


def require_no_import(what: str) -> None:
    """Check that no handler's file is imported: a server that it starts would import it again.

    Args:
        what: the call that starts a server.

    Raises:
        ConfigurationError: one is; the text begins with its file and line.
    """
    file = _file_in_import
    if file is None:
        return
    lines = [each.lineno for each in traceback.extract_stack() if Path(each.filename) == file]
    raise ConfigurationError(
        f"{file.name}:{(lines or [1])[-1]}: {what} starts a server whenever the file is imported, "
        "as each process of its handler does: put it below if __name__ == '__main__':"
    )


def imported_beside(file: Path) -> list[Path]:
    """Return the files that a handler's file has imported from its folder, or its package's."""
    root, _ = _root_of(file)
    found = []
    for name, module in [*sys.modules.items()]:
        path = Path(getattr(module, "__file__", None) or "")
        if _is_own(path, root) and path != file and name.partition(".")[0] != "serving":
            found.append(path)
    return sorted(found)


def _is_own(path: Path, root: Path) -> bool:
    """Return whether a file is the user's: below a folder, and not installed there."""
    return path.is_relative_to(root) and "site-packages" not in path.parts


def _root_of(file: Path) -> tuple[Path, list[str]]:
    """Return the folder to import a file from, and the parts of its module's name."""
    root, names = file.parent, [file.stem]
    while (root / "__init__.py").is_file():
        names.insert(0, root.name)
        root = root.parent
    return root, names


def _imported(file: Path) -> ModuleType:
    """Import a file: as part of its package, if it is in one."""
    root, names = _root_of(file)
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    if len(names) > 1:
        return importlib.import_module(".".join(names))
    known = sys.modules.get(file.stem)
    if known is not None and getattr(known, "__file__", None) == str(file):
        return known
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if known is None:  # else its name is that of another module, which others import
        sys.modules[file.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if known is None:
            del sys.modules[file.stem]
        raise
    return module


def text_of(error: BaseException) -> str:
    """Return the text of a user's error in one line; empty if it has none."""
    try:
        return " ".join(str(error).split())
    except Exception:  # of its own `__str__`
        return ""


def line_of(error: BaseException, file: Path) -> str:
    """Return an error in one line: file, line, type and text.

    Args:
        error: as raised by a user's code.
        file: the handler's. The innermost line of the user's own files is shown.
    """
    if isinstance(error, ConfigurationError):
        return str(error)
    text = f"{type(error).__name__}: {text_of(error)}".removesuffix(": ")
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}: {text}"
    root, _ = _root_of(file)
    own = [
        (Path(each.filename), each.lineno)
        for each in traceback.extract_tb(error.__traceback__)
        if _is_own(Path(each.filename), root)
    ]
    lines = [line for path, line in own if path == file]
    place = f"{file.name}:{(lines or [1])[-1]}"
    if own and own[-1][0] != file:
        path, line = own[-1]
        return f"{path.relative_to(root)}:{line}: {text} (by {place})"
    return f"{place}: {text}"


def place_of(frame: FrameType | None, file: Path) -> str:
    """Return where a thread is, as FILE:LINE in FUNCTION: its innermost line of the user's files.

    Args:
        frame: the thread's innermost frame.
        file: the handler's.
    """
    root, _ = _root_of(file)
    lines = [
        (Path(each.f_code.co_filename), line, each) for each, line in traceback.walk_stack(frame)
    ]
    own = [each for each in lines if _is_own(each[0], root)] or lines
    if not own:
        return "an unknown line"
    path, line, innermost = own[0]
    return f"{path.name}:{line} in {innermost.f_code.co_name}"
