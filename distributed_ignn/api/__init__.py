"""The front door: train on a graph from a script, a notebook or a task, and use what was trained.

``fit`` starts a run and ``load`` opens one that is there; both hand over a ``Run``.
``make_trainer`` is a run for a program that uses Ray Train. Nothing is printed unless asked,
mistakes are a ``UserError`` of one line, and the process is left as it was.
"""

from distributed_ignn.api.finished_run import Run, load
from distributed_ignn.api.fitting import fit
from distributed_ignn.api.ray_training import make_trainer
from distributed_ignn.runs.prediction import Prediction

__all__ = ["Prediction", "Run", "fit", "load", "make_trainer"]
