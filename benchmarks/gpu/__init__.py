"""Benchmarks on a GPU; ``benchmarks/gpu.sh`` builds, tests and runs them.

Every section is a process of its own, so that one that fails, runs out of memory or breaks the device's
context costs only itself. It holds our result against float64 first, then times ours and the others in turn.
"""
