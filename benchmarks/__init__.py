"""What turns cost, beside the least that the engine allows: ``python -m benchmarks --help``.

Every figure is a ratio to a floor (`benchmarks.floors`) that was measured in the same run, in
turns with it, since times don't carry over from machine to machine.
"""
