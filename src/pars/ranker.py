"""The name by which notebooks know it: `from pars.ranker import Ranker`."""

from pars.ranking.ranker import Ranker, bundled_ranker
from pars.ranking.ranker_info import RankerInfo

boxed_ranker = bundled_ranker  # its name until November 2026, which scripts still use

__all__ = ["Ranker", "RankerInfo", "boxed_ranker", "bundled_ranker"]
