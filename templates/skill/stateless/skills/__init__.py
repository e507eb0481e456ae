"""The agent's skills. Importing one registers it."""
