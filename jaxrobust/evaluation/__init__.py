"""The judge: run attacks and certificates, believe only what is seen."""

from jaxrobust.evaluation._report import (
    AttackRecord,
    CertificateRecord,
    DetectorRecord,
    Report,
)
from jaxrobust.evaluation._run import environment, evaluate

__all__ = [
    "AttackRecord",
    "CertificateRecord",
    "DetectorRecord",
    "Report",
    "environment",
    "evaluate",
]
