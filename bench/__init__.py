"""Benchmarks: one registry of workloads, one runner per library, one comparison."""
