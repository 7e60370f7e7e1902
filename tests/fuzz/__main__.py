"""Fuzz one target: python -m tests.fuzz request -max_total_time=600 [libFuzzer's flags]

New inputs go to a temporary folder; crashing inputs are written to the current one. Put it into
the target's folder (`CORPORA` in targets.py) with its fix: the suite replays the corpus.
"""

import sys
import tempfile

import atheris


def main():
    """Fuzz until libFuzzer's flags say that it is enough."""
    with atheris.instrument_imports(include=["serving", "digit_classifier"]):
        from tests.fuzz.targets import CORPORA, TARGETS

    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        raise SystemExit(f"usage: python -m tests.fuzz {{{','.join(TARGETS)}}} [-flag=value ...]")
    target = TARGETS[sys.argv[1]]
    new = tempfile.mkdtemp(prefix="fuzz-")
    (corpus,) = (found for each in CORPORA if (found := each / sys.argv[1]).is_dir())
    flags = ["-max_len=8192", *sys.argv[2:]]
    atheris.Setup([sys.argv[0], *flags, new, str(corpus)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
