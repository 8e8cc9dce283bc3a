"""The paper as functions on tensors: information degree, matching, merge and restore, schedules.

Ground floor: torch only, and no host library, module or hook is known here.
"""
