"""Teachers and few-step generators, trained with PyTorch. Import the modules: fewstep.trainer.teacher, fewstep.trainer.sid."""
