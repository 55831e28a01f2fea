"""One rank of a client: save, load with torch's readers, load through paraload, compare.

    python -m tests.clients.rank MODULE FOLDER    under torchrun's environment variables

Prints a line of JSON: what differs, what the report says, and attributes that were not restored.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
import warnings

import torch.distributed as dist
from torch.distributed.checkpoint import FileSystemReader, HuggingFaceStorageReader

import paraload
from tests.clients.programs._common import digests, leave


def readers():
    """All reader classes that are loaded: torch's and those of the client."""
    found, todo = set(), [FileSystemReader, HuggingFaceStorageReader]
    while todo:
        kind = todo.pop()
        if kind not in found:
            found.add(kind)
            todo += kind.__subclasses__()
    return {kind: dict(vars(kind)) for kind in found}


def loads_of(program, folder):
    """The state as torch loads it and as paraload does, and the reports of all loads."""
    stock = digests(program.load(folder))
    reports = []

    class Reports(logging.Handler):
        def emit(self, record):
            if "loaded" in record.getMessage():
                reports.append(installation.last_report)

    logger = logging.getLogger("paraload")
    logger.setLevel(logging.INFO)
    logger.addHandler(Reports())
    installation = paraload.install()
    ours = digests(program.load(folder))
    paraload.uninstall()
    return stock, ours, reports


def main():
    name, folder = sys.argv[1:]
    warnings.simplefilter("ignore")
    program = importlib.import_module(f"tests.clients.programs.{name}")
    dist.init_process_group("gloo")
    program.save(folder)
    dist.barrier()
    before = readers()
    stock, ours, reports = getattr(program, "loads_of", loads_of)(program, folder)
    after = readers()
    left = [
        f"{kind.__name__}.{name}"
        for kind, attributes in before.items()
        for name in attributes.keys() | after[kind].keys()
        if attributes.get(name) is not after[kind].get(name)
    ]
    answer = {
        "differ": sorted(it for it in stock.keys() | ours.keys() if stock.get(it) != ours.get(it)),
        "values": len(stock),
        "loads": len(reports),
        "items": sum(report.items for report in reports),
        "bytes": sum(report.bytes_needed for report in reports),
        "slow": sorted({reason for report in reports for reason in report.fallbacks}),
        "left": left,
    }
    print("answer:", json.dumps(answer))
    leave()


if __name__ == "__main__":
    main()
