"""The papers' tables, on pictures and on videos; see docs/evaluation.md."""
