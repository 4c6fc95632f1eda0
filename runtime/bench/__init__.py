"""Benchmarks of a runtime as its users meet it: ``ds2ds bench``, and bench/test_throughput_bench.py beside others."""
