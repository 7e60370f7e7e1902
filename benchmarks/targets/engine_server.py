"""Our server with an engine of another kind; it takes what `python -m serving` takes.

python -m benchmarks.targets.engine_server KIND serve --device cuda ...
"""

import sys

if __name__ == "__main__":
    kind = sys.argv.pop(1)  # before serving looks for its command, to handle signals early

    from serving.__main__ import main  # isort: skip
    from benchmarks.targets.engine_kinds import engine_of
    from serving.errors import DeviceError
    from serving.model import engine

    try:
        engine.ENGINES = (engine_of(kind, sys.argv[sys.argv.index("--device") + 1]),)
    except DeviceError as err:
        sys.exit(str(err))
    sys.exit(main())
