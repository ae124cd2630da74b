"""Timings and agreement with other libraries, each against a named rival in the same run."""
