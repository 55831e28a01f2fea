"""The suite with other versions of torch: ``make test-torch TORCH=2.8.0``."""
