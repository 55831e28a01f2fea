"""The vocabulary of a load: tasks, results, records, memory; data without I/O, clock or torch."""
