"""The dry run of every experiment at scale=paper, on stand-ins of true layout."""
