"""The page on errors quotes messages that the package has."""

import re
from pathlib import Path

PAGE = Path("docs/errors.md")


def test_quoted_messages_are_those_of_the_package():
    source = " ".join(path.read_text() for path in sorted(Path("apr_jax").rglob("*.py")))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # strings over several lines
    quoted = re.findall(r"^\| `(.+?)` \|", PAGE.read_text(), re.MULTILINE)
    assert len(quoted) > 20 and [text for text in quoted if text not in source] == []
