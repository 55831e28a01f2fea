"""The one loop of a load: reserve memory, submit, collect, commit, account; on one thread."""
