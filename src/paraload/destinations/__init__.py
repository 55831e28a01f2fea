"""Where bytes go: the only package that touches the memory of tensors."""
