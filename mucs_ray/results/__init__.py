"""The results of a finished run, as a report and as numbers."""
