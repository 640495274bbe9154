"""P-values -> decisions, with the number of cases a day that each decision rule will cost.

Six rules, for six ways to say what is wanted:

===========================  =================================================  ===================
`FalseAlertRate`             a share of the normal events that may alert        events, streams
`Budget`                     a number of cases a day                            events, streams
`FalseDiscoveryRate`         a share of alerting entities that may be false     batches
`OnlineFalseDiscoveryRate`   a share of a stream's alerts that may be false     streams, learns
`PeaksOverThreshold`         a share of the normal events, following drift      streams, learns
`ExpectedCost`               what an alert costs, against the money at risk     events, streams
===========================  =================================================  ===================

Each is fitted on the held-out slice, whose day-to-day variation gives the interval around the promise, and is
back-tested on the slice day by day.
"""

from anomaly.thresholds.base import BackTest, StreamThreshold, Threshold
from anomaly.thresholds.cases import case_numbers, count_cases
from anomaly.thresholds.cost import ExpectedCost
from anomaly.thresholds.discovery import FalseDiscoveryRate, OnlineFalseDiscoveryRate
from anomaly.thresholds.extremes import PeaksOverThreshold
from anomaly.thresholds.rates import Budget, FalseAlertRate
from anomaly.thresholds.usual import usual_rule

__all__ = [
    "BackTest",
    "Budget",
    "ExpectedCost",
    "FalseAlertRate",
    "FalseDiscoveryRate",
    "OnlineFalseDiscoveryRate",
    "PeaksOverThreshold",
    "StreamThreshold",
    "Threshold",
    "case_numbers",
    "count_cases",
    "usual_rule",
]
