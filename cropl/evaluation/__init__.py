"""Evaluation: methods at budgets on a benchmark, as rows, predictions and a report. No Lightning here."""
