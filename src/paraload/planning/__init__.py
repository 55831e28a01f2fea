"""From records to read tasks: which bytes are read together, and in which order; pure."""
