"""Pages of HTML from the package's templates, each one file that needs nothing else."""

from __future__ import annotations

from importlib.resources import files


def render(template: str, **values: object) -> str:
    """A page; what is put into it is escaped.

    Args:
        template: path of the template in the package.
        values: what it shows.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    def source(name: str) -> str:
        return files("ctflow").joinpath(name).read_text(encoding="utf-8")

    environment = Environment(loader=FunctionLoader(source), autoescape=True, undefined=StrictUndefined)
    return str(environment.get_template(template).render(**values))
