"""The demo: 4 ranks train and save a model; torch and paraload load it; everything is compared.

    python examples/demo.py

Everything runs on this machine, on its processor, in processes that talk over gloo. The exit
status is 0 when both readers gave the same bits, and 1 when they did not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

# So that "python examples/demo.py" finds the other parts of the demo, in every process.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples._table import Case, print_table

if TYPE_CHECKING:
    from examples._model import ModelShape

SAVING_RANKS, LOADING_RANKS = 4, 2
MIB = 1 << 20


def main() -> int:
    """Run the demo; the exit status."""
    arguments = parse_arguments()
    started_s = time.perf_counter()
    # So that a demo that was stopped leaves nothing behind, the files of its own are always here.
    with tempfile.TemporaryDirectory(prefix="paraload-demo-") as scratch:
        status = run(
            arguments.folder or Path(scratch) / "checkpoint",
            scratch=Path(scratch),
            size_mib=arguments.size_mib,
            rounds=arguments.rounds,
        )
    print(f"\nThe demo took {time.perf_counter() - started_s:.0f} s.", end=" ")
    if arguments.folder is None:
        print("The checkpoint is removed; keep it with --folder DIR.")
    else:
        print(f"Look at the checkpoint: python -m paraload inspect {arguments.folder}")
    return status


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Save a sharded checkpoint, load it with torch and with paraload, and compare."
    )
    parser.add_argument("--folder", type=Path, help="keep the checkpoint in this new folder")
    parser.add_argument("--rounds", type=int, default=3, help="measured loads (default: 3)")
    parser.add_argument("--size-mib", type=int, default=512, help="checkpoint size (default: 512)")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.size_mib < 1:
        parser.error("--rounds and --size-mib are at least 1")
    if arguments.folder is not None and arguments.folder.exists():
        parser.error(f"{arguments.folder} exists; name a folder that does not")
    return arguments


def run(checkpoint: Path, *, scratch: Path, size_mib: int, rounds: int) -> int:
    """Save, load, compare, report; the exit status."""
    print("paraload demo: one checkpoint, two readers, the same bits?\n", flush=True)
    # Importing torch takes seconds: the line above comes first.
    from examples._model import shape_for  # noqa: PLC0415

    shape = shape_for(size_mib * MIB)
    saved = save_checkpoint(checkpoint, shape, scratch=scratch)
    cases = [
        load_checkpoint(checkpoint, shape, saved, world=world, rounds=rounds, scratch=scratch)
        for world in (1, LOADING_RANKS)
    ]
    print()
    print_table(cases, rounds=rounds)
    same_bits = print_identity(cases, items=len(saved["checksums"]))
    same_losses = print_losses(saved["loss"], cases[-1].result["losses"])
    return 0 if same_bits and same_losses else 1


def save_checkpoint(checkpoint: Path, shape: ModelShape, *, scratch: Path) -> dict[str, Any]:
    """Train and save on some ranks; what a load must give back."""
    from examples._ranks import run_ranks  # noqa: PLC0415 - see above
    from examples._save import save  # noqa: PLC0415 - see above

    print(
        f"[1/3] {SAVING_RANKS} ranks train a transformer of {shape.parameters / 1e6:.1f} M"
        " parameters, sharded with FSDP2",
        flush=True,
    )
    saved: dict[str, Any] = run_ranks(
        save, str(checkpoint), shape, world=SAVING_RANKS, scratch=scratch
    )
    files = list(checkpoint.glob("*.distcp"))
    size_mib = sum(file.stat().st_size for file in files) / MIB
    print(
        f"      dcp.save of model and AdamW: {size_mib:.0f} MiB in {len(files)} files,"
        f" {saved['seconds']:.1f} s"
    )
    return saved


def load_checkpoint(
    checkpoint: Path,
    shape: ModelShape,
    saved: dict[str, Any],
    *,
    world: int,
    rounds: int,
    scratch: Path,
) -> Case:
    """Load with both readers on as many ranks."""
    from examples._load import compare  # noqa: PLC0415 - see above
    from examples._ranks import run_ranks  # noqa: PLC0415 - see above

    if world == 1:
        name = "1 process"
        print(f"\n[2/3] {name}, whole tensors: dcp.load with either reader in turn", flush=True)
    else:
        name = f"{world} FSDP2 ranks"
        print(f"\n[3/3] {name}, other shards than were saved: the same", flush=True)
    result = run_ranks(
        compare, str(checkpoint), shape, rounds, saved["checksums"], world=world, scratch=scratch
    )
    return Case(name=name, result=result)


def print_identity(cases: list[Case], *, items: int) -> bool:
    """Whether every load of both readers gave what was saved."""
    wrong = sorted({name for case in cases for name in case.result["wrong"]})
    if wrong:
        print(f"\nbit-identical: no; {len(wrong)} of {items} differ: {', '.join(wrong[:10])}")
        return False
    print(f"\nbit-identical: yes (every load of {items} tensors and objects, with either reader,")
    print("               gave the same bits, and they have the checksums of what was saved)")
    return True


def print_losses(saved: float, losses: dict[str, list[float]]) -> bool:
    """Whether training continues identically from either load, and from what was saved."""
    loaded, stepped = losses["paraload"]
    same = losses["torch"] == losses["paraload"] and loaded == saved
    print(f"\ntraining goes on: loss {saved:.6f} when saved, {loaded:.6f} loaded by paraload,")
    print(f"                  {stepped:.6f} a step later; the same from torch's load: ", end="")
    print("yes" if same else f"no, {losses['torch']}")
    return same


if __name__ == "__main__":
    sys.exit(main())
