"""`python -m docferry`."""

from docferry.cli import main

if __name__ == "__main__":
    main()
