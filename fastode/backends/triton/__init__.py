"""Programs as generated Triton kernels: the whole solve in one, its whole adjoint in another."""
