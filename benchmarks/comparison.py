"""The comparison with other projects' servers: like with like, in parts that can be resumed.

A part is one model in one protocol: gRPC beside gRPC, JSON beside JSON, raw tensors over HTTP
beside the same; equal connections with equal calls in flight. Two parts more, of the first model:
the same real clients against this server and Triton, and offered loads up to twice the capacity.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import runner, zoo
from benchmarks.clients import CLIENTS, HTTP_CLIENT
from benchmarks.methods import PROTOCOLS
from benchmarks.network import Generator
from benchmarks.others import PEERS, TRITON, TRITONCLIENT, NotMeasured, install, versions
from benchmarks.result_file import Results, Skip, UnusableResults, load
from benchmarks.runner import Callers, Suite
from benchmarks.targets import OURS, Setting, Spec
from benchmarks.workload import Workload
from serving import Model

ZOO, PARTS = Path("build/zoo"), Path("build/bench-peers")
_KEY = "key"
"""A setting of a part: what it rests on."""
_CLIENT_PACKAGES = ("tritonclient[grpc,http]",)
_SMALL = ("digits", "tabular")
"""Models whose run is short beside a call: a server's own time is what they show."""
_TOO_LONG_FOR_JSON = ("cnn",)
"""27,648 numbers a call would time the parsers of JSON."""
_SHAPES: Mapping[str, Sequence[Callers]] = {
    "gRPC": ((1, 1), (64, 8), (64, 64), (512, 64)),
    "JSON": ((1, 1), (64, 64)),
    "bytes": ((1, 1), (64, 64)),
}
"""Calls in flight, and over how many connections; HTTP/1.1 has one on each."""
_FEW_SHAPES: Sequence[Callers] = ((1, 1), (64, 8))
"""Of gRPC, for larger models."""
_CLIENT_SHAPES: Sequence[Callers] = ((1, 0), (64, 0))
SUITE = Suite(
    name="peers",
    scenarios=("ClosedLoop", "SameBytes"),
    callers=(),
    rounds=3,
    seconds=3.0,
    is_apart=True,
    warm_up_s=10.0,
    least_calls=300,
    most_foreign=0.1,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is compared."""

    models: Sequence[str] = zoo.MODELS
    peers: Sequence[str] = tuple(PEERS)
    addresses: Mapping[str, str]
    """Name to host:port of Open Inference Protocol servers that run already, called over gRPC."""
    clients: Sequence[str] = CLIENTS
    suite: Suite = SUITE
    """How: its targets and shapes are each part's own, unless it names callers."""
    seed: int = 0
    parts: Path = PARTS
    """Where each part is kept until all are measured, so that a run can go on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredPart:
    """What is measured in one go."""

    name: str
    model: str
    suite: Suite


def parts_of(plan: Plan) -> list[MeasuredPart]:
    """Return the parts of a comparison: each model in each protocol, clients, and loads."""
    found = []
    for model in plan.models:
        for protocol in PROTOCOLS:
            if protocol == "JSON" and model in _TOO_LONG_FOR_JSON:
                continue
            is_long = protocol == "gRPC" and model not in _SMALL
            suite = replace(
                plan.suite,
                specs=specs_of(plan, protocol),
                callers=plan.suite.callers or (_FEW_SHAPES if is_long else _SHAPES[protocol]),
                model=model,
            )
            found.append(MeasuredPart(name=f"{model}-{protocol.lower()}", model=model, suite=suite))
    first = plan.models[0]
    if clients := _clients_of(plan):
        suite = replace(
            plan.suite,
            specs=clients,
            callers=plan.suite.callers or _CLIENT_SHAPES,
            scenarios=("ClosedLoop",),
            model=first,
        )
        found.append(MeasuredPart(name=f"{first}-clients", model=first, suite=suite))
    loaded = [OURS["gRPC"], TRITON, OURS["JSON"], "mosec"]
    suite = replace(
        plan.suite,
        specs=[Spec(target=name) for name in loaded if name in (*plan.peers, *OURS.values())],
        scenarios=("Load",),
        model=first,
    )
    found.append(MeasuredPart(name=f"{first}-load", model=first, suite=suite))
    beyond = [spec for spec in suite.specs if spec.target in (OURS["gRPC"], TRITON)]
    suite = replace(suite, specs=beyond, scenarios=("Overload",))
    found.append(MeasuredPart(name=f"{first}-overload", model=first, suite=suite))
    return found


def specs_of(plan: Plan, protocol: str) -> list[Spec]:
    """Return the targets that are called in a protocol; ours is the first."""
    ours = Spec(target=OURS[protocol])
    found = [ours]
    if protocol == "gRPC":
        found += [replace(ours, precision="int8"), replace(ours, device="cuda")]
        found += [Spec(target=name) for name in plan.addresses]
    called = [name for name in plan.peers if PEERS[name].method.protocol == protocol]
    return found + [Spec(target=name) for name in called]


def _clients_of(plan: Plan) -> list[Spec]:
    """Return each client with this server and, where it can call it, with Triton."""
    found = []
    for client in plan.clients:
        is_http = client == HTTP_CLIENT
        theirs = f"{TRITON}-bytes" if is_http else TRITON
        found.append(Spec(target=OURS["bytes" if is_http else "gRPC"], client=client))
        if theirs in plan.peers:
            found.append(Spec(target=theirs, client=client))
    return found


def prepare(plan: Plan, say: Callable[[str], None]) -> tuple[dict[str, str], dict[str, object]]:
    """Write the models, and install the peers and clients that are missing.

    Returns:
        Why an environment can't be had, by its name; and the versions of the others.
    """
    zoo.make(ZOO, tuple(plan.models))
    peers = [PEERS[name] for name in plan.peers]
    wanted = {each.environment: each.packages for each in peers if each.packages}
    if any(each.startswith(TRITONCLIENT) for each in plan.clients):
        wanted[TRITONCLIENT] = _CLIENT_PACKAGES
    failed, found = dict[str, str](), dict[str, object]()
    for name, packages in wanted.items():
        extra = () if name == TRITONCLIENT else ("onnxruntime",)
        say(f"installing {name}")
        try:
            install(name, (*packages, *extra))
            found[name] = versions(name, packages)
        except NotMeasured as err:
            failed[name] = str(err)
    return failed, found


def workload_of(file: Path, seed: int) -> Workload:
    """Take a network's rows, and compute what it answers to the first one."""
    asked = Workload(model=file.stem, rows={zoo.INPUTS[file.stem]: zoo.rows(file.stem, seed)})
    with Model.load(file, device="cpu") as model:
        answers = model.infer(asked.feeds(1))
    return replace(asked, outputs=np.asarray(next(iter(answers.values())), float).ravel())


def run(
    plan: Plan, cores: Sequence[int], generator: Generator, say: Callable[[str], None]
) -> Results:
    """Compare, one part after the other; a part that was measured before is taken as it is."""
    failed, found = prepare(plan, say)
    whole: Results | None = None
    for each in parts_of(plan):
        file = ZOO / f"{each.model}.onnx"
        setting = Setting(
            models=Path("models"),
            model=file,
            workload=workload_of(file, plan.seed),
            cores=list(cores),
            addresses=plan.addresses,
            checkouts={},
            generator=generator,
        )
        missing = {spec: failed[name] for spec in each.suite.specs
                   if (name := _environment_of(spec)) in failed}  # fmt: skip
        suite = replace(each.suite, specs=[s for s in each.suite.specs if s not in missing])
        kept, key = plan.parts / f"{each.name}.json", _key(suite, plan.seed)
        part = _kept(kept, key)
        if part is not None:
            say(f"{each.name}: measured before, see {kept}")
        else:
            part = runner.run(suite, setting, partial(_say_of, say, each.name))
            part.settings = {**part.settings, _KEY: key}
            part.save(kept)
        part.skips += [
            Skip(spec=spec, reason=reason, model=each.model) for spec, reason in missing.items()
        ]
        whole = _joined(whole, part)
    assert whole is not None
    whole.environment = {**whole.environment, "peers": found}
    settings = {name: value for name, value in whole.settings.items() if name != _KEY}
    whole.settings = {**settings, "seed": plan.seed}
    return whole


def _environment_of(spec: Spec) -> str:
    """Return the environment that a target or its client needs; empty for none."""
    if spec.client.startswith(TRITONCLIENT):
        return TRITONCLIENT
    return PEERS[spec.target].environment if spec.target in PEERS else ""


def forget_parts(plan: Plan) -> None:
    """Remove what was kept of each part: the whole is written."""
    for each in parts_of(plan):
        (plan.parts / f"{each.name}.json").unlink(missing_ok=True)


def _key(suite: Suite, seed: int) -> str:
    """Return what a part rests on: the commit, the cells and how they are measured."""
    words = runner.commit(), repr(suite), seed
    return hashlib.sha256(repr(words).encode()).hexdigest()


def _kept(path: Path, key: str) -> Results | None:
    """Return what an earlier run has measured; None without it, or if it rests on other things."""
    if not path.exists():
        return None
    try:
        found = load(path)
    except UnusableResults:
        return None
    return found if found.settings.get(_KEY) == key else None


def _say_of(say: Callable[[str], None], name: str, step: str) -> None:
    say(f"{name}: {step}")


def _joined(whole: Results | None, part: Results) -> Results:
    if whole is None:
        return part
    whole.samples += part.samples
    whole.starts += part.starts
    whole.skips += part.skips
    return whole
