"""Baselines that look at single events, with hand-made features: three learn from labels, one does without.

Logistic regression, random forest and gradient boosting, the three that the Fraud Detection Handbook (Le Borgne et al.
2021) compares, behind one protocol. They learn from labels, so nothing of the unsupervised path uses them. Beside them
an isolation forest, which reads none. All come with the extra ``baselines``; this module can be imported without it.

Letters used in shapes: n events, K features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.errors import NotFittedError, PackageError, ParameterError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Baseline(Protocol):
    """A supervised model of single events."""

    @property
    def name(self) -> str:
        """Short name, for columns and files."""
        ...

    def fit(self, features: ArrayLike, fraud: ArrayLike, seed: int = 0) -> Self:
        """Learn from features (n, K) and labels (n,), 1 = fraud; the same seed gives the same model."""
        ...

    def predict_proba(self, features: ArrayLike) -> Floats:
        """Probability of fraud of each event (n,); higher = more likely."""
        ...


@dataclass(kw_only=True)
class _Wrapped:
    """What the three share: checked inputs, and a model of another library inside."""

    name: ClassVar[str]  # short, for columns and files
    model_: Any = field(default=None, init=False, repr=False, compare=False)
    width_: int = field(default=0, init=False, repr=False, compare=False)

    def fit(self, features: ArrayLike, fraud: ArrayLike, seed: int = 0) -> Self:
        """Learn to tell fraud from the rest.

        Parameters
        ----------
        features : array (n, K)
            Finite numbers; of events whose labels are known.
        fraud : array (n,)
            1 = fraud, 0 = genuine; both must occur.
        seed : int
            The same seed on the same data gives the same model.

        Returns
        -------
        self

        Raises
        ------
        ParameterError
            If shapes disagree, a feature is not finite, or a label is no 0 or 1 or of one class only.
        PackageError
            If scikit-learn or XGBoost is not installed.
        """
        matrix = _matrix(self._who("fit"), features)
        label = _label(self._who("fit"), fraud, len(matrix))
        self.model_ = self._make(seed).fit(matrix, label)
        self.width_ = matrix.shape[1]
        return self

    def predict_proba(self, features: ArrayLike) -> Floats:
        """Probability of fraud of each event.

        Parameters
        ----------
        features : array (n, K)
            The same K features as in `fit`, finite.

        Returns
        -------
        ndarray (n,) of float64
            In [0, 1]; higher = more likely fraud. A share among what was learned from, no promise on other data.

        Raises
        ------
        NotFittedError
            Before `fit`.
        ParameterError
            If there are not K features, or one is not finite.
        """
        who = self._who("predict_proba")
        if self.model_ is None:
            raise NotFittedError(f"{who}: not fitted yet; call fit(features, fraud) first")
        matrix = _matrix(who, features)
        if matrix.shape[1] != self.width_:
            raise ParameterError(f"{who}: expected {self.width_} features as in fit, got {matrix.shape[1]}")
        if not len(matrix):  # which the libraries refuse
            return np.zeros(0)
        return np.asarray(self.model_.predict_proba(matrix)[:, 1], dtype=np.float64)

    def _who(self, method: str) -> str:
        return f"{type(self).__name__}.{method}"

    def _make(self, seed: int) -> Any:
        raise NotImplementedError


@dataclass(kw_only=True)
class Logistic(_Wrapped):
    """Logistic regression on standardised features (scikit-learn); the solver has one thread.

    Parameters
    ----------
    C : float
        Inverse strength of the L2 penalty.
    max_iter : int
        Most iterations of the solver.
    """

    name: ClassVar[str] = "logistic"
    C: float = 1.0
    max_iter: int = 1000

    def _make(self, seed: int) -> Any:
        with _needed("scikit-learn"):
            from sklearn.linear_model import LogisticRegression
            from sklearn.pipeline import make_pipeline
            from sklearn.preprocessing import StandardScaler
        regression = LogisticRegression(C=self.C, max_iter=self.max_iter, random_state=seed)
        return make_pipeline(StandardScaler(), regression)


@dataclass(kw_only=True)
class Forest(_Wrapped):
    """Random forest (scikit-learn).

    Parameters
    ----------
    trees : int
        Their number.
    depth : int
        Largest depth of each.
    n_jobs : int
        Threads; the result doesn't depend on it.
    """

    name: ClassVar[str] = "forest"
    trees: int = 100
    depth: int = 20
    n_jobs: int = 1

    def _make(self, seed: int) -> Any:
        with _needed("scikit-learn"):
            from sklearn.ensemble import RandomForestClassifier
        return RandomForestClassifier(
            n_estimators=self.trees, max_depth=self.depth, random_state=seed, n_jobs=self.n_jobs
        )


@dataclass(kw_only=True)
class Boosting(_Wrapped):
    """Gradient boosted trees (XGBoost).

    The last two defaults were XGBoost's own before version 2, and they matter where fraud is rare. Newer versions start
    from the share of frauds, where the loss has little curvature: the smallest weight of a leaf (1) then forbids splits
    that would tell frauds apart, and the first steps overshoot. And they cut features into 256 bins, too coarse for the
    tail of the amounts.

    Parameters
    ----------
    trees : int
        Their number.
    learning_rate : float
        Weight of each tree.
    depth : int
        Largest depth of each.
    n_jobs : int
        Threads.
    base_score : float
        Probability that the first tree starts from.
    tree_method : str
        How splits are found; "hist" is faster on many millions of events.
    """

    name: ClassVar[str] = "xgboost"
    trees: int = 100
    learning_rate: float = 0.3
    depth: int = 3
    n_jobs: int = 1
    base_score: float = 0.5
    tree_method: str = "exact"

    def _make(self, seed: int) -> Any:
        with _needed("xgboost"):
            import sklearn  # noqa: F401 - XGBoost's classifier needs it, and says so late
            from xgboost import XGBClassifier
        return XGBClassifier(
            n_estimators=self.trees,
            learning_rate=self.learning_rate,
            max_depth=self.depth,
            random_state=seed,
            n_jobs=self.n_jobs,
            base_score=self.base_score,
            tree_method=self.tree_method,
        )


@dataclass(kw_only=True)
class Isolation:
    """Isolation forest (Liu, Ting and Zhou 2008; scikit-learn): how few random cuts set an event apart. No label.

    Parameters
    ----------
    trees : int
        Their number, each grown on 256 events.
    """

    name: ClassVar[str] = "isolation_forest"
    trees: int = 100
    model_: Any = field(default=None, init=False, repr=False, compare=False)

    def fit(self, features: ArrayLike, seed: int = 0) -> Self:
        """Learn where the events (n, K) lie, finite numbers; the same seed gives the same model.

        Raises
        ------
        ParameterError
            If a feature is not finite, or there is no event.
        PackageError
            If scikit-learn is not installed.
        """
        matrix = _matrix("Isolation.fit", features)
        if not len(matrix):
            raise ParameterError("Isolation.fit: expected events to learn from, got none")
        with _needed("scikit-learn"):
            from sklearn.ensemble import IsolationForest
        self.model_ = IsolationForest(n_estimators=self.trees, random_state=seed).fit(matrix)
        return self

    def score(self, features: ArrayLike) -> Floats:
        """Strangeness of each event (n,) in (0, 1]; higher = stranger. The features are those of `fit`.

        Raises
        ------
        NotFittedError
            Before `fit`.
        ParameterError
            If there are not as many features as in `fit`, or one is not finite.
        """
        if self.model_ is None:
            raise NotFittedError("Isolation.score: not fitted yet; call fit(features) first")
        matrix = _matrix("Isolation.score", features)
        expected = self.model_.n_features_in_
        if matrix.shape[1] != expected:
            raise ParameterError(f"Isolation.score: expected {expected} features as in fit, got {matrix.shape[1]}")
        return -self.model_.score_samples(matrix) if len(matrix) else np.zeros(0)


BASELINES: Mapping[str, Callable[[], Baseline]] = {kind.name: kind for kind in (Logistic, Forest, Boosting)}


@contextmanager
def _needed(package: str) -> Iterator[None]:
    """Say which extra brings a package that is not there."""
    try:
        yield
    except ImportError as error:
        raise PackageError(
            f'the baselines need the package {package}: pip install "anomaly[baselines]" ({error})'
        ) from None


def _matrix(who: str, features: ArrayLike) -> Floats:
    matrix = np.asarray(features, dtype=np.float64)
    if matrix.ndim != 2:
        raise ParameterError(f"{who}: expected features of shape (n, K), got {matrix.shape}")
    odd = ~np.isfinite(matrix)
    if odd.any():
        raise ParameterError(
            f"{who}: expected finite features, got {int(odd.sum())} others, the first in column "
            f"{int(odd.any(axis=0).argmax())}; say first what a missing one counts for"
        )
    return matrix


def _label(who: str, fraud: ArrayLike, n: int) -> Bools:
    label = np.asarray(fraud)
    if label.shape != (n,):
        raise ParameterError(f"{who}: expected one label for each of {n} events, got shape {label.shape}")
    positive = label == 1
    if not np.all(positive | (label == 0)):
        raise ParameterError(f"{who}: expected labels 0 and 1, got others; fit on events whose labels are known")
    if positive.all() or not positive.any():
        found = "frauds" if n and positive.all() else "genuine events"
        raise ParameterError(f"{who}: expected frauds and genuine events to tell apart, got {n} {found} only")
    return np.asarray(positive)
