"""`python -m jepakit.interop config.yaml` prints the jepakit code for a configuration file."""

import sys

from jepakit.interop.migration import migrate_config


def main(arguments: list[str]) -> int:
    """Print the code and the account of all keys; return the exit status."""
    if len(arguments) != 1:
        print("usage: python -m jepakit.interop config.yaml", file=sys.stderr)
        return 2
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError:
        print("PyYAML is needed to read the file: pip install pyyaml", file=sys.stderr)
        return 1
    with open(arguments[0], encoding="utf-8") as file:
        print(migrate_config(yaml.safe_load(file)), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
