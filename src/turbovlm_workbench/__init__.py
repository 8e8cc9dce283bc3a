"""The workbench: what measures, tunes, evaluates, reports and is typed at a prompt."""
