"""How many files a server may have open: a connection is one, and the usual limit is 1,024."""

import logging

log = logging.getLogger("pars")

MOST_OPEN_FILES = 1 << 20  # where there is no hard limit: Linux takes no more by default
FILES_BESIDE = 64  # the listener, the ranker, logs, outcomes


def raise_open_files(max_connections: int = 0) -> None:
    """
    Raise the soft limit on open files to the hard one, and say so.

    Args:
        max_connections: Requests at once, each a connection of the client's and one of the
            upstream's; where the limit allows fewer, that is said too.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        except (OSError, ValueError) as error:
            log.warning("the limit on open files stays at %d: %s", soft, error)
            most = soft
        else:
            log.info("the limit on open files is raised from %d to %d", soft, most)
    num_needed = 2 * max_connections + FILES_BESIDE
    if most < num_needed and max_connections:
        log.warning(
            "%d files may be open, enough for some %d requests at once: raise the hard limit"
            " (ulimit -Hn, LimitNOFILE=, --ulimit nofile=) to %d for --max-connections %d",
            *(most, max(0, most - FILES_BESIDE) // 2, num_needed, max_connections),
        )
