"""PARS (arXiv 2510.03243): margin ranking loss on pairs at least 0.2 apart."""

from pars.prove.rivals.network import LITE, TrainedNetwork


class ParsMargin(TrainedNetwork):
    """PARS's objective."""

    source = "PARS, arXiv 2510.03243"
    differs = "the lite network instead of BERT-base, all pairs of a batch instead of ten a prompt"

    def __init__(self, network: str = LITE) -> None:
        super().__init__("pairwise-margin", network, threshold=0.2)
        if network != LITE:
            self.differs = f"{network} instead of BERT-base, all pairs of a batch, two epochs"


class Lite(TrainedNetwork):
    """What `pars train --preset lite` makes, or `--preset small` of another network."""

    source = "`pars train --preset lite`"

    def __init__(self, network: str = LITE) -> None:
        super().__init__("pairwise-logistic", network)
