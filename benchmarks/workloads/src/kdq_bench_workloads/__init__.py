"""Workloads of KDQ's benchmarks."""
