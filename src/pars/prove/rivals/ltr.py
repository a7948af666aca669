"""vllm-ltr (arXiv 2408.15792): ListMLE over the prompts of a batch."""

from pars.prove.rivals.network import LITE, TrainedNetwork


class LTR(TrainedNetwork):
    """Listwise learning to rank."""

    source = "vllm-ltr, arXiv 2408.15792"
    differs = "the lite network instead of OPT-125M; lists are batches of 64"

    def __init__(self, network: str = LITE) -> None:
        super().__init__("listmle", network)
        if network != LITE:
            self.differs = f"{network} instead of OPT-125M; lists are batches of 64"
