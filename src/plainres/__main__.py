"""`plainres`, and `python -m plainres`."""


def main() -> None:
    """Run the command line."""
    from plainres.cli import app

    app(prog_name="plainres")


if __name__ == "__main__":
    main()
