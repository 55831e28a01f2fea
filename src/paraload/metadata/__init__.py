"""What a checkpoint holds: reads ``.metadata`` without running it, and indexes it."""
