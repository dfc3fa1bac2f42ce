"""Docstrings write formulas as :math:`…` and .. math::; the site wants $…$."""

import re
import textwrap

import griffe


def dollars(text: str) -> str:
    """Replace both reStructuredText forms of a formula."""
    text = re.sub(r":math:`([^`]+)`", r"$\1$", text)
    return re.sub(
        r"^( *)\.\. math::(.*(?:\n\1 +\S.*)*)",
        lambda match: textwrap.indent(f"$$\n{' '.join(match[2].split())}\n$$", match[1]),
        text,
        flags=re.MULTILINE,
    )


class DocstringMath(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = dollars(obj.docstring.value)
