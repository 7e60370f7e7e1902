"""A user's own pictures: sorted by the labels that somebody gives them, and read for training."""

import hashlib
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from serving.commandline.terminal import escape
from training.data.mnist import SIDE, Examples, Images
from training.errors import DataError, UnusableInput

NO_DIGIT = "none"
"""The folder for pictures of no digit, which no training reads."""

LABELS = {**{digit: digit for digit in "0123456789"}, "n": NO_DIGIT}
"""Key to the folder that a picture is moved to."""

UNDO, QUIT = "u", "q"
HELD_OUT = 5
"""One picture of this many is held out, of each digit."""
_WEIGHT = 0.02
"""Share of an epoch that own images make up, by repetition: each copy is deformed otherwise."""
_MAX_COPIES = 50
_Labelled = tuple[Images, int]
"""An image, (784,) uint8, and its digit."""


def label(folder: Path) -> str:
    """Ask for the digit of each picture below a folder, and move it to the digit's own folder.

    The pictures in the folders 0 to 9 and NO_DIGIT have their label already. A picture is moved as
    soon as its key is pressed, so the next call continues where this one ended.

    Returns:
        A line on the outcome, to show.

    Raises:
        UnusableInput: the folder is missing, there is no terminal to ask in, or Pillow or SciPy is
            not installed.
        OSError: a picture could not be moved.
        KeyboardInterrupt: Ctrl-C; its text is the line on the outcome.
    """
    if not folder.is_dir():
        raise UnusableInput(
            f"there is no folder {folder}; make it, with copies of the pictures to label"
        )
    waiting = [path for path in sorted(folder.rglob("*")) if _waits(path, folder)]
    if not waiting:
        return f"nothing to label: each picture in {folder} has its label"
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UnusableInput(
            f"label asks in a terminal, and here is none; or move each of the {len(waiting)} "
            f"pictures yourself, into the folder of its digit: {folder / '0'} to {folder / '9'}"
        )
    moved: list[tuple[Path, Path]] = []
    try:
        with _single_keys():
            is_complete = _label(folder, waiting, moved)
    except KeyboardInterrupt:
        print()
        raise KeyboardInterrupt(f"{len(moved)} labelled; the same command continues") from None
    following = f"`digit-serving train --extra {folder}` comes next"
    return f"{len(moved)} labelled; {following if is_complete else 'the same command continues'}"


def _waits(path: Path, folder: Path) -> bool:
    """Return whether a path is a visible file below a folder, without a label."""
    parts = path.relative_to(folder).parts
    is_hidden = any(part.startswith(".") for part in parts)
    is_file = path.is_file() and not path.is_symlink()  # a relative link would lead elsewhere
    return is_file and not is_hidden and parts[0] not in LABELS.values()


def _label(folder: Path, waiting: list[Path], moved: list[tuple[Path, Path]]) -> bool:
    """Ask for each picture; append old and new path of those moved; return if all are done."""
    place = 0
    while place < len(waiting):
        picture = waiting[place]
        print(f"\n{place + 1} of {len(waiting)}  {escape(str(picture))}")
        key = _ask(picture)
        if key == QUIT:
            return False
        try:
            if key == UNDO and moved:
                old, new = moved.pop()
                place = waiting.index(old)
                waiting[place] = _move(new, old)
            elif key != UNDO:
                if key:
                    moved.append((picture, _move(picture, folder / LABELS[key] / picture.name)))
                place += 1
        except FileNotFoundError as err:  # others change the folder, too
            print(f"left out: {escape(str(err))}")
            place += key != UNDO
    return True


def _ask(picture: Path) -> str:
    """Draw a picture as training reads it, and read a key; "" if the picture is unreadable."""
    try:
        image = read(picture)
    except ValueError as err:
        print(f"left out: {escape(str(err))}")
        return ""
    name = picture.parent.name
    guess = name if LABELS.get(name) == name else ""
    default = f" or Enter for {guess}" if guess else ""
    print(draw(image))
    print(f"0 to 9{default}, n: no digit, u: undo, q: quit ", end="", flush=True)
    keys = {*LABELS, UNDO, QUIT}
    while (key := sys.stdin.read(1).lower()) not in keys:
        if not key:  # the terminal was closed
            return QUIT
        if guess and key in "\r\n":
            key = guess
            break
    print(key)
    return key


def draw(image: Images) -> str:
    """Draw (784,) uint8 in 14 lines of half blocks, in a terminal's 24 grey levels."""
    rows = 232 + image.reshape(SIDE // 2, 2, SIDE) // 11
    lines = (
        "".join(f"\x1b[38;5;{upper};48;5;{lower}m▀" for upper, lower in zip(*pair, strict=True))
        for pair in rows.tolist()
    )
    return "\n".join(f"{line}\x1b[m" for line in lines)


def _move(picture: Path, wanted: Path) -> Path:
    """Move a file; a number is added to its name if another file has it."""
    wanted.parent.mkdir(exist_ok=True)
    target, number = wanted, 1
    while target.exists():
        number += 1
        target = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
    return picture.rename(target)


@contextmanager
def _single_keys() -> Iterator[None]:
    """Have the terminal hand over each key at once, without Enter; Ctrl-C still interrupts."""
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@dataclass(frozen=True, slots=True, eq=False)
class Extra:
    """A user's own images."""

    training: Examples
    """Images for training."""
    held_out: Examples
    """Images for measuring; never trained on."""
    unreadable: tuple[str, ...] = ()
    """A line for each file that is no readable picture."""

    @property
    def digest(self) -> str:
        """The SHA-256 of the images to train on and their labels."""
        content = self.training.images.tobytes() + self.training.labels.tobytes()
        return hashlib.sha256(content).hexdigest()


class _Picture(NamedTuple):
    digest: str
    path: Path
    label: int


def load(folder: Path) -> Extra:
    """Read the pictures below a folder.

    Which are held out depends on their content alone: neither names nor other digits change it. Of
    equal files one counts.

    Raises:
        DataError: there are no pictures, the same picture is in two digits' folders, or Pillow or
            SciPy is missing.
    """
    training, held_out = list[_Labelled](), list[_Labelled]()
    unreadable: list[str] = []
    for digit, pictures in _by_digit(folder).items():
        readable: list[_Labelled] = []
        for picture in pictures:
            try:
                readable.append((read(picture.path), digit))
            except ValueError as err:
                unreadable.append(f"{picture.path}: {err}")
        num_held_out = len(readable) // HELD_OUT
        held_out += readable[:num_held_out]
        training += readable[num_held_out:]
    if not training:
        reasons = "".join(f"; {line}" for line in unreadable[:1])
        raise DataError(f"no readable pictures in {folder}/0 to {folder}/9{reasons}")
    return Extra(_examples(training), _examples(held_out), tuple(unreadable))


def join(training: Examples, extra: Extra) -> Examples:
    """Append own images to others, each as often as it takes to be seen at all."""
    own = extra.training
    copies = round(_WEIGHT * len(training.labels) / len(own.labels))
    copies = min(_MAX_COPIES, max(1, copies))
    return Examples(
        np.concatenate([training.images, np.tile(own.images, (copies, 1))]),
        np.concatenate([training.labels, np.tile(own.labels, copies)]),
    )


def _examples(labelled: list[_Labelled]) -> Examples:
    images = np.array([image for image, _ in labelled], np.uint8).reshape(-1, SIDE * SIDE)
    return Examples(images, np.array([label for _, label in labelled], np.uint8))


def _by_digit(folder: Path) -> dict[int, list[_Picture]]:
    """List the files of each digit by their digests, each content once.

    Raises:
        DataError: a content has two labels.
    """
    seen: dict[str, _Picture] = {}
    for picture in _files(folder):
        other = seen.setdefault(picture.digest, picture)
        if other.label != picture.label:
            raise DataError(f"the same picture has two labels: {other.path} and {picture.path}")
    return {
        digit: [each for _, each in sorted(seen.items()) if each.label == digit]
        for digit in range(10)
    }


def _files(folder: Path) -> Iterator[_Picture]:
    for digit in range(10):
        inside = folder / str(digit)
        for path in sorted(inside.iterdir()) if inside.is_dir() else ():
            if path.is_file() and not path.name.startswith("."):
                yield _Picture(hashlib.sha256(path.read_bytes()).hexdigest(), path, digit)


def read(path: Path) -> Images:
    """Read a picture as an image, as the server will read its like.

    Returns:
        (784,) uint8, 0 = background, 255 = ink.

    Raises:
        ValueError: it can't be read; the text says why.
        DataError: Pillow or SciPy is missing.
    """
    # The one place where training uses serving's code: an image that is normalized otherwise than
    # those to be classified would teach the wrong thing.
    from digit_classifier.pictures import from_picture
    from serving.errors import ConfigurationError, RequestError

    try:
        image = from_picture(path)
    except RequestError as err:
        raise ValueError(str(err)) from err
    except ConfigurationError as err:
        raise DataError(str(err)) from err
    return image.reshape(-1)
