"""Classifier and Regressor: the supervised heads, for the cases where labels exist.

What they share, the reading of histories and the loop, is in `anomaly.models.supervised`; what they learn, in
`objectives`; what their outputs mean as probabilities, in `probabilities`.

Letters used in shapes: N events, S sequences, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.errors import InputError, ParameterError
from anomaly.models.objectives import Binary, Multiclass, Objective, Regression, Weight
from anomaly.models.probabilities import Calibration, CalibrationKind, Temperature
from anomaly.models.supervised import Supervised
from anomaly.models.training import Mask
from anomaly.sequences import Sequences

Float = NDArray[np.float64]


@dataclass(kw_only=True)
class Classifier(Supervised):
    """Probability that an event (or a whole sequence) is fraud, or of each of several classes, learned from labels.

    Parameters beside those of `Supervised`:

    Parameters
    ----------
    classes : int
        2 = fraud (1) or not (0), one logit; more: labels 0 to `classes` - 1, a softmax.
    positive_weight : float, "balanced" or None
        What a fraud counts for in the loss beside a genuine event: None = 1, "balanced" = as many times as genuine
        events outnumber frauds among those that train. Of several classes "balanced" lets all weigh alike.
    gamma : float
        Focus on what is not yet told apart (focal loss, Lin, Goyal, Girshick, He and Dollár 2017): each event counts
        (1 - probability of its own label) to this power. 0 = plain cross-entropy.
    sampling : "balanced", float or None
        Let only so many genuine events train in each epoch, drawn anew, as there are frauds ("balanced"), or so many
        times as many. What that does to the odds is taken back from the logit (King and Zeng 2001), so that it means
        the share of fraud as it is.
    calibration : {"platt", "isotonic", "none"}
        How logits become probabilities, learned on the events of `valid`: a line on the scale of log-odds, or knots of
        an isotonic regression joined by lines (for many labels; see `Calibration`). Both keep the ranking. With "none"
        the probability is the sigmoid of the logit, which a `positive_weight` or a `gamma` distorts. Of several
        classes "platt" is one temperature for all (see `Temperature`), and there is no "isotonic".
    """

    classes: int = 2
    positive_weight: Weight = None
    gamma: float = 0.0
    sampling: Literal["balanced"] | float | None = None
    calibration: CalibrationKind = "platt"
    calibration_: Calibration | Temperature = field(init=False, repr=False, compare=False)

    _what = "fraud"

    @property
    def _takes_prior(self) -> bool:
        return self.classes == 2

    @property
    def outputs(self) -> int:
        """Outputs of the head: one logit, or one of each class."""
        return 1 if self.classes == 2 else self.classes

    def predict_proba(
        self,
        sequences: Sequences,
        extra: ArrayLike | None = None,
        mask: Mask | None = None,
        prior: ArrayLike | None = None,
    ) -> Float:
        """Probability that each event is fraud, given its history, (N,) in [0, 1]; higher = more likely.

        Of several classes (N, C), rows that add up to 1; with ``level="sequence"`` S for N. NaN outside `mask`. One
        pass: N events cost N recurrent steps. The columns of the sequences and of `extra` are those of the fit, else an
        InputError says so; before the fit it is a NotFittedError.
        """
        logit = self.decision_function(sequences, extra, mask, prior)  # which refuses before `fit`
        return self.calibration_(logit)

    def decision_function(
        self,
        sequences: Sequences,
        extra: ArrayLike | None = None,
        mask: Mask | None = None,
        prior: ArrayLike | None = None,
    ) -> Float:
        """Logit of each event before any calibration, (N,) or (N, C); higher = likelier. Else as `predict_proba`."""
        found = self.decide(sequences, extra, mask, prior)
        return found[:, 0] if self.classes == 2 else found

    def _targets(self, given: ArrayLike, train: Mask, valid: Mask) -> NDArray[Any]:
        known = train | valid
        read = np.asarray(given)[known]
        label = np.zeros(len(train), dtype=np.int64)
        for number in range(1, self.classes):
            label[known] = np.where(read == number, number, label[known])
        if not np.all((label[known] > 0) | (read == 0)):
            names = "0 or 1" if self.classes == 2 else f"whole numbers from 0 to {self.classes - 1}"
            raise InputError(
                f"Classifier: labels of train and valid must be {names}; leave unknown ones out of the masks"
            )
        self._check_labels(label, train, valid)
        return label > 0 if self.classes == 2 else label

    def _objective(self, target: NDArray[Any]) -> tuple[Objective, Any]:
        balanced = self.positive_weight == "balanced"
        if self.classes > 2:
            return Multiclass.of(target, self.classes, self.gamma, balanced=balanced), np.asarray
        genuine = 1.0 if self.sampling == "balanced" else self.sampling
        return Binary.of(target, self.positive_weight, self.gamma, genuine), np.asarray

    def _conclude(self, output: Float, target: NDArray[Any]) -> None:
        if self.classes > 2:
            self.calibration_ = Temperature.of(self.calibration, output, target)
        else:
            self.calibration_ = Calibration.of(self.calibration, output[:, 0], target)

    def _learned(self) -> Mapping[str, Any]:
        return {f"calibration.{name}": value for name, value in vars(self.calibration_).items()}

    def _recall(self, arrays: Mapping[str, Float]) -> None:
        slope = float(arrays["calibration.slope"])
        if self.classes > 2:
            self.calibration_ = Temperature(slope)
        else:
            self.calibration_ = Calibration(arrays["calibration.logit"], arrays["calibration.log_odds"], slope)

    def _check_labels(self, label: NDArray[np.int64], train: Mask, valid: Mask) -> None:
        units = f"{self.level}s"
        for what, mask in (("train", train), ("valid", valid)):
            number = np.bincount(label[mask], minlength=self.classes)
            events = int(mask.sum())
            needs_both = what == "train" or (self.calibration != "none" and self.classes == 2)
            if not events or (needs_both and not number.all()):
                remedy = "choose other events" + (', or calibration="none"' if what == "valid" and events else "")
                wanted, got = "frauds and genuine events", f"{number[1]} frauds"
                if self.classes > 2:
                    wanted, got = f"all {self.classes} classes", f"{int((number > 0).sum())} of them"
                raise InputError(f"Classifier: {what} must hold {wanted}, got {got} among {events} {units}; {remedy}")

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if not 0 <= self.gamma < math.inf:
            raise ParameterError(f"Classifier: gamma must be at least 0, got {self.gamma!r}")
        if self.classes < 2:
            raise ParameterError(f"Classifier: classes must be at least 2, got {self.classes!r}")
        weight = self.positive_weight
        if weight not in (None, "balanced") and (isinstance(weight, str) or not 0 < weight < math.inf):
            raise ParameterError(f"Classifier: positive_weight must be above 0, got {weight!r}")
        if self.calibration not in get_args(CalibrationKind):
            kinds = ", ".join(get_args(CalibrationKind))
            raise ParameterError(f"Classifier: calibration must be one of {kinds}, got {self.calibration!r}")
        sampling = self.sampling
        if sampling not in (None, "balanced") and (isinstance(sampling, str) or not 0 < sampling < math.inf):
            raise ParameterError(f"Classifier: sampling must be 'balanced', above 0 or None, got {sampling!r}")
        if self.classes > 2 and (self.sampling or self.calibration == "isotonic" or weight not in (None, "balanced")):
            raise ParameterError(
                f"Classifier: with classes={self.classes} there is no sampling, no isotonic calibration and no "
                "positive_weight but 'balanced'; leave them out"
            )


@dataclass(kw_only=True)
class Regressor(Supervised):
    """A number for each event given its history, or for each whole sequence, learned by squared error.

    Parameters are those of `Supervised`. Targets are standardised while training; results are in their own unit.
    """

    @property
    def outputs(self) -> int:
        """Outputs of the head."""
        return 1

    def predict(self, sequences: Sequences, extra: ArrayLike | None = None, mask: Mask | None = None) -> Float:
        """Expected value of each event, (N,), or with ``level="sequence"`` of each sequence, (S,), in its own unit.

        NaN outside `mask`. Errors are those of `Classifier.predict_proba`.
        """
        return self.decide(sequences, extra, mask)[:, 0] * self.scale_ + self.center_

    def _targets(self, given: ArrayLike, train: Mask, valid: Mask) -> NDArray[Any]:
        known = train | valid
        value = np.zeros(len(train))
        value[known] = np.asarray(given)[known].astype(np.float64)
        if not train.any() or not valid.any() or not np.isfinite(value).all():
            raise InputError(
                f"Regressor: train and valid must hold finite targets, got {int(train.sum())} and {int(valid.sum())} "
                f"{self.level}s, {int((~np.isfinite(value)).sum())} of them not finite; leave those out of the masks"
            )
        return value

    def _objective(self, target: NDArray[Any]) -> tuple[Objective, Any]:
        self.center_, self.scale_ = float(target.mean()), float(target.std()) or 1.0
        return Regression(len(target)), self._standardised

    def _standardised(self, value: NDArray[Any]) -> NDArray[np.float32]:
        return ((value - self.center_) / self.scale_).astype(np.float32)

    def _conclude(self, output: Float, target: NDArray[Any]) -> None:
        """Nothing more: the outputs are the values."""

    def _learned(self) -> Mapping[str, Any]:
        return {"target.center": self.center_, "target.scale": self.scale_}

    def _recall(self, arrays: Mapping[str, Float]) -> None:
        self.center_, self.scale_ = float(arrays["target.center"]), float(arrays["target.scale"])
