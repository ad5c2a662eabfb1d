"""A command on its way: from what the user names to finished stages."""
