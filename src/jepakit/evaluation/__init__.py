"""Evaluation of frozen features: extraction, nearest neighbours, linear and attentive probes."""

from jepakit.evaluation.attentive import attentive_probe
from jepakit.evaluation.clips import JoinedClips, TimeSteps
from jepakit.evaluation.features import Features, extract_features
from jepakit.evaluation.knn import knn_accuracy, nearest_neighbours
from jepakit.evaluation.linear import linear_probe
from jepakit.evaluation.scores import Scores, evaluate

__all__ = [
    "Features",
    "JoinedClips",
    "Scores",
    "TimeSteps",
    "attentive_probe",
    "evaluate",
    "extract_features",
    "knn_accuracy",
    "linear_probe",
    "nearest_neighbours",
]
