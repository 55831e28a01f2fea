"""Bytes that arrive in pieces go to the buffers of a read."""


def scatter(data: memoryview, left: list[memoryview]) -> None:
    """Copy ``data`` into the buffers ``left``, and remove those that are full."""
    while left and len(data):
        nbytes = min(len(data), len(left[0]))
        left[0][:nbytes] = data[:nbytes]
        data = data[nbytes:]
        if nbytes < len(left[0]):
            left[0] = left[0][nbytes:]
        else:
            del left[0]
