"""``msrnn bench``: times and bytes on the machine at hand, beside other people's code.

A section is a function ``(Bench) -> rows``; ``sections.py`` names them all.
"""
