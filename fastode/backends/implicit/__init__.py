"""Backend ``implicit``: implicit Runge-Kutta and Rosenbrock methods, batched over samples."""
