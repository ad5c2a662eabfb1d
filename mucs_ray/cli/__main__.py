"""`python -m mucs_ray.cli` is the command `mucs-ray`."""

from mucs_ray.cli.app import main

if __name__ == "__main__":
    main()
