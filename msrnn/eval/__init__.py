"""The experiments of the TOVA paper (arXiv:2401.06104), one module each.

A module has functions that return plain records, ``add_arguments(parser)`` and ``run(args, inputs) -> Report``. To add an
experiment, write such a module and list it in ``msrnn/cli/eval.py``.
"""
