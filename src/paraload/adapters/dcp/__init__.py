"""PyTorch Distributed Checkpoint: its readers, plans, planners and metadata objects."""
