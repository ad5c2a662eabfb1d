"""This package is the only one that uses Ray, apart from the stages in mucs_ray.run.stages that call it."""
