"""The settings that a search tries, and the config.pbtxt that sets them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from serving.model.settings_file import statements

THREADS = "intra_op_thread_count"
DELAYS_S = (0.0, 0.002)
"""How long a run waits for more rows."""
BATCHES = (1, 8, 32, 128)
_KINDS = {"cpu": "KIND_CPU", "cuda": "KIND_GPU"}
_OURS = {"instance_group", "dynamic_batching", "max_batch_size"}
"""Fields of a config.pbtxt that a candidate sets."""


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Candidate:
    """The settings of one model; None leaves a setting to the server."""

    device: str = "cpu"
    """"cpu" or "cuda"."""
    threads: int | None = None
    """Threads of a run."""
    instances: int | None = None
    """Runs at once."""
    batch: int | None = None
    """The most rows of a run."""
    delay_s: float | None = None
    """Seconds that a run waits for more rows."""

    @property
    def is_default(self) -> bool:
        """Whether all is left to the server."""
        return (self.threads, self.instances, self.batch, self.delay_s) == (None,) * 4

    def __str__(self) -> str:
        if self.is_default:
            return "the server's defaults" + (f" on {self.device}" * (self.device != "cpu"))
        words = [f"{self.threads} thread{'s' * (self.threads != 1)}", f"{self.instances} at once"]
        if self.batch is not None:
            words.append(f"batches of {self.batch}" if self.batch > 1 else "no batches")
        if self.delay_s:
            words.append(f"{self.delay_s * 1e3:g} ms delay")
        return ", ".join(words) + (f" on {self.device}" * (self.device != "cpu"))

    def fields(self) -> list[str]:
        """Return the fields of a config.pbtxt that set this."""
        kind = _KINDS[self.device]
        lines = []
        if self.instances is not None:
            lines.append(f"instance_group [ {{ count: {self.instances} kind: {kind} }} ]")
        if self.threads is not None:
            value = f'value: {{ string_value: "{self.threads}" }}'
            lines.append(f'parameters {{ key: "{THREADS}" {value} }}')
        if self.batch is not None:
            lines.append(f"max_batch_size: {self.batch}")
        if self.delay_s is not None:
            microseconds = round(self.delay_s * 1e6)
            lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {microseconds} }}")
        return lines


def grid(
    num_cores: int, most_rows: int, devices: Sequence[str] = ("cpu",), *, is_batched: bool = True
) -> list[Candidate]:
    """Return all candidates; the server's own settings come first for each device.

    Args:
        num_cores: the server's.
        most_rows: the rows of all callers together: no batch can have more.
        devices: "cpu", "cuda" or both.
        is_batched: whether rows of several callers may share a run.
    """
    threads = list(_powers(num_cores))
    batches: list[tuple[int | None, float | None]] = [(None, None)]
    if is_batched:
        sizes = sorted({min(size, most_rows) for size in BATCHES})
        batches = [(1, None), *product([size for size in sizes if size > 1], DELAYS_S)]
    found = []
    for device in devices:
        found.append(Candidate(device=device))
        found += [
            Candidate(
                device=device, threads=number, instances=instances, batch=batch, delay_s=delay_s
            )
            for number, (batch, delay_s) in product(threads, batches)
            for instances in _powers(max(1, num_cores // number))
        ]
    return found


def _powers(most: int) -> Iterator[int]:
    """Yield 1, 2, 4 and so on, and the most itself."""
    number = 1
    while number < most:
        yield number
        number *= 2
    yield most


def config_text(candidate: Candidate, old: str = "", comments: Iterable[str] = ()) -> str:
    """Write a config.pbtxt that sets a candidate; what else the old one sets stays.

    Args:
        candidate: the settings.
        old: the text of a config.pbtxt that there is; empty for none.
        comments: lines to put in front.

    Raises:
        ConfigurationError: the old text is malformed.
    """
    kept = [text.strip() for name, text in statements(old) if not _is_ours(name, text)]
    lines = [*(f"# {line}".rstrip() for line in comments), *kept, *candidate.fields()]
    return "\n".join(lines) + "\n"


def _is_ours(name: str, statement: str) -> bool:
    return name in _OURS or (name == "parameters" and THREADS in statement)
