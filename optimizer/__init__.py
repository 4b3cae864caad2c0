"""Words and maths of the optimizer: no server, no network, no disk."""
