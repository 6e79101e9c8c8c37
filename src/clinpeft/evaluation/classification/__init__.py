"""Evaluation of classifiers: discrimination, calibration, decision curves, subgroups.

```
scored_predictions.py  a table of predictions as arrays   ranks.py         AUROC, average precision
metric_set.py          metrics on shared resamples        discrimination.py  averages over classes
calibration.py         Brier, slope, O:E, curves          logistic.py      its regressions
decisions.py           net benefit                        paired.py        two models, DeLong
subgroups.py           groups and gaps                    recalibration.py temperature, isotonic
scoring.py             all of it for one task             meds_evaluation.py  the MEDS schema
```
"""
