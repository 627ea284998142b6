"""Timings, each relative to limits measured in the same run."""
