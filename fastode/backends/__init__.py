"""Executors of plans. Each answers why it cannot run; ``choose`` picks one."""
