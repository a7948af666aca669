"""The name by which notebooks know it: `from pars.ranker import Ranker`."""

from pars.ranking.ranker import Ranker, RankerInfo, bundled_ranker

__all__ = ["Ranker", "RankerInfo", "bundled_ranker"]
