"""This package holds the attribution methods, one file each."""
