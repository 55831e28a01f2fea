"""One package for each checkpoint library; nothing below this package knows any of them."""
