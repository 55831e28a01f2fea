"""The child process that runs cases, and the parent's side of it.

    run_cases(arm, cases) --names on stdin--> python -m tests.faults.runner ARM FOLDER
            ^                                    | for each: prepare, arrange, load, look around
            '------- one line of JSON each ------'

A case that hangs is ended by an alarm; one that does not even hear that is killed with its process,
and so is one that takes its process with it. The rest then runs in a new one.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from tests.faults.case import Case, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.faults.scene import Scene

__all__ = ["ARMS", "ShimError", "build_shim", "run_cases"]

#: Who loads: torch's own reader, and each executor of paraload.
ARMS = ("torch", "sequential", "threads", "processes", "pool")
#: torch waits for ever where it waits at all.
ALARM_S = {"torch": 10}
DEFAULT_ALARM_S = 30
KILL_AFTER_S = 45
_ROOT = Path(__file__).parents[2]


class ShimError(Exception):
    """No C compiler, or it cannot compile the shim."""


def build_shim(folder: Path) -> Path:
    """The shared library of ``shim.c``.

    Raises:
        ShimError: it cannot be built.
    """
    made = folder / "shim.so"
    compiler = os.environ.get("CC", "cc")
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", made, Path(__file__).with_name("shim.c")]
    try:
        subprocess.run([*command, "-ldl"], check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise ShimError(f"no C compiler ({compiler}), so no call of the system can fail") from error
    except subprocess.CalledProcessError as error:
        raise ShimError(f"shim.c does not compile:\n{error.stderr}") from error
    return made


# ---------------------------------------------------------------------------------- parent's side


def run_cases(arm: str, cases: Iterable[Case], shim: Path) -> dict[str, Outcome]:
    """Run ``cases`` with ``arm``; outcomes by the names of the cases."""
    left = [case.name for case in cases]
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="paraload-faults-") as folder:
        while left:
            for outcome in _one_process(arm, left, Path(folder), shim):
                outcomes[outcome.case] = outcome
            left = [name for name in left if name not in outcomes]
    return outcomes


def _one_process(arm: str, names: list[str], folder: Path, shim: Path) -> Iterator[Outcome]:
    command = [sys.executable, "-m", "tests.faults.runner", arm, str(folder)]
    environ = {key: os.environ[key] for key in os.environ if not key.startswith("PARALOAD_")}
    environ |= {"LD_PRELOAD": str(shim), "TMPDIR": str(folder)}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as complaints:
        child = subprocess.Popen(
            command,
            cwd=_ROOT,
            env=environ,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            start_new_session=True,
        )
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(json.dumps(names))
            child.stdin.close()
            done = 0
            while (line := _line(child, KILL_AFTER_S + 30 * (done == 0))) is not None:
                if not line:
                    break
                done += 1
                values = json.loads(line)
                yield Outcome(
                    **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
                )
            if done == len(names):
                return
            complaints.seek(0)
            verdict = "hang" if line is None else "crash"
            yield Outcome(case=names[done], verdict=verdict, text=complaints.read()[-2000:])
        finally:
            _end(child)


def _line(child: subprocess.Popen[str], patience_s: float) -> str | None:
    """The next line, "" at the end, ``None`` if none comes."""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        return child.stdout.readline() if selector.select(patience_s) else None


def _end(child: subprocess.Popen[str]) -> None:
    if child.poll() is None:
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # it has a session of its own
            child.wait()
    child.stdout.close()


# ------------------------------------------------------------------------------------ child's side


class HangError(BaseException):
    """Took too long. Not an ``Exception``, so that no handler takes it for a result."""


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise HangError

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


@contextmanager
def armed(scene: Scene) -> Iterator[None]:
    """The shim at work, in this process and in those that it starts."""
    arm = getattr(ctypes.CDLL(None), "faults_arm")  # noqa: B009 - not known before it is loaded
    settings = {
        "FAULTS": scene.shim,
        "FAULTS_FOLDER": str(scene.folder),
        "FAULTS_LOG": str(scene.met),
    }
    with mock.patch.dict(os.environ, settings):
        arm()
        try:
            yield
        finally:
            os.environ["FAULTS"] = ""
            arm()


def load(scene: Scene, arm: str) -> Any:
    """Load as a user does; the report, if there is one."""
    import torch.distributed.checkpoint as dcp

    import paraload
    from paraload import ParallelFileReader

    if arm == "torch":
        reader = dcp.FileSystemReader(scene.folder)
        dcp.load(scene.targets, storage_reader=reader, planner=scene.planner, no_dist=True)
        return None
    options = {"stall_timeout_s": 20.0, "max_workers": 2, **scene.options}
    with ExitStack() as patches:
        if (wrap := scene.source) is not None:
            make = ParallelFileReader._make_source
            wrapped = mock.patch.object(
                ParallelFileReader, "_make_source", lambda self: wrap(make(self))
            )
            patches.enter_context(wrapped)
        return paraload.load(
            scene.targets,
            scene.folder,
            planner=scene.planner,
            no_dist=True,
            executor=arm,
            **options,
        )


def unwrapped(error: BaseException) -> BaseException:
    """What torch has put into a ``CheckpointException``."""
    from torch.distributed.checkpoint.api import CheckpointException

    while isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return error


def kinds_of(error: BaseException) -> tuple[str, ...]:
    """Names of the error's class and of those that it lists, each once."""
    listed = [type(failure).__name__ for failure in getattr(error, "failures", ())]
    return tuple(dict.fromkeys(listed or [type(error).__name__]))


def run_case(case: Case, arm: str, base: Path) -> Outcome:
    """Prepare, load, inspect the outcome, and clean up."""
    import paraload
    from paraload.testing import leaked, resources
    from tests.faults.scene import prepare, same

    scene = prepare(case.sample, base, "case")
    scene.executor = arm
    found: dict[str, Any] = {"case": case.name}
    try:
        case.arrange(scene)
        if arm == "torch" and (scene.source is not None or not_for_torch(scene)):
            scene.around.close()
            return Outcome(case=case.name, verdict="n/a")
        before, untouched = resources(), copied(scene.targets)
        at_first = peak_mib(reset=True)
        started = time.monotonic()
        try:
            with scene.around, armed(scene), alarm(ALARM_S.get(arm, DEFAULT_ALARM_S)):
                report = load(scene, arm)
            good = all(same(scene.targets[name], scene.expected[name]) for name in scene.expected)
            found["verdict"] = "right" if good else "wrong"
            counted = report.to_dict().items() if report is not None else ()
            found["report"] = [name for name, value in counted if value]
        except BaseException as raised:  # noqa: BLE001 - any error is an outcome
            error = unwrapped(raised) if arm == "torch" else raised
            late = isinstance(error, HangError)
            ours = isinstance(error, paraload.CheckpointReadError)
            own = case.expect.own == type(error).__name__
            text = "\n".join([str(error), *getattr(error, "__notes__", ())])
            words = [*scene.words, *case.tells]
            found |= {
                "verdict": "hang" if late else "own" if own else "typed" if ours else "error",
                "kinds": kinds_of(error),
                "text": text,
                "missing_words": [word for word in words if word not in text],
            }
            del error, raised
        found["seconds"] = round(time.monotonic() - started, 3)
        found["grown_mib"] = peak_mib() - at_first
        found["met"] = scene.met.exists()
        found["executed"] = (base / "executed").exists()
        found["untouched"] = all(same(scene.targets[n], untouched[n]) for n in untouched)
        found["leaks"] = leaked(before, grace_s=5)
        return Outcome(**{k: tuple(v) if isinstance(v, list) else v for k, v in found.items()})
    finally:
        for path in (base / "case", scene.met, base / "executed", base / "case-outside"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(
                missing_ok=True
            )


def not_for_torch(scene: Scene) -> bool:
    return bool(scene.options.get("strict") or scene.options.get("allow_outside_paths"))


def copied(targets: dict[str, Any]) -> dict[str, Any]:
    return {name: t.clone() if hasattr(t, "clone") else t for name, t in targets.items()}


def peak_mib(*, reset: bool = False) -> float:
    """Peak memory of this process since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    """Run the cases that are named on stdin."""
    arm, folder = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # so that prints do not mix with the results
    import warnings

    from tests.faults import nth
    from tests.faults.table import BY_NAME

    warnings.simplefilter("ignore")
    names = json.load(sys.stdin)
    run_case(
        BY_NAME["nothing wrong"], arm, Path(folder)
    )  # what is opened once does not count as a leak
    for name in names:
        case = BY_NAME[name] if name in BY_NAME else nth.named(name)
        outcome = run_case(case, arm, Path(folder))
        print(json.dumps(dataclasses.asdict(outcome)), file=out, flush=True)


if __name__ == "__main__":
    main()
