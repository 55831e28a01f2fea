"""The atheris targets, and how their findings are replayed.

    python -m tests.fuzz.targets metadata --seconds 60

Half of the runs mutate a seed by its structure, the others as libFuzzer likes.
What breaks the contract is written to ``findings/TARGET-...``, which
``test_fuzz.py`` replays. Needs the extra ``fuzz``; replaying does not.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from tempfile import mkdtemp

from tests.fuzz import mutate, oracle, seeds

__all__ = ["TARGETS", "replay"]

FINDINGS = Path(__file__).parent / "findings"
#: Instrumented: the parsers, not torch.
PARSERS = (
    *("paraload.metadata.unpickler", "paraload.core.pickle_scan"),
    *("paraload.metadata.reading", "paraload.metadata.validation", "paraload.metadata.file_bytes"),
    *("paraload.formats.torch_zip", "paraload.formats.torch_pickle"),
    "paraload.formats.safetensors",
    *("paraload.formats.archive", "paraload.workers.records", "paraload.formats.record_checks"),
)


def _checkpoint(data):
    """The first byte chooses the checkpoint, the rest seeds the mutations."""
    zstd = seeds.compressed()[-1] and bool(data[:1] and data[0] & 1)
    files = seeds.checkpoint(zstd=zstd)
    oracle.check_checkpoint(mutate.mutated_checkpoint(files, random.Random(data)))


TARGETS = {
    "unpickler": oracle.check_unpickler,
    "metadata": oracle.check_metadata,
    "record": oracle.check_record,
    "checkpoint": _checkpoint,
    "safetensors": oracle.check_safetensors,
}
_SEEDS = {
    "record": (lambda: list(seeds.records()), mutate.mutated_record),
    "safetensors": (lambda: list(seeds.safetensors()), mutate.mutated_safetensors),
    "checkpoint": (lambda: [bytes([n]) * 16 for n in range(8)], mutate.flipped),
}


def replay(path):
    """Run a finding, whose name begins with its target's."""
    TARGETS[path.name.split("-")[0]](path.read_bytes())


def _mutator(mutated, atheris):
    def mutate_one(data, max_size, seed):
        chance = random.Random(seed)
        try:
            if chance.randint(0, 1):
                return mutated(data, chance)[:max_size]
        except (ValueError, RecursionError):
            pass  # no longer a pickle or JSON
        return atheris.Mutate(data, max_size)

    return mutate_one


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    chosen = parser.parse_args()
    import atheris

    make, mutated = _SEEDS.get(
        chosen.target, (lambda: list(seeds.metadata()), mutate.mutated_pickle)
    )
    corpus = Path(mkdtemp(prefix="paraload-fuzz-"))
    for number, data in enumerate(make()):
        (corpus / f"seed-{number}").write_bytes(data)
    oracle.warm_up()
    for name in PARSERS:
        _instrument(sys.modules[name], atheris)
    FINDINGS.mkdir(exist_ok=True)
    atheris.Setup(
        [
            *(sys.argv[0], str(corpus), f"-max_total_time={chosen.seconds}", "-timeout=10"),
            *(f"-artifact_prefix={FINDINGS}/{chosen.target}-", "-max_len=20000"),
            *("-rss_limit_mb=4096", "-print_final_stats=1"),
        ],
        TARGETS[chosen.target],
        custom_mutator=_mutator(mutated, atheris),
    )
    atheris.Fuzz()


def _instrument(module, atheris):
    """Coverage of functions and methods that are there already, in place."""
    import types

    for holder in [module, *[v for v in vars(module).values() if isinstance(v, type)]]:
        if getattr(holder, "__module__", module.__name__) != module.__name__:
            continue
        for value in list(vars(holder).values()):
            if isinstance(value, types.FunctionType) and value.__module__ == module.__name__:
                atheris.instrument_func(value)


if __name__ == "__main__":
    main()
