"""Multiplication of several integers, digit by digit with carries: a task whose parallelism is known beforehand.

ThreadWeaver (Lian et al. 2025, arXiv 2512.07843) checks its training on it; the generator of its demonstrations was not published.
"""
