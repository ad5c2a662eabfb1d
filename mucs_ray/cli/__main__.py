"""`python -m mucs_ray.cli`."""

from mucs_ray.cli.app import main

main()
