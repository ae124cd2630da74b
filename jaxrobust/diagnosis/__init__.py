"""Does a defence withstand attacks, or only hide its gradients from them?"""

from jaxrobust.diagnosis._findings import Findings
from jaxrobust.diagnosis._run import diagnose
from jaxrobust.diagnosis._symptoms import SYMPTOMS, Symptom

__all__ = ["SYMPTOMS", "Findings", "Symptom", "diagnose"]
