"""Run from an upload, nothing installed: `ray job submit --working-dir . -- python cli.py attribute ...`."""

from mucs_ray.cli.app import main

if __name__ == "__main__":
    main()
