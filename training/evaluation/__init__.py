"""Evaluation on pictures and videos, with the papers' tables; see docs/evaluation.md."""
