"""Reads the exporter's table of translations when it is imported: a run does that once, before it forks its stages."""

from kdq_targets.onnx_registry import read_table

read_table()
