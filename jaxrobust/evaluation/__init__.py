"""The judge: run attacks and certificates, believe only what is seen."""

from jaxrobust.evaluation._report import AttackRecord, CertificateRecord, Report

__all__ = ["AttackRecord", "CertificateRecord", "Report"]
