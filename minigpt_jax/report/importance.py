"""How much of the objective's variance each axis of a sweep explains, by Optuna's fANOVA."""

import math
import warnings
from collections.abc import Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from minigpt_jax.report.results import Axis, Configuration


def importances(axes: Sequence[Axis], found: Sequence[Configuration]) -> tuple[dict[str, float], str]:
    """The share of the variance that each field explains, the largest first; or no shares and the reason for that.

    A random forest is fitted to the configurations' mean objectives. Its variance over the search space is then divided
    among the axes (Hutter, Hoos, Leyton-Brown 2014). Interactions of axes are not counted, and the shares are scaled to
    sum to 1.
    """
    varied = [axis for axis in axes if len({repr(one.values[axis.field]) for one in found}) > 1]
    used = [(one, one.mean) for one in found if one.mean is not None]
    needed = max(4, 2 * len(varied))
    if not varied:
        return {}, "No axis has had two different values yet."
    if len(used) < needed:
        return {}, f"Importances need {needed} complete configurations; there are {len(used)} so far."
    means = [mean for _, mean in used]
    if max(means) - min(means) < 1e-12 * max(map(abs, means)):
        return {}, "All configurations reached the same loss."
    spaces = {axis.field: _space(axis, [one for one, _ in used]) for axis in varied}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about the number of trials, which the report states anyway
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            study = optuna.create_study()
            for one, mean in used:
                coordinates = {axis.field: _coordinate(axis, one) for axis in varied}
                study.add_trial(optuna.trial.create_trial(params=coordinates, distributions=spaces, value=mean))
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            return optuna.importance.get_param_importances(study, evaluator=evaluator), ""
        finally:
            optuna.logging.set_verbosity(verbosity)


def _space(axis: Axis, found: Sequence[Configuration]) -> BaseDistribution:
    """The axis as the forest sees it. The forest has no log scale, so a log range is given as its logarithm."""
    if axis.values or not axis.numeric:
        return CategoricalDistribution(sorted({repr(one.values[axis.field]) for one in found}))
    coordinates = [float(_coordinate(axis, one)) for one in found]
    ends = [math.log(end) if axis.log else end for end in (axis.low, axis.high) if end is not None]
    return FloatDistribution(min(*ends, *coordinates), max(*ends, *coordinates))


def _coordinate(axis: Axis, one: Configuration) -> str | float:
    value = one.values[axis.field]
    if axis.values or not axis.numeric:
        return repr(value)
    return math.log(value) if axis.log else float(value)
