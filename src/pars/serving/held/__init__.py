"""A queue held here, for engines that order none: a request goes on when there is room."""
