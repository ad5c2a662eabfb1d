"""The only place that speaks to Ray."""
