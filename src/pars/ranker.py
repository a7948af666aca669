"""The name by which notebooks know it: `from pars.ranker import Ranker`."""

from pars.ranking.ranker import Ranker, bundled_ranker
from pars.ranking.ranker_info import RankerInfo

__all__ = ["Ranker", "RankerInfo", "bundled_ranker"]
