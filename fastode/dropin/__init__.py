"""A drop-in for torchdiffeq: its functions, with fastode's engine."""
