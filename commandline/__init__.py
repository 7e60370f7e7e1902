"""What the command lines of training, serving and benchmarks share; it imports none of them.

parser      options that the environment sets, too
extras      one line for a package that is not installed
checkout    what can be named in a checkout only: the version, `make`
"""
