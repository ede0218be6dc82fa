"""fewstep: deploy few-step diffusion models. A sampler is a table; see fewstep.sampling.plan."""

__version__ = "0.1.0"
