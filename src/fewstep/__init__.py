"""fewstep: deploy few-step diffusion models. A sampler is a table; see fewstep.plan."""

__version__ = "0.1.0"
