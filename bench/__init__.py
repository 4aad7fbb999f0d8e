"""Benchmarks: one registry of workloads, one adapter per library, one report. See docs/benchmarks.md."""
