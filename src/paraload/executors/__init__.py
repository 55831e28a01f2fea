"""Ways of running read tasks: on the caller's thread, on threads, or in worker processes."""
