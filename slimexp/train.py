"""Run one experiment: ``python -m slimexp.train +experiment=distill_t5``."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from slimexp.config.check import check
from slimexp.config.command_line import main
from slimexp.config.secret import masked
from slimexp.host.progress import working
from slimexp.record.stage import at_work


def train(cfg: DictConfig) -> float | None:
    """Check the configuration and run its pipeline.

    Returns:
        The headline figure of the last stage, which a sweeper optimises; ``None`` if it is not measured.
    """
    check(cfg)
    with working("importing the libraries"):  # torch and Lightning, only once the config is right
        from slimexp.pipeline.launch import silence_others
        from slimexp.pipeline.pipeline import Pipeline

    silence_others()
    with at_work(Path(cfg.runs)):  # from planning on: a plan counts on models that are there
        with working("checking the model, the data and the stages"):
            pipeline = Pipeline(cfg, overrides=masked(HydraConfig.get().overrides.task))
        return pipeline.run().get(pipeline.corpus.headline)


if __name__ == "__main__":
    main(train)
