"""What z is, the space that a model works in: functions between stored pictures and z, one file a space."""
