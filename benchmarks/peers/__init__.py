"""The project beside what users would pick instead, on the same weights: `python -m benchmarks.peers`.

Every engine is a subprocess (`workers/`) that loads a folder of weights and runs workloads when asked, one at a time, so
that whoever is not being timed is idle. This package must import nothing but the standard library at its top: peers live
in an interpreter of their own.
"""
