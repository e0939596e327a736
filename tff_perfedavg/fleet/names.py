"""Names of fleets, conditions and settings of protocols.

Plain Python, for flags.
"""

# No fleet; fleets that come with the toolkit.
NONE, IDEAL, MIXED = "none", "ideal", "mixed"
# Files of a fleet's directory.
FILE_NAME, TRACE_NAME = "fleet.toml", "trace.npz"
# Conditions of which a protocol may ask.
IDLE, CHARGING, UNMETERED = "idle", "charging", "unmetered"
CONDITIONS = (IDLE, CHARGING, UNMETERED)
# What becomes of work that is not done when the server stops waiting.
DROP, PARTIAL = "drop", "partial"
LATE_REPORTS = (DROP, PARTIAL)
# What a device does that goes off in the middle of a task.
ABORT, PAUSE = "abort", "pause"
LEAVING = (ABORT, PAUSE)
# What a user's device class goes by.
INDEPENDENT, BY_ROWS, BY_LABEL = "independent", "by_rows", "by_label"
ASSIGNMENTS = (INDEPENDENT, BY_ROWS, BY_LABEL)
