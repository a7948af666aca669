"""SSJF (arXiv 2404.08509): a proxy model's regression of the answer's length."""

from pars.prove.rivals.network import LITE, TrainedNetwork


class SSJF(TrainedNetwork):
    """Pointwise regression, shortest predicted answer first."""

    source = "SSJF, arXiv 2404.08509"
    differs = "the lite network instead of BERT-base; the log length instead of the token count"

    def __init__(self, network: str = LITE) -> None:
        super().__init__("pointwise", network)
        if network != LITE:
            self.differs = f"{network} instead of BERT-base; the log length, not the token count"
