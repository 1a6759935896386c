"""`python -m kdq_flows` is `kdq`."""

from kdq_flows.cli import main

if __name__ == "__main__":
    main()
