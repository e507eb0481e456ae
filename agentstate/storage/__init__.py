"""Where states are kept: the protocol, the registry, and one module per backend."""
