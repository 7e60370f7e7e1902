"""Scores pieces on this machine's cores: a thread takes one piece after the other."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from serving.model.loaded_model import LoadedModel
from serving.scoring.dataset import Piece
from serving.scoring.decoders import Decoders
from serving.scoring.output import Scored
from serving.scoring.scorer import Scorer, Stopped, Task


def score(
    task: Task, pieces: Sequence[Piece], model: LoadedModel, num_threads: int,
    advance: Callable[[int], None],
) -> Iterator[Scored]:  # fmt: skip
    """Score pieces; yields each that is finished, in any order.

    Reading, running and writing release the GIL, so threads use all cores.

    Args:
        task: what is done with each piece.
        pieces: the data set.
        model: the model; its runs are concurrent.
        num_threads: pieces at a time.
        advance: called from any thread with a number of rows once they are scored.

    Raises:
        DigitsError: a piece failed; those in progress end without a file.
    """
    is_stopped = threading.Event()

    def advance_or_stop(num_rows: int) -> None:
        if is_stopped.is_set():
            raise Stopped
        advance(num_rows)

    decoders = Decoders(num_threads)
    scorer = Scorer(task, model, decoders.decode, advance_or_stop)
    threads = ThreadPoolExecutor(num_threads, "scorer")
    try:
        futures = [threads.submit(scorer.score, piece) for piece in pieces]
        for future in as_completed(futures):
            yield future.result()
    finally:
        is_stopped.set()
        threads.shutdown(cancel_futures=True)
        decoders.close()
