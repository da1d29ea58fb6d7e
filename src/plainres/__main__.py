"""`plainres`, and `python -m plainres`."""


def main() -> None:
    """Run the command line."""
    import signal

    # Ctrl-C while the libraries load ends the process, as it should, without pages of their tracebacks; a
    # command sets Python's own handler again once they are loaded.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from plainres.cli import app

    app(prog_name="plainres")


if __name__ == "__main__":
    main()
