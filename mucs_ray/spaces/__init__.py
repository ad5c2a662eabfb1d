"""The spaces in which models work: functions between stored pictures and z, one file for each space."""
