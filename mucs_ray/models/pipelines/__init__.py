"""Pipelines of diffusers as models: the only room that knows the packages of the extra mucs-ray[diffusers]."""
