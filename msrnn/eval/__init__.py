"""The paper's experiments (arXiv:2401.06104), one file each: functions that give plain records, and a command on top.

``msrnn eval EXPERIMENT``: ``command.py`` lists them and says what all have in common. An experiment of one's own is one more
file with ``add_arguments(parser)`` and ``run(args, source) -> Report``, and one line there.
"""
