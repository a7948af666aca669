"""`python -m pars` is `pars`."""

from pars.cli.main import main

if __name__ == "__main__":
    main()
