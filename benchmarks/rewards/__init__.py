"""The road of a reward under load and under faults: what is acknowledged is stored, once."""
