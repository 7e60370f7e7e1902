"""Shared by the command lines of training, serving and benchmarks; imports none of them.

parser      options that the environment can set too
extras      one line for a package that is not installed
checkout    the version, and `make` where there is a checkout
"""
