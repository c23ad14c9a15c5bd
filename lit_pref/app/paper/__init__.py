"""The figures of arXiv 2404.14367 as experiments with criteria: ``scripts/reproduce.py``."""
