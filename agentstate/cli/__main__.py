"""``python -m agentstate.cli``."""

from agentstate.cli import main

main()
