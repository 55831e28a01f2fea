"""``python -m benchmarks.rivals``: paraload against every other reader, on the same bytes.

    contestants   who runs, in which format it reads, whose package it is
    formats       the same tensors, in as many files, written by the rival's own writer
    loaders       libraries that do not read DCP: load, then copy into the destinations
    contest       who can run at all; then rounds from a warm and from a cold page cache
    report, chart, page     tables, picture, the section of benchmarks/README.md
    s3, s3_contestants      the same over S3, each reader in a process of its own

The rivals are not dependencies of this project. Nothing here imports one of them before it is
needed, and one that is missing has a row that says so.
"""
