"""What this book asks of Sphinx beside its extensions: see `local_extensions` in _config.yml."""

from __future__ import annotations

import re

GENERATED = {"results", "executed"}  # pages that are written by scripts and are not in git


def source_of(page: str) -> str | None:
    """The file of the repository that a reader edits to change a page; none if it is generated."""
    if page in GENERATED:
        return None
    return f"{page}.py" if page.startswith("notebooks/") else f"book/{page}.md"


def point_edit_link(app, page, template, context, doctree):
    """Point the theme's edit button to the page's source, or take it away."""
    for group in context.get("header_buttons", []):
        buttons = group.get("buttons", [])
        for button in [b for b in buttons if b.get("label") == "source-edit-button"]:
            if source := source_of(page):
                about = {k: context[f"github_{k}"] for k in ("url", "user", "repo", "version")}
                button["url"] = "{url}/{user}/{repo}/edit/{version}/".format(**about) + source
            else:
                buttons.remove(button)


def mend(app, page, template, context, doctree):
    """What the theme's pages would not pass the tests with."""
    # Live code is not used; its settings would be declared twice, which is an error.
    context["script_files"] = [s for s in context["script_files"] if "thebe" not in told(s)]
    # A role that ARIA has given up, in place of the one that a list may hold.
    if "body" in context:
        context["body"] = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')


def told(script) -> str:
    """A script's address, or what it says itself."""
    return f"{script} {getattr(script, 'attributes', {}).get('body')}".lower()


def plain(app, what, name, thing, options, lines):
    """Outside backticks this package's docstrings are plain text: no reST markup is meant.

    What backticks hold becomes a link where it is the name of something on the page (role py:obj).
    A name with a capital, or with a module, is sought in all modules: that is what the dot says.
    """
    parts = "\n".join(lines).split("`")
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = f".{part}" if re.fullmatch(r"[A-Z]\w+(\.\w+)?|[a-z]+\.\w+", part) else part
        else:
            text = re.sub(r"[*|_\\]", r"\\\g<0>", part)
            parts[i] = f"\\ {text}" if i and text[:1].isalnum() else text  # `Section`s
    lines[:] = "`".join(parts).split("\n")


def setup(app):
    # Jupyter Book puts every script below _static into each page, in any order; these have one.
    app.connect("config-inited", lambda app, config: config.html_static_path.append("_vendor"))
    app.connect("html-page-context", point_edit_link, priority=900)  # the theme has made it by then
    app.connect("html-page-context", mend, priority=900)
    app.connect("autodoc-process-docstring", plain)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
