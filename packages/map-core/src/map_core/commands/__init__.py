"""Command lines: how they are parsed, the recipes behind them, and the commands that every domain has."""
