"""The command line: `jaxrobust demo | train | evaluate | certify | report`."""

from jaxrobust.cli._main import main

__all__ = ["main"]
