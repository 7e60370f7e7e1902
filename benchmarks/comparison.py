"""The comparison with other projects' servers: several models, peers, real clients, devices."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import runner, zoo
from benchmarks.clients import CLIENTS
from benchmarks.network import Generator
from benchmarks.others import PEERS, TRITONCLIENT, NotMeasured, install, versions
from benchmarks.result_file import Results, Skip, UnusableResults, load
from benchmarks.runner import Suite
from benchmarks.targets import Setting, Spec
from benchmarks.workload import Workload, drawn
from serving import Model

ZOO, PARTS = Path("build/zoo"), Path("build/bench-peers")
BASE = "http-json"
"""The target that all ratios are of: this server, in the peers' own language, JSON over HTTP."""
_KEY = "key"
"""A setting of a part: what it rests on."""
_ROWS = 8
_CLIENT_PACKAGES = ("tritonclient[grpc]",)
SUITE = Suite(
    name="peers",
    scenarios=("ClosedLoop",),
    callers=((1, 0), (16, 0), (64, 0)),
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
    """Name to host:port of Open Inference Protocol servers that run already."""
    clients: Sequence[str] = CLIENTS
    suite: Suite = SUITE
    seed: int = 0
    parts: Path = PARTS
    """Where what was measured of each model is kept until all are, so that a run can go on."""


def specs_of(plan: Plan, model: str) -> list[Spec]:
    """Return the targets of one model; the clients call that of the first model only."""
    ours = Spec(target="h2-infer")
    found = [Spec(target=BASE), *(Spec(target=peer) for peer in plan.peers)]
    found += [Spec(target=name) for name in plan.addresses]
    found += [ours, replace(ours, precision="int8"), replace(ours, device="cuda")]
    if model == plan.models[0]:
        found += [replace(ours, client=client) for client in plan.clients]
    return found


def prepare(plan: Plan, say: Callable[[str], None]) -> tuple[dict[str, str], dict[str, object]]:
    """Write the models, and install the peers and clients that are missing.

    Returns:
        Why a peer can't be measured, by its name; and the versions of the others.
    """
    zoo.make(ZOO, tuple(plan.models))
    wanted = {name: PEERS[name].packages for name in plan.peers}
    if "tritonclient" in plan.clients:
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
    """Draw rows for a model, and compute what it answers to the first one."""
    asked = drawn(file, seed, _ROWS)
    with Model.load(file, device="cpu") as model:
        answers = model.infer(asked.feeds(1))
    return replace(asked, outputs=np.asarray(next(iter(answers.values())), float).ravel())


def run(
    plan: Plan, cores: Sequence[int], generator: Generator, say: Callable[[str], None]
) -> Results:
    """Compare: a round of all targets at once for each model, one model after the other."""
    failed, found = prepare(plan, say)
    whole: Results | None = None
    for model in plan.models:
        file = ZOO / f"{model}.onnx"
        setting = Setting(
            models=Path("models"),
            model=file,
            workload=workload_of(file, plan.seed),
            cores=list(cores),
            addresses=plan.addresses,
            checkouts={},
            generator=generator,
        )
        specs = [spec for spec in specs_of(plan, model) if spec.target not in failed]
        suite = replace(plan.suite, specs=specs, model=model)
        kept, key = plan.parts / f"{model}.json", _key(suite, plan.seed)
        part = _kept(kept, key)
        if part is not None:
            say(f"{model}: measured before, see {kept}")
        else:
            part = runner.run(suite, setting, partial(_say_of, say, model))
            part.settings = {**part.settings, _KEY: key}
            part.save(kept)
        part.skips += [
            Skip(spec=Spec(target=name), reason=reason, model=model)
            for name, reason in failed.items()
            if name in PEERS
        ]
        whole = _joined(whole, part)
    assert whole is not None
    whole.environment = {**whole.environment, "peers": found}
    settings = {name: value for name, value in whole.settings.items() if name != _KEY}
    whole.settings = {**settings, "base": BASE, "seed": plan.seed}
    return whole


def forget_parts(plan: Plan) -> None:
    """Remove what was kept of each model: the whole is written."""
    for model in plan.models:
        (plan.parts / f"{model}.json").unlink(missing_ok=True)


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


def _say_of(say: Callable[[str], None], model: str, step: str) -> None:
    say(f"{model}: {step}")


def _joined(whole: Results | None, part: Results) -> Results:
    if whole is None:
        return part
    whole.samples += part.samples
    whole.starts += part.starts
    whole.skips += part.skips
    return whole
