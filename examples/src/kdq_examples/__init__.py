"""Workloads of KDQ's recipes on published data."""
