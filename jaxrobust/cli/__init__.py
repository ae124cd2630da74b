"""The command line: `jaxrobust demo | train | evaluate | report`."""

from jaxrobust.cli._main import main

__all__ = ["main"]
